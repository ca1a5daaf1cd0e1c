"""`python benchmarks/pictures.py [RECORD…] [--out DIR]`: records as pictures, in PNG files and in the terminal.

feeding: peers as bars; throughput: where a batch spends its time; sweeps: images/s against threads and stored size.
"""

import argparse
import os
import sys
from pathlib import Path

from drawing.bars import draw_bars, draw_stacks
from drawing.curves import draw_curve
from drawing.shown import SHOWN, Bar, Picture, Stack, name_pictures
from drawing.style import save
from drawing.terminal import print_picture
from matplotlib.figure import Figure
from reports.reading import PICTURES, RECORDS, Record, read_record, read_records
from rich.console import Console

from prep.errors import InputError, run


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/pictures.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("records", type=Path, nargs="*", metavar="RECORD", help="default: all of benchmarks/records")
    parser.add_argument("--out", type=Path, default=PICTURES, metavar="DIR", help="default: docs/pictures")
    return parser.parse_args()


def choose_records(paths: list[Path]) -> list[Record]:
    """Those that were asked for, else all that have pictures.

    Raises:
        InputError: one that was asked for has none, or there is none at all.
    """
    if not paths:
        return [record for record in read_records(RECORDS).values() if record.what in SHOWN]
    records = [read_record(path, RECORDS if path.resolve().is_relative_to(RECORDS) else path.parent) for path in paths]
    for record in records:
        if record.what not in SHOWN:
            raise InputError(f"{record.path} is of {record.what}: there are pictures of {', '.join(SHOWN)}")
    return records


def draw(record: Record, folder: Path, console: Console) -> list[Path]:
    """A record's pictures, in files and printed; the files' paths.

    Raises:
        InputError: the record lacks what its kind has.
    """
    paths = []
    try:
        for name, picture in name_pictures(record):
            paths.append(folder / name)
            save(draw_marks(picture), paths[-1], record)
            print_picture(picture, console)
    except (KeyError, TypeError) as error:
        what = f"{type(error).__name__} {error}"
        raise InputError(f"{record.path} is not as a record of {record.what} is now ({what}): take it again") from error
    return paths


def draw_marks(picture: Picture) -> Figure:
    """The figure for the kind of marks."""
    kind = type(picture.marks[0])
    return draw_bars(picture) if kind is Bar else draw_stacks(picture) if kind is Stack else draw_curve(picture)


def main() -> None:
    """Draw, print, say where."""
    arguments = parse_arguments()
    records = choose_records(arguments.records)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for record in records:
        for path in draw(record, arguments.out, Console()):
            print(os.path.relpath(path), file=sys.stderr)


if __name__ == "__main__":
    run(main)
