"""`python benchmarks/pictures.py [RECORD ...] [--out DIR]`: draw records, as PNG files and in the terminal.

feeding: one bar per peer; throughput: the time of a batch by thread; sweeps: images/s by threads and by stored size;
cost: dollars of a recipe by machine.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from drawing.shown import SHOWN, Bar, Picture, Spend, Stack, name_pictures
from reports.reading import PICTURES, RECORDS, Record, read_record, read_records

from prep.errors import InputError, run

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/pictures.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("records", type=Path, nargs="*", metavar="RECORD", help="default: all of benchmarks/records")
    parser.add_argument("--out", type=Path, default=PICTURES, metavar="DIR", help="default: docs/pictures")
    return parser.parse_args()


def choose_records(paths: list[Path]) -> list[Record]:
    """Return the records at the given paths; without paths, all committed records that have pictures.

    Raises:
        InputError: a path is not a record, or its kind has no pictures.
    """
    if not paths:
        return [record for record in read_records(RECORDS).values() if record.what in SHOWN]
    # A committed record keeps its name within the records' folder, which is in the picture's file name.
    records = [
        read_record(path.resolve(), RECORDS)
        if path.resolve().is_relative_to(RECORDS)
        else read_record(path, path.parent)
        for path in paths
    ]
    for record in records:
        if record.what not in SHOWN:
            raise InputError(
                f"{record.path} is a record of {record.what}, which has no pictures: choose one of {', '.join(SHOWN)}"
            )
    return records


def draw_record(record: Record, folder: Path, console: "Console") -> list[Path]:
    """Write and print a record's pictures; return the files' paths.

    Raises:
        InputError: the record lacks a field of its kind.
    """
    from drawing.style import save  # noqa: PLC0415  (matplotlib)
    from drawing.terminal import print_picture  # noqa: PLC0415  (rich)

    paths = []
    try:
        for name, picture in name_pictures(record):
            paths.append(folder / name)
            save(draw_marks(picture), paths[-1], record)
            print_picture(picture, console)
    except (KeyError, TypeError) as error:
        raise record.make_error(error) from error
    return paths


def draw_marks(picture: Picture) -> "Figure":
    """Return the figure of a picture: bars, stacked bars, dollars or a curve."""
    from drawing.bars import draw_bars, draw_stacks  # noqa: PLC0415  (matplotlib)
    from drawing.curves import draw_curve  # noqa: PLC0415
    from drawing.spends import draw_spends  # noqa: PLC0415

    kind = type(picture.marks[0])
    if kind is Spend:
        return draw_spends(picture)
    return draw_bars(picture) if kind is Bar else draw_stacks(picture) if kind is Stack else draw_curve(picture)


def main() -> None:
    """Draw and print the records; print the paths of the files to standard error."""
    from rich.console import Console  # noqa: PLC0415

    arguments = parse_arguments()
    records = choose_records(arguments.records)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for record in records:
        for path in draw_record(record, arguments.out, Console()):
            print(os.path.relpath(path), file=sys.stderr)


if __name__ == "__main__":
    run(main)
