"""`python serve/report.py ARTIFACT --data DIR --out report/`: a report on one page about a model.

DIR is as for serve/gradcam_viz.py. FOLDER/index.html needs no other file and loads nothing; FOLDER/predictions.csv has
one line per image. The folder appears, or replaces an earlier report, only when all of it is written. Nothing is
written for a model that is not better than chance, or not as good as its artifact records.
"""

# ruff: noqa: PLC0415 - torch takes seconds to import, so `main` does it after the flags were parsed

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from prep.curves import read_metrics
from prep.errors import InputError, explain_interruption, positive_count, run, seed_number
from prep.files import write_folder, write_whole
from serve.class_names import add_match_flag
from serve.device import add_device_flag, choose_device

if TYPE_CHECKING:
    from serve.cam import GradCam
    from serve.report_page import Measured, Page

PAGE, PREDICTIONS = "index.html", "predictions.csv"


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="serve/report.py", description=__doc__)
    add = parser.add_argument
    add(
        "artifact",
        type=Path,
        metavar="ARTIFACT",
        help="exported artifact, weights of any trainer, or hf-hub:OWNER/NAME",
    )
    add("--data", type=Path, required=True, metavar="DIR", help="labelled images")
    add("--out", type=Path, default=Path("report"), metavar="FOLDER", help="new, empty or an earlier report")
    add("--run", type=Path, metavar="RUN", help="folder of the training run, for its curves")
    add("--limit", type=positive_count, metavar="N", help="measure on N images drawn at random (default: all)")
    add("--num_show", type=positive_count, default=20, help="rows of the gallery (default: 20)")
    add_match_flag(parser)
    add("--seed", type=seed_number, default=0, help="for everything that is drawn at random (default: 0)")
    add("--anyway", action="store_true", help="report a model that fails the check, with the warning on the page")
    add("--workers", type=positive_count, metavar="N", help="threads that decode images (default: one per CPU)")
    add_device_flag(parser)
    return parser.parse_args()


def main() -> None:
    """Measure the model; write the report, or refuse to."""
    arguments = parse_arguments()
    from serve.contents import write_contents
    from serve.outputs import check_folder, describe_state

    # Find what cannot be written or read before the slow part.
    out: Path = arguments.out.absolute()
    check_folder(out, PAGE)
    entries = read_metrics(arguments.run) if arguments.run else []

    # Measure, and make the whole page in memory.
    measured, cam = measure_model(arguments)
    from serve.report_page import write_page, write_predictions

    content = write_page(make_page(arguments, measured, cam, entries)).encode(errors="backslashreplace")

    # Write the folder. It is checked again, because it may have got other files since.
    with explain_interruption(lambda: describe_state(out / PAGE, content)), write_folder(out) as partial:
        write_whole(partial / PAGE, content)
        write_whole(partial / PREDICTIONS, write_predictions(measured))
        write_contents(partial)
        replaces = check_folder(out, PAGE)
    print_result(measured)
    earlier = " (the earlier one was replaced)" if replaces else ""
    print(f"report: {arguments.out / PAGE}, {len(content) / 1000:,.0f} KB{earlier}")


def measure_model(arguments: argparse.Namespace) -> tuple[Measured, GradCam]:
    """Return the model with its predictions for the pictures.

    Raises:
        InputError: the model fails the check of its accuracy, and --anyway was not given.
    """
    device = choose_device(arguments.device)
    from serve.accuracy_check import find_source_doubts
    from serve.cam import GradCam
    from serve.class_matching import Sample
    from serve.image_sources import open_matched
    from serve.loading import load_served
    from serve.predict import choose_rows, count_hits, predict_rows
    from serve.report_page import Measured

    # Load the model and open the pictures; a model without maps is refused before it runs.
    served = load_served(arguments.artifact)
    served.model.to(device)
    sample = Sample(arguments.seed, arguments.limit, arguments.workers, show_progress=True)
    source = open_matched(served, arguments.data, arguments.match, sample)
    cam = GradCam(served.model, served.preprocessing.crop)

    # Measure the accuracy, and refuse to report a model that fails the check.
    rows = choose_rows(source.num_images, arguments.limit, arguments.seed)
    predictions = predict_rows(served, source, rows, workers=arguments.workers, show_progress=True)
    doubts = find_source_doubts(count_hits(predictions), served, source)
    if doubts and not arguments.anyway:
        raise InputError(f"nothing was written: {'; '.join(doubts)}; --anyway writes it with this warning")
    return Measured(served, source, predictions, doubts), cam


def make_page(arguments: argparse.Namespace, measured: Measured, cam: GradCam, entries: list[dict]) -> Page:
    """Return the page with all of its parts; the pictures that it shows are read again."""
    from serve import report_page
    from serve.report_charts import draw_curves
    from serve.report_facts import Setting, list_facts
    from serve.report_pictures import describe_maps, make_gallery, make_pairs
    from serve.selection import Choice

    served, source, predictions = measured.served, measured.source, measured.predictions
    setting = Setting(
        str(arguments.artifact), arguments.data, str(choose_device(arguments.device)), arguments.seed, len(predictions)
    )
    return report_page.Page(
        title=served.name,
        summary=report_page.describe_result(measured),
        headlines=report_page.make_headlines(measured),
        warnings=measured.doubts,
        notes=(*served.notes, *source.notes),
        facts=list_facts(served, source, setting),
        classes=report_page.make_class_rows(measured),
        has_top5=measured.num_classes > report_page.CHOICES,
        matrix=report_page.make_confusion_matrix(measured),
        pairs=make_pairs(served, source, predictions),
        calibration=report_page.make_calibration(measured),
        curves=draw_curves(entries),
        gallery=make_gallery(served, source, cam, predictions, Choice(arguments.num_show, seed=arguments.seed)),
        maps=describe_maps(cam),
    )


def print_result(measured: Measured) -> None:
    """Print the accuracy, what was assumed, and the warnings."""
    from prep.errors import warn
    from serve.accuracy_check import describe_accuracy
    from serve.predict import count_hits

    source = measured.source
    print(f"measured on {source.name}: top-1 {describe_accuracy(count_hits(measured.predictions))}")
    for note in (*measured.served.notes, *source.notes):
        print(note)
    for doubt in measured.doubts:
        warn(doubt)


if __name__ == "__main__":
    run(main, interrupted="nothing was written")
