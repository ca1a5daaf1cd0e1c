"""`python benchmarks/results.py [--check]`: write benchmarks/RESULTS.md and the figures in README.md from the records.

With --check it writes nothing, and reports the first line that differs from the records.
"""

import argparse
import sys
from itertools import zip_longest
from pathlib import Path

from drawing.origin import find_stale
from reports.document import write_document
from reports.quoted import find_unfounded, write_quotes
from reports.reading import CHECKOUT, PICTURES, RECORDS, Records, read_records

from prep.errors import InputError, run

README, RESULTS = CHECKOUT / "README.md", CHECKOUT / "benchmarks" / "RESULTS.md"
UPDATE = "run `python benchmarks/results.py`"


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/results.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--records", type=Path, default=RECORDS, metavar="DIR", help="default: benchmarks/records")
    add("--readme", type=Path, default=README, metavar="FILE", help="default: README.md")
    add("--out", type=Path, default=RESULTS, metavar="FILE", help="default: benchmarks/RESULTS.md")
    add("--pictures", type=Path, default=PICTURES, metavar="DIR", help="pictures to check (default: docs/pictures)")
    add("--check", action="store_true", help="write nothing; exit 1 if a file differs from the records")
    return parser.parse_args()


def build_texts(arguments: argparse.Namespace, records: Records) -> dict[Path, tuple[str, str]]:
    """Return for each file its present text and the text that follows from the records.

    Raises:
        InputError: README is missing, one of its markers is wrong, or a record lacks a field.
    """
    if not arguments.readme.is_file():
        raise InputError(f"{arguments.readme} does not exist: give the path of README.md with --readme")
    readme = arguments.readme.read_text()
    results = arguments.out.read_text() if arguments.out.is_file() else ""
    return {
        arguments.readme: (readme, write_quotes(readme, records)),
        arguments.out: (results, write_document(records)),
    }


def check_up_to_date(texts: dict[Path, tuple[str, str]], pictures: Path, records: Records) -> None:
    """Check that all files and pictures are up to date.

    Raises:
        InputError: the message names the first difference, or the first picture of another record.
    """
    for path, (found, wanted) in texts.items():
        for number, (line, other) in enumerate(zip_longest(found.splitlines(), wanted.splitlines()), 1):
            if line != other:
                difference = f"has {quote_line(line)}, the records give {quote_line(other)}"
                raise InputError(f"{path.name} is out of date: line {number} {difference}: {UPDATE}")
    for complaint in find_stale(pictures, records):
        raise InputError(complaint)


def quote_line(line: str | None) -> str:
    """Return a line for an error message; None is a line after the end of the file."""
    return "nothing" if line is None else f"'{line}'"


def main() -> None:
    """Rewrite the files, or check them."""
    arguments = parse_arguments()
    records = read_records(arguments.records)
    texts = build_texts(arguments, records)
    for complaint in find_unfounded(texts[arguments.readme][1], records):
        raise InputError(complaint)
    if arguments.check:
        check_up_to_date(texts, arguments.pictures, records)
    for path, (found, wanted) in texts.items():
        if found != wanted:
            path.write_text(wanted)
        print(f"{path.name}: {'rewritten' if found != wanted else 'up to date'}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
