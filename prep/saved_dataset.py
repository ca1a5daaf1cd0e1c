"""Datasets that `save_to_disk` of Hugging Face `datasets` wrote: Arrow streams, mapped and read by range.

A stream's batches are read in place: no image is copied, and only the batch in use is in memory.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from prep.card import Info, info_from_json
from prep.columns import Columns, Table, make_table
from prep.dataset import Origin
from prep.errors import InputError
from prep.file_kinds import is_lfs_pointer
from prep.listing import PART, absent_splits, check_rows
from prep.source import Item, Reading
from prep.split_files import SplitFiles
from prep.tables import (
    ROWS_PER_READ,
    Spans,
    TableFile,
    TableSource,
    assemble_source,
    find_label_range,
    read_items,
)

DICT, STATE, INFO = "dataset_dict.json", "state.json", "dataset_info.json"
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"  # Arrow's columnar format, "IPC streaming format"
AGAIN = "copy or save the dataset again"


@dataclass(frozen=True)
class ArrowRows:
    """A range of a split's rows: (file, first row, end row) of each Arrow stream that it touches."""

    spans: Spans
    image_column: str
    label_column: str

    def __iter__(self) -> Iterator[Item]:
        for path, start, stop in self.spans:
            with _open_stream(Path(path)) as stream:
                yield from self._read_rows(stream, start, stop)

    def _read_rows(self, stream: pa.RecordBatchReader, start: int, stop: int) -> Iterator[Item]:
        row = 0
        for batch in stream:
            if row >= stop:
                return
            for first in range(max(0, start - row), min(batch.num_rows, stop - row), ROWS_PER_READ):
                part = batch.slice(first, min(ROWS_PER_READ, stop - row - first))
                yield from read_items(part, self.image_column, self.label_column)
            row += batch.num_rows


def is_saved_dataset(folder: Path) -> bool:
    """Check whether `save_to_disk` wrote this folder: one split, a DatasetDict, or one folder per split."""
    return (folder / DICT).is_file() or (folder / STATE).is_file() or bool(_saved_folders(folder))


def open_saved_dataset(folder: Path, wanted: Reading) -> TableSource:
    """Open a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote.

    Raises:
        InputError: a file is missing, damaged or truncated, it is not a labelled image dataset, or it could be read
            in several ways.
    """
    if wanted.config is not None:
        raise InputError(f"{folder} is a saved dataset, which has one configuration: leave out --config")

    # Find each split's files; a file that state.json names may be absent.
    folders, missing, passed_over = _find_splits(folder)
    files: dict[str, tuple[str, ...]] = {}
    lacking: dict[str, tuple[str, ...]] = {}
    for split, split_folder in folders.items():
        paths = _list_data_files(split_folder)
        files[split] = tuple(str(path.relative_to(folder)) for path in paths if path.exists())
        absent = [path.name for path in paths if not path.exists()]
        lacking[split] = tuple(f"the file {name}" for name in absent if not PART.fullmatch(name))
        if absent and not files[split]:
            missing.append(f"all files of the split {split}")
    infos = {split: _read_info(split_folder) for split, split_folder in folders.items()}
    files = {split: paths for split, paths in files.items() if paths}
    if not files:
        raise InputError(f"{folder} holds a saved dataset without data files: save it again")
    saved = SavedFiles(folder, files, infos, (folder / DICT).is_file())

    # After `select` or `filter`, dataset_info.json keeps the earlier count: a difference does not prove a loss.
    notes = tuple(
        f"the split {split}: {line}, which a selection explains"
        for split, paths in files.items()
        for line in check_rows(split, sum(map(saved.num_rows, paths)), infos[split].num_rows, INFO)
    )
    found = SplitFiles(files, Info(), None, tuple(passed_over), tuple(missing), lacking, notes)
    return assemble_source(saved, found, wanted)


@dataclass(frozen=True)
class SavedFiles:
    """The Arrow streams of a saved dataset: a `prep.tables.TableFormat`; paths are below `folder`."""

    folder: Path
    files: Mapping[str, tuple[str, ...]]
    infos: Mapping[str, Info]
    is_dict: bool  # saved as a DatasetDict
    _rows: dict[str, int] = field(default_factory=dict)  # path -> number of rows, for files counted so far
    reader = ArrowRows

    @property
    def source(self) -> str:
        return str(self.folder)

    def url(self, path: str) -> str:
        return str(self.folder / path)

    @cached_property
    def _split_of(self) -> dict[str, str]:
        return {path: split for split, paths in self.files.items() for path in paths}

    def num_rows(self, path: str) -> int:
        if path not in self._rows:
            with _open_stream(self.folder / path) as stream:
                self._rows[path] = sum(batch.num_rows for batch in stream)
                _check_end(self.folder / path)
        return self._rows[path]

    def table(self, path: str) -> Table:
        """Return the columns of a file."""
        with _open_stream(self.folder / path) as stream:
            schema = stream.schema
        split = self._split_of[path]
        load = f"d.load_from_disk({self.source!r})"
        load = load if self.is_dict else f"d.DatasetDict({split}={load})"
        return make_table(self.url(path), schema, self.infos[split].features, load)

    def describe_file(self, path: str, columns: Columns) -> TableFile:
        """Return the row count and the label range of a stream; reads all of it except the images."""
        # Collect the labels, and count the rows with the bytes of an image.
        with _open_stream(self.folder / path) as stream:
            index = stream.schema.get_field_index(columns.label)
            image = stream.schema.get_field_index(columns.image)
            labels, num_images = [], 0
            for batch in stream:
                labels.append(batch.column(index))
                num_images += batch.num_rows - _count_nulls(batch.column(image))
            found = pa.chunked_array(labels, stream.schema.field(index).type)
        if len(found) and not num_images:
            change = self.table(path).advise(f".cast_column({columns.image!r}, d.Image())")
            raise InputError(
                f"{self.url(path)} holds the paths of its images but not their bytes (column {columns.image}): "
                f"embed them with {change}"
            )
        size_bytes = (self.folder / path).stat().st_size
        label_range = find_label_range(self.table(path), columns.label, found)
        return TableFile(self.url(path), size_bytes, len(found), *label_range)

    def origin(self, columns: Columns) -> Origin:
        """Return name and revision: a digest of file names, sizes and the JSON files, which fingerprint the rows."""
        digest = hashlib.sha256()
        paths = {split: [self.folder / path for path in files] for split, files in self.files.items()}
        for path in sorted(path for files in paths.values() for path in files):
            digest.update(f"{path.relative_to(self.folder)}\0{path.stat().st_size}\0".encode(errors="surrogateescape"))
        for split_folder in sorted({self.folder, *(files[0].parent for files in paths.values() if files)}):
            for path in (split_folder / DICT, split_folder / STATE, split_folder / INFO):
                digest.update(path.read_bytes() if path.is_file() else b"\0")
        return Origin(self.folder.resolve().name, digest.hexdigest())


def _saved_folders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder that are a saved split each."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".") and (path / STATE).is_file())


def _find_splits(folder: Path) -> tuple[dict[str, Path], list[str], list[str]]:
    """Return {split: its folder}, lines on splits that are named but absent, and lines on folders passed over.

    A single saved dataset is the split that its state.json names, or train.
    """
    # A DatasetDict names its splits.
    if (folder / DICT).is_file():
        splits = _read_json(folder / DICT).get("splits", [])
        for split in splits:
            if not isinstance(split, str) or not re.fullmatch(r"\w+(\.\w+)*", split):  # as `datasets` has it
                raise InputError(
                    f"{folder / DICT} has a split named {split!r}: rename it, with letters and digits only"
                )
        present = {split: folder / split for split in splits if (folder / split).is_dir()}
        others = [f"folder {name}, not named in {DICT}" for name in _saved_folders(folder) if name not in splits]
        if splits and not present:
            raise InputError(f"{folder / splits[0]} is missing: {AGAIN}")
        return present, absent_splits(present, splits, DICT), others

    # One dataset, or one folder per split.
    if (folder / STATE).is_file():
        split = _read_json(folder / STATE).get("_split")
        name = split if isinstance(split, str) and re.fullmatch(r"\w+", split) else "train"
        return {name: folder}, [], []
    return {name: folder / name for name in _saved_folders(folder)}, [], []


def _list_data_files(folder: Path) -> list[Path]:
    """Return the paths of the Arrow streams that a split's state.json names."""
    state = _read_json(folder / STATE)
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise InputError(f"{folder} has an indices mapping (datasets < 2.1): load it and save it again")
    try:
        return [folder / file["filename"] for file in state.get("_data_files") or []]
    except (TypeError, KeyError) as error:
        raise InputError(f"{folder / STATE} cannot be read ({error!r}): {AGAIN}") from error


def _read_info(folder: Path) -> Info:
    if not (folder / INFO).is_file():
        return Info()
    try:
        return info_from_json(_read_json(folder / INFO))
    except (TypeError, AttributeError) as error:
        raise InputError(f"{folder / INFO} cannot be read ({error!r}): {AGAIN}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: {AGAIN}") from error
    except (ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read ({error}): {AGAIN}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} cannot be read (expected a JSON object): {AGAIN}")
    return found


@contextmanager
def _open_stream(path: Path) -> Iterator[pa.RecordBatchReader]:
    """Open a stream to read it batch by batch; views of the mapped file stay valid after it is closed."""
    try:
        with pa.memory_map(str(path)) as mapped, pa.ipc.open_stream(mapped) as stream:
            yield stream
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: {AGAIN}") from error
    except (pa.ArrowInvalid, OSError) as error:
        with path.open("rb") as file:
            if is_lfs_pointer(file.read(64)):
                raise InputError(f"{path} is a Git LFS pointer, not the file: run `git lfs pull` there") from error
        cause = " ".join(str(error).split())[:300]
        raise InputError(f"{path} is not a complete Arrow stream ({cause}): {AGAIN}") from error


def _count_nulls(images: pa.Array) -> int:
    """Return the number of rows without bytes."""
    if pa.types.is_struct(images.type):
        images = images.flatten()[images.type.get_field_index("bytes")]
    return images.null_count


def _check_end(path: Path) -> None:
    """Check that a stream has its end marker: one that was truncated between two batches reads without an error.

    Raises:
        pa.ArrowInvalid: the end marker is missing.
    """
    with path.open("rb") as file:
        file.seek(-len(END_OF_STREAM), 2)
        if file.read() != END_OF_STREAM:
            raise pa.ArrowInvalid("its end is missing")
