"""The records on disk, as everything that is told of them takes them: whole files of JSON, each saying what it is."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prep.errors import InputError

CHECKOUT = Path(__file__).resolve().parent.parent.parent
RECORDS = CHECKOUT / "benchmarks" / "records"
PICTURES = CHECKOUT / "docs" / "pictures"  # of them


@dataclass(frozen=True)
class Record:
    """One file of a benchmark's figures."""

    path: Path
    name: str  # within the folder of records: peers.json, h100/rates.json
    content: dict[str, Any]

    @property
    def what(self) -> str:
        """The kind of benchmark."""
        return self.content["what"]

    @property
    def folder(self) -> str:
        """The folder that it lies in, "" for that of all records."""
        return self.name.rpartition("/")[0]


Records = dict[str, Record]  # by name, in order


def read_records(folder: Path) -> Records:
    """All records of a folder and of those below.

    Raises:
        InputError: there are none, or a file is none.
    """
    paths = sorted(folder.rglob("*.json"))
    if not paths:
        raise InputError(f"{folder} holds no records: take one, as in `python benchmarks/peers.py --out FILE`")
    return {record.name: record for record in (read_record(path, folder) for path in paths)}


def read_record(path: Path, folder: Path) -> Record:
    """One file.

    Raises:
        InputError: it is not there or no record.
    """
    try:
        content = json.loads(path.read_bytes())
        if isinstance(content, dict) and isinstance(content.get("what"), str):
            return Record(path, path.relative_to(folder).as_posix(), content)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: give a record of a benchmark") from error
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}): take the record again") from error
    raise InputError(f"{path} does not say what it is a record of: take it again, or move it elsewhere")
