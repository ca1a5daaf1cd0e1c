"""Read records from disk: files of JSON, each with its kind in the field "what"."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prep.errors import InputError

CHECKOUT = Path(__file__).resolve().parent.parent.parent
RECORDS = CHECKOUT / "benchmarks" / "records"
PICTURES = CHECKOUT / "docs" / "pictures"  # of the records


@dataclass(frozen=True)
class Record:
    """One file of a benchmark's figures."""

    path: Path
    name: str  # relative to the folder of records: peers.json, h100/rates.json
    content: dict[str, Any]

    @property
    def what(self) -> str:
        """The kind of benchmark."""
        return self.content["what"]

    @property
    def folder(self) -> str:
        """The record's folder, relative to that of all records: "" or "h100"."""
        return self.name.rpartition("/")[0]

    def make_error(self, error: Exception) -> InputError:
        """Return the error for a record that lacks a field of its kind, as after a change of the benchmark."""
        what = f"{type(error).__name__} {error}"
        return InputError(
            f"{self.path} was written by another version of the benchmark of {self.what} ({what}): run it again"
        )


Records = dict[str, Record]  # by name, in order


def read_records(folder: Path) -> Records:
    """Read all records of a folder and its subfolders.

    Raises:
        InputError: there are none, or a file is not a record.
    """
    paths = sorted(folder.rglob("*.json"))
    if not paths:
        raise InputError(f"{folder} holds no records: write one, for example with `benchmarks/peers.py --out FILE`")
    return {record.name: record for record in (read_record(path, folder) for path in paths)}


def read_record(path: Path, folder: Path) -> Record:
    """Read one record; its name is relative to `folder`.

    Raises:
        InputError: the file does not exist or is not a record.
    """
    try:
        content = json.loads(path.read_bytes())
        if isinstance(content, dict) and isinstance(content.get("what"), str):
            return Record(path, path.relative_to(folder).as_posix(), content)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: give a record of a benchmark") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}): run the benchmark again") from error
    raise InputError(f'{path} has no field "what", so it is not a record: run the benchmark again, or move it away')
