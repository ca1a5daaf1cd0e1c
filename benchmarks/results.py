"""`python benchmarks/results.py [--check]`: benchmarks/RESULTS.md and README.md's figures, from the records alone.

Writes both anew; with --check it writes nothing, and names the first line that is not as the records have it.
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
AGAIN = "run `python benchmarks/results.py`"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/results.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--records", type=Path, default=RECORDS, metavar="DIR", help="default: benchmarks/records")
    add("--readme", type=Path, default=README, metavar="FILE", help="default: README.md")
    add("--out", type=Path, default=RESULTS, metavar="FILE", help="default: benchmarks/RESULTS.md")
    add("--pictures", type=Path, default=PICTURES, metavar="DIR", help="to check (default: docs/pictures)")
    add("--check", action="store_true", help="write nothing; exit 1 if a file is not as the records have it")
    return parser.parse_args()


def write_all(arguments: argparse.Namespace, records: Records) -> dict[Path, tuple[str, str]]:
    """Each file's text as it is, and as the records have it.

    Raises:
        InputError: README is not there or its markers are wrong; a record is.
    """
    if not arguments.readme.is_file():
        raise InputError(f"{arguments.readme} does not exist: give --readme")
    readme = arguments.readme.read_text()
    results = arguments.out.read_text() if arguments.out.is_file() else ""
    return {
        arguments.readme: (readme, write_quotes(readme, records)),
        arguments.out: (results, write_document(records)),
    }


def check(texts: dict[Path, tuple[str, str]], pictures: Path, records: Records) -> None:
    """Raises InputError that names the first difference, or the first picture that is not of its record."""
    for path, (found, wanted) in texts.items():
        for number, (line, other) in enumerate(zip_longest(found.splitlines(), wanted.splitlines()), 1):
            if line != other:
                raise InputError(f"{path.name}, line {number}: {quote(line)}, the records have {quote(other)}: {AGAIN}")
    for complaint in find_stale(pictures, records):
        raise InputError(complaint)


def quote(line: str | None) -> str:
    """A line in an error."""
    return "nothing" if line is None else f"'{line}'"


def main() -> None:
    """Write, or compare."""
    arguments = parse_arguments()
    records = read_records(arguments.records)
    texts = write_all(arguments, records)
    for complaint in find_unfounded(texts[arguments.readme][1], records):
        raise InputError(complaint)
    if arguments.check:
        check(texts, arguments.pictures, records)
    for path, (found, wanted) in texts.items():
        if found != wanted:
            path.write_text(wanted)
        print(f"{path.name}: {'rewritten' if found != wanted else 'as the records have it'}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
