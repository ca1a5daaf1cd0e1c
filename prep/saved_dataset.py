"""Datasets that `save_to_disk` of Hugging Face `datasets` wrote: Arrow streams, mapped and read by range.

A stream's batches are read where they lie in the file: no image is copied, and none is held but the one in use.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from prep.dataset import InputError, Origin
from prep.source import Item, Reading
from prep.tables import ROWS_PER_READ, Spans, TableFile, TableSource, find_columns, label_range, read_items

DICT, STATE, INFO = "dataset_dict.json", "state.json", "dataset_info.json"
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"  # Arrow's columnar format, "IPC streaming format"


@dataclass(frozen=True)
class ArrowRows:
    """A range of a split's rows: (file, first row, end row) of each Arrow stream it touches."""

    spans: Spans
    image_column: str
    label_column: str

    def __iter__(self) -> Iterator[Item]:
        for path, start, stop in self.spans:
            with _opened(Path(path)) as stream:
                yield from self._read(stream, start, stop)

    def _read(self, stream: pa.RecordBatchReader, start: int, stop: int) -> Iterator[Item]:
        row = 0
        for batch in stream:
            if row >= stop:
                return
            for first in range(max(0, start - row), min(batch.num_rows, stop - row), ROWS_PER_READ):
                part = batch.slice(first, min(ROWS_PER_READ, stop - row - first))
                yield from read_items(part, self.image_column, self.label_column)
            row += batch.num_rows


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder, of one split or of several."""
    return (folder / DICT).is_file() or (folder / STATE).is_file()


def open_saved_dataset(folder: Path, wanted: Reading) -> TableSource:
    """Open what `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote.

    Raises:
        InputError: a file is missing, damaged or cut off, or it is no labelled image dataset.
    """
    paths = {split: _data_files(split_folder) for split, split_folder in _splits(folder).items()}
    schemas = {str(path): _schema(path) for files in paths.values() for path in files}
    if not schemas:
        raise InputError(f"{folder} holds a saved dataset without data files: save it again")
    columns = find_columns(str(folder), schemas, wanted)
    files = {split: tuple(_describe(path, columns.label) for path in files) for split, files in paths.items()}
    return TableSource(_origin(folder, paths), columns, files, ArrowRows)


def _splits(folder: Path) -> dict[str, Path]:
    """Split -> its folder; a lone dataset is the split that it was, or train."""
    if not (folder / DICT).is_file():
        split = _read_json(folder / STATE).get("_split")
        return {split if isinstance(split, str) and re.fullmatch(r"\w+", split) else "train": folder}
    splits = _read_json(folder / DICT).get("splits", [])
    for split in splits:
        if not re.fullmatch(r"\w+(\.\w+)*", split):  # as `datasets` has it
            raise InputError(f"{folder / DICT} names a split {split!r}: rename it in letters and digits")
    return {split: folder / split for split in splits}


def _data_files(folder: Path) -> list[Path]:
    state = _read_json(folder / STATE)
    if state.get("_indices_data_files"):  # up to datasets 2.0
        raise InputError(f"{folder} keeps its rows' order in a file beside them: load it and save it again")
    return [folder / file["filename"] for file in state.get("_data_files", [])]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: copy or save the dataset again") from error
    except (ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read ({error}): copy or save the dataset again") from error


@contextmanager
def _opened(path: Path) -> Iterator[pa.RecordBatchReader]:
    """A stream to read batch by batch. A view of a mapped file outlives its closing: it holds on to the mapping."""
    try:
        with pa.memory_map(str(path)) as mapped, pa.ipc.open_stream(mapped) as stream:
            yield stream
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: copy or save the dataset again") from error
    except (pa.ArrowInvalid, OSError) as error:
        cause = " ".join(str(error).split())[:300]
        raise InputError(f"{path} is no whole Arrow stream ({cause}): copy or save the dataset again") from error


def _schema(path: Path) -> pa.Schema:
    with _opened(path) as stream:
        return stream.schema


def _describe(path: Path, label_column: str) -> TableFile:
    """Row count and label range of a stream, read in full but for the images."""
    with _opened(path) as stream:
        index = stream.schema.get_field_index(label_column)
        labels = pa.chunked_array([batch.column(index) for batch in stream], stream.schema.field(index).type)
        _check_end(path)
        return TableFile(str(path), path.stat().st_size, len(labels), *label_range(str(path), labels))


def _check_end(path: Path) -> None:
    """A stream cut off between two batches reads without an error: it lacks its end."""
    with path.open("rb") as file:
        file.seek(-len(END_OF_STREAM), 2)
        if file.read() != END_OF_STREAM:
            raise pa.ArrowInvalid("its end is missing")


def _origin(folder: Path, paths: dict[str, list[Path]]) -> Origin:
    """Name and revision: a digest of file names, sizes and of the JSON files, which hold a fingerprint of the rows."""
    digest = hashlib.sha256()
    for path in sorted(path for files in paths.values() for path in files):
        digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode(errors="surrogateescape"))
    for split_folder in sorted({folder, *(files[0].parent for files in paths.values() if files)}):
        for path in (split_folder / DICT, split_folder / STATE, split_folder / INFO):
            digest.update(path.read_bytes() if path.is_file() else b"\0")
    return Origin(folder.resolve().name, digest.hexdigest())
