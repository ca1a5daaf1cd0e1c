"""The record that a picture shows: its name and digest are in the PNG's text, so that a stale picture is detected."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from reports.reading import Record, Records

RECORD, DIGEST = "Record", "Record-SHA256"  # keywords of the PNG's text


def describe_origin(record: Record) -> dict[str, str | None]:
    """Return the PNG's text. It has no date and no version, so that the same record gives the same bytes."""
    return {"Software": None, RECORD: record.name, DIGEST: digest(record)}


def digest(record: Record) -> str:
    """Return the SHA-256 of a record's file."""
    return hashlib.sha256(record.path.read_bytes()).hexdigest()


def read_origin(picture: Path) -> tuple[str, str]:
    """Return the name and digest of a picture's record, "" if the picture does not have them."""
    with Image.open(picture) as image:
        return str(image.info.get(RECORD, "")), str(image.info.get(DIGEST, ""))


def find_stale(folder: Path, records: Records) -> Iterator[str]:
    """Yield an error for each picture of a folder if its record was changed or removed."""
    for picture in sorted(folder.glob("*.png")):
        name, found = read_origin(picture)
        if name and (name not in records or digest(records[name]) != found):
            yield f"{picture.name} is out of date, {name} was changed or removed: run `python benchmarks/pictures.py`"
