"""Which record a picture is of: its name and digest stand in the PNG's text, so that a test sees one that is stale."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from reports.reading import Record, Records

RECORD, DIGEST = "Record", "Record-SHA256"  # keywords of the PNG's text


def describe_origin(record: Record) -> dict[str, str | None]:
    """The PNG's text; no date and no version of anything, so that the same record gives the same bytes."""
    return {"Software": None, RECORD: record.name, DIGEST: digest(record)}


def digest(record: Record) -> str:
    """Of the record's file."""
    return hashlib.sha256(record.path.read_bytes()).hexdigest()


def read_origin(picture: Path) -> tuple[str, str]:
    """The record's name and digest, "" where the picture does not tell."""
    with Image.open(picture) as image:
        return str(image.info.get(RECORD, "")), str(image.info.get(DIGEST, ""))


def find_stale(folder: Path, records: Records) -> Iterator[str]:
    """Complaints about pictures of a folder that are not of the records as they are."""
    for picture in sorted(folder.glob("*.png")):
        name, found = read_origin(picture)
        if name and (name not in records or digest(records[name]) != found):
            yield f"{picture.name} is not of {name} as it is: run `python benchmarks/pictures.py`"
