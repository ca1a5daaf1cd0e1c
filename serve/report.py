"""`python serve/report.py ARTIFACT --data DIR --out report/`: all that is to be known of a model, on one page.

DIR is as for serve/gradcam_viz.py. OUT/index.html holds its pictures itself; they lie beside it as PNGs, too. Nothing
is written of a model that is no better than chance, or not as good as it says.
"""

import argparse
from pathlib import Path

from prep.errors import InputError, positive_count, run
from serve.artifact import load_artifact
from serve.cam import GradCam
from serve.charts import read_run
from serve.choose import Choice
from serve.explain import write_caption
from serve.honesty import find_doubts
from serve.images import open_images
from serve.judge import choose_rows, count_hits, judge
from serve.page import write_page
from serve.sections import (
    Measured,
    show_calibration,
    show_classes,
    show_confusions,
    show_figures,
    show_gallery,
    show_training,
)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="serve/report.py", description=__doc__)
    add = parser.add_argument
    add("artifact", type=Path, metavar="ARTIFACT", help="what train/export.py wrote")
    add("--data", type=Path, required=True, metavar="DIR", help="labelled images")
    add("--out", type=Path, default=Path("report"), metavar="FOLDER")
    add("--run", type=Path, metavar="RUN", help="folder of the training run, for its curves")
    add("--limit", type=positive_count, metavar="N", help="measure on N images drawn at random (default: all)")
    add("--num_show", type=positive_count, default=20, help="rows of the gallery (default: 20)")
    add("--seed", type=int, default=0, help="of what is drawn at random (default: 0)")
    add("--anyway", action="store_true", help="write of a model that should not be, with the warning on the page")
    return parser.parse_args()


def main() -> None:
    """Load, measure, refuse or write; say where."""
    arguments = parse_arguments()
    curves = read_run(arguments.run) if arguments.run else None
    measured, cam = measure(arguments)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    sections = [
        ("", show_figures(measured)),
        ("Classes", show_classes(measured)),
        ("Confusions", show_confusions(measured, out)),
        ("Calibration", show_calibration(measured, out)),
        *([("Training", show_training(curves, out))] if curves else []),
        ("The surest mistakes", show_gallery(measured, cam, Choice(arguments.num_show, seed=arguments.seed), out)),
    ]
    (out / "index.html").write_text(write_page(measured.served.name, sections), encoding="utf-8")
    print(f"{measured.caption.figures[0]}\nreport: {out / 'index.html'}")


def measure(arguments: argparse.Namespace) -> tuple[Measured, GradCam]:
    """The model with its verdicts on all pictures.

    Raises:
        InputError: it cannot be trusted.
    """
    served = load_artifact(arguments.artifact)
    source = open_images(arguments.data, served.num_classes, served.class_names)
    cam = GradCam(served.model, served.preprocessing.crop)
    verdicts = judge(served, source, choose_rows(source.num_images, arguments.limit, arguments.seed))
    doubts = find_doubts(count_hits(verdicts), served.num_classes, served.recorded)
    if doubts and not arguments.anyway:
        raise InputError(f"nothing was written: {'; '.join(doubts)}; --anyway writes it with this warning")
    return Measured(served, source, verdicts, write_caption(served, source, verdicts, doubts, cam)), cam


if __name__ == "__main__":
    run(main, interrupted="nothing was written")
