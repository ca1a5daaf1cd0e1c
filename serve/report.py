"""`python serve/report.py ARTIFACT --data DIR --out report/`: a report on one page about an exported model.

DIR is as for serve/gradcam_viz.py. OUT/index.html contains all of its pictures; they are also written next to it as
PNGs. Nothing is written for a model that is not better than chance, or not as good as its artifact records.
"""

# ruff: noqa: PLC0415 - torch and matplotlib take seconds to import, so `main` does it after the flags were parsed

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from prep.curves import read_metrics
from prep.errors import InputError, positive_count, run

if TYPE_CHECKING:
    from serve.cam import GradCam
    from serve.report_page import Measured


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="serve/report.py", description=__doc__)
    add = parser.add_argument
    add("artifact", type=Path, metavar="ARTIFACT", help="folder written by train/export.py")
    add("--data", type=Path, required=True, metavar="DIR", help="labelled images")
    add("--out", type=Path, default=Path("report"), metavar="FOLDER", help="folder to write (default: report)")
    add("--run", type=Path, metavar="RUN", help="folder of the training run, for its curves")
    add("--limit", type=positive_count, metavar="N", help="measure on N images drawn at random (default: all)")
    add("--num_show", type=positive_count, default=20, help="rows of the gallery (default: 20)")
    add("--seed", type=int, default=0, help="for everything that is drawn at random (default: 0)")
    add("--anyway", action="store_true", help="report a model that fails the check, with the warning on the page")
    return parser.parse_args()


def main() -> None:
    """Measure the model; write the report, or refuse to."""
    arguments = parse_arguments()
    from serve import report_page
    from serve.selection import Choice

    # Read and measure everything before the first file is written.
    entries = read_metrics(arguments.run) if arguments.run else None
    measured, cam = measure_model(arguments)

    # Draw the parts of the page; each picture is also a file in the folder.
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    choice = Choice(arguments.num_show, seed=arguments.seed)
    page = report_page.Page(
        title=measured.served.name,
        figures=measured.caption.figures,
        warnings=measured.caption.warnings,
        tables=report_page.make_class_tables(measured),
        pairs=report_page.make_pairs(measured, out),
        calibration=report_page.draw_calibration(
            report_page.bin_confidences(measured.predictions), out / "calibration.png"
        ),
        curves=report_page.draw_curves(entries, out / "curves.png") if entries else None,
        gallery=report_page.make_gallery(measured, cam, choice, out / "gallery.png"),
    )
    (out / "index.html").write_text(report_page.write_page(page), encoding="utf-8")
    print(f"{measured.caption.figures[0]}\nreport: {out / 'index.html'}")


def measure_model(arguments: argparse.Namespace) -> tuple[Measured, GradCam]:
    """Return the model with its predictions for the pictures.

    Raises:
        InputError: the model fails the check of its accuracy, and --anyway was not given.
    """
    from serve.accuracy_check import find_doubts
    from serve.artifact import load_artifact
    from serve.cam import GradCam
    from serve.gallery import make_caption
    from serve.image_sources import open_images
    from serve.predict import choose_rows, count_hits, predict_rows
    from serve.report_page import Measured

    served = load_artifact(arguments.artifact)
    source = open_images(arguments.data, served.num_classes, served.class_names)
    cam = GradCam(served.model, served.preprocessing.crop)
    predictions = predict_rows(served, source, choose_rows(source.num_images, arguments.limit, arguments.seed))
    doubts = find_doubts(count_hits(predictions), served.num_classes, served.recorded)
    if doubts and not arguments.anyway:
        raise InputError(f"nothing was written: {'; '.join(doubts)}; --anyway writes it with this warning")
    return Measured(served, source, predictions, make_caption(served, source, predictions, doubts, cam)), cam


if __name__ == "__main__":
    run(main, interrupted="nothing was written")
