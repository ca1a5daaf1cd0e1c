"""`python serve/classify.py --artifact DIR PICTURES... --out FOLDER`: classify many pictures.

PICTURES are files, folders (with all that is below them) or patterns in quotes. FOLDER/predictions.csv gets one line
per picture, in the order given: the five most probable classes, or why the file could not be read.
FOLDER/contact-sheet.html and contact-sheet.png show the pictures with their most probable class. An interrupted run
writes nothing.
"""

# ruff: noqa: PLC0415 - torch takes seconds to import, so `main` does it after the flags were parsed

from __future__ import annotations

import argparse
import csv
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prep.errors import InputError, list_some, positive_count, run
from serve.device import add_device_flag, choose_device

if TYPE_CHECKING:
    from serve.artifact import Served
    from serve.classify_files import Answer
    from serve.contact_sheet import ContactSheets

PREDICTIONS = "predictions.csv"
OWN_FILES = re.compile(r"predictions\.csv|contact-sheet(-\d+)?\.(html|png)|contents\.json|\.DS_Store")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet runs a cell that begins with one of these
MOST_WORKERS = 8  # by default


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="serve/classify.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("pictures", nargs="+", metavar="PICTURES", help="files, folders, or patterns in quotes")
    add(
        "--artifact",
        type=Path,
        required=True,
        metavar="DIR",
        help="exported artifact, weights of any trainer, or hf-hub:OWNER/NAME",
    )
    add("--out", type=Path, required=True, metavar="FOLDER", help="folder to write: new, empty, or of an earlier run")
    add("--no_sheets", action="store_true", help="write predictions.csv alone")
    add(
        "--workers",
        type=positive_count,
        metavar="N",
        help=f"threads that decode (default: the CPUs of this process, at most {MOST_WORKERS})",
    )
    add_device_flag(parser)
    return parser.parse_args()


def main() -> None:
    """Classify the pictures; write the folder when all are done."""
    arguments = parse_arguments()
    from serve.picture_files import describe_left_out, expand_paths

    # Find the pictures and check the folder to write before the model is loaded.
    out: Path = arguments.out
    check_out(out)
    listing = expand_paths(arguments.pictures, skip=out)
    device = choose_device(arguments.device)

    from prep.files import write_folder
    from serve.classify_files import classify_files
    from serve.contents import write_contents
    from serve.loading import load_served
    from serve.predict import count_cpus

    served = load_served(arguments.artifact)
    served.model.to(device)
    notes = (*served.notes, *describe_left_out(listing.left_out))

    # Predict and write; the folder appears under its name when it is complete.
    num_workers = arguments.workers or min(MOST_WORKERS, count_cpus())
    with warnings.catch_warnings(), write_folder(out.resolve()) as folder:
        warnings.simplefilter("ignore")  # Pillow's on damaged tags; the filter also holds for the threads
        answers = _show_progress(classify_files(served, listing.pictures, num_workers), len(listing.pictures))
        sheets = None if arguments.no_sheets else open_sheets(folder, served, notes, len(listing.pictures))
        errors = write_answers(folder, served, answers, sheets)
        if len(errors) == len(listing.pictures):
            raise InputError(
                f"none of {len(errors):,} pictures can be read, and nothing was written: {': '.join(errors[0])}"
            )
        write_contents(folder)
        check_out(out)  # again, because it may have got other files since

    for note in notes:
        print(note)
    if errors:
        paths = list_some([path for path, _ in errors])
        files = f"{len(errors):,} file{'s' * (len(errors) > 1)}"
        print(f"warning: {files} could not be read (column error): {paths}", file=sys.stderr)
    print(f"{len(listing.pictures):,} pictures: {out / PREDICTIONS}")


def check_out(out: Path) -> None:
    """Check that a folder can be written: it is new, empty, or of an earlier run and unchanged since.

    Raises:
        InputError: it is something else, holds other files, or nothing can be written there.
    """
    from serve.outputs import check_folder

    names = [path.name for path in out.iterdir()] if out.is_dir() else []
    others = sorted(name for name in names if not OWN_FILES.fullmatch(name))
    if others:
        raise InputError(
            f"--out must be new, empty, or of an earlier run, and {out} holds other files ({list_some(others)}): "
            "choose another folder"
        )
    check_folder(out, PREDICTIONS)


def open_sheets(folder: Path, served: Served, notes: Sequence[str], num_pictures: int) -> ContactSheets:
    """Return the contact sheets of a run, with nothing on them."""
    from serve.contact_sheet import ContactSheets

    return ContactSheets(folder, f"{num_pictures:,} pictures, classified by {served.name}", notes, num_pictures)


def _show_progress(answers: Iterator[Answer], num_pictures: int) -> Iterator[Answer]:
    from prep.progress import Meter

    with Meter("classify", num_pictures) as meter:
        for each in answers:
            yield each
            meter.add(1, each.size_bytes)


def write_answers(
    folder: Path, served: Served, answers: Iterator[Answer], sheets: ContactSheets | None
) -> list[tuple[str, str]]:
    """Write predictions.csv and the sheets; return (path, reason) of each file that could not be read."""
    from serve.classify_files import NUM_TOP, name_classes

    names = name_classes(served)
    errors: list[tuple[str, str]] = []
    numbers = range(1, NUM_TOP + 1)
    with (folder / PREDICTIONS).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", *(f"{kind}_{n}" for n in numbers for kind in ("class", "probability")), "error"])
        for each in answers:
            # A model with fewer than five classes leaves the other cells empty.
            path = to_text(each.path)
            cells = [cell for output, share in each.top for cell in (guard_cell(names[output]), f"{share:.6f}")]
            table.writerow([path, *cells, *[""] * (2 * NUM_TOP - len(cells)), guard_cell(each.error)])
            if each.error:
                errors.append((path, each.error))
            if sheets is not None:
                sheets.add(each, path, names[each.top[0][0]] if each.top else "")
    if sheets is not None:
        sheets.close()
    return errors


def to_text(path: Path) -> str:
    """Return a path as text that no spreadsheet takes for a formula: `=1.jpg` becomes `./=1.jpg`, the same file.

    Bytes that are not UTF-8 are written with backslashes.
    """
    text = str(path).encode(errors="backslashreplace").decode()
    return f"./{text}" if text.startswith(FORMULA) else text


def guard_cell(name: str) -> str:
    """Return a class name that no spreadsheet takes for a formula: an apostrophe is put before one."""
    return f"'{name}" if name.startswith(FORMULA) else name


if __name__ == "__main__":
    run(main, interrupted="nothing was written")
