"""Write benchmarks/RESULTS.md, README.md's figures and docs/pictures from the records, or print some records.

A picture is drawn again if its record changed or the picture is missing. With --check nothing is written, and the first
line that differs from the records, or a stale picture, is reported. With RECORDs it prints their tables; with
--pictures DIR it also draws them, in any case.
"""

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from options import parse_options
from reports.kinds import make_tables
from reports.records import CHECKOUT, PICTURES, RECORDS, Record, Records, read_record, read_records
from tables import print_tables
from tyro.conf import Positional

from prep.errors import InputError, run

UPDATE = "run `python benchmarks/report.py`"


@dataclass(frozen=True)
class Options:
    """Records to print, or the files to write."""

    record: Positional[tuple[Path, ...]] = ()
    """records to print, instead of writing the files"""
    check: bool = False
    """write nothing; exit 1 if a file differs from the records"""
    pictures: Path | None = None
    """folder of the pictures; unset: docs/pictures (of RECORDs: none are drawn)"""
    records: Path = RECORDS
    """folder of all records"""
    readme: Path = CHECKOUT / "README.md"
    """file with marked figures"""
    out: Path = CHECKOUT / "benchmarks" / "RESULTS.md"
    """file with all tables"""


def print_records(records: Sequence[Record], pictures: Path | None) -> None:
    """Print the tables of records, and draw their pictures if a folder for them is given.

    Raises:
        InputError: a record lacks a field of its kind, or its kind has no pictures.
    """
    for record in records:
        with record.explain_errors():
            print_tables(make_tables(record.content))
    if pictures:
        from reports.plots import DRAWN  # noqa: PLC0415  (matplotlib)

        for record in records:
            if record.what not in DRAWN:
                kinds = ", ".join(DRAWN)
                raise InputError(
                    f"{record.path} is a record of {record.what}, which has no pictures: choose one of {kinds}"
                )
        draw_pictures(records, pictures)


def draw_pictures(records: Iterable[Record], folder: Path, only_stale: bool = False) -> None:
    """Write the pictures of records; print their paths to standard error.

    Args:
        only_stale: leave out pictures that were drawn from the record as it is.

    Raises:
        InputError: a record lacks a field of its kind.
    """
    from reports.plots import is_current, list_pictures, save_picture  # noqa: PLC0415  (matplotlib)

    folder.mkdir(parents=True, exist_ok=True)
    for record in records:
        with record.explain_errors():
            for picture in list_pictures(record):
                path = folder / picture.name
                if only_stale and is_current(path, record):
                    continue
                save_picture(picture, path, record)
                print(os.path.relpath(path), file=sys.stderr)


def build_texts(options: Options, records: Records) -> dict[Path, tuple[str, str]]:
    """Return for each file its present text and the text that follows from the records.

    Raises:
        InputError: README is missing, one of its markers is wrong, a rate in it is in no record, or a record lacks a
            field.
    """
    from reports.documents import find_unfounded, write_document, write_quotes  # noqa: PLC0415  (matplotlib)

    if not options.readme.is_file():
        raise InputError(f"{options.readme} does not exist: give the path of README.md with --readme")
    readme = options.readme.read_text()
    written = write_quotes(readme, records)
    for complaint in find_unfounded(written, records):
        raise InputError(complaint)
    results = options.out.read_text() if options.out.is_file() else ""
    return {options.readme: (readme, written), options.out: (results, write_document(records))}


def check_up_to_date(texts: dict[Path, tuple[str, str]], pictures: Path, records: Records) -> None:
    """Check that all files and pictures are up to date.

    Raises:
        InputError: the message names the first difference, or the first picture that is missing or of another record.
    """
    from reports.plots import find_stale  # noqa: PLC0415  (matplotlib)

    for path, (found, wanted) in texts.items():
        for number, (line, other) in enumerate(zip_longest(found.splitlines(), wanted.splitlines()), 1):
            if line != other:
                has, given = ("nothing" if each is None else f"'{each}'" for each in (line, other))
                raise InputError(
                    f"{path.name} is out of date: line {number} has {has}, the records give {given}: {UPDATE}"
                )
    for complaint in find_stale(pictures, records):
        raise InputError(f"{complaint}: {UPDATE}")


def main() -> None:
    """Print records, or write the files, or check them."""
    options = parse_options(Options, "benchmarks/report.py", __doc__)
    if options.record:
        print_records([read_record(path, options.records) for path in options.record], options.pictures)
        return
    records, pictures = read_records(options.records), options.pictures or PICTURES
    texts = build_texts(options, records)
    if options.check:
        check_up_to_date(texts, pictures, records)
    else:
        draw_pictures(records.values(), pictures, only_stale=True)
    for path, (found, wanted) in texts.items():
        if found != wanted:
            path.write_text(wanted)
        print(f"{path.name}: {'rewritten' if found != wanted else 'up to date'}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
