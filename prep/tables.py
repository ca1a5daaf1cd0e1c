"""Tables of images and labels: one source for all formats of files that hold them.

`assemble_source` makes a `TableSource` from the files of each split: it agrees on the columns, looks for missing parts,
names the splits, and collects what the manifest records. A fault of one split becomes that split's problem. It is
raised when that split is prepared, so that a test split without labels does not stop the others.

`read_items` turns a batch of rows into images without copying them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from prep.card import README
from prep.columns import Columns, Table, choose_columns
from prep.dataset import Origin
from prep.errors import InputError, list_some
from prep.listing import check_parts, check_rows
from prep.source import Item, Reading, explain_oversize
from prep.split_files import SplitFiles
from prep.split_names import SplitNames, name_splits

Spans = tuple[tuple[str, int, int], ...]  # (file, first row, end row) of each file that a range touches
ROWS_PER_READ = 32  # 3.5 MB of ImageNet: stays in the cache
BYTES_PER_READ = 16 << 20
MOST_UNNAMED_CLASSES = 100_000  # ImageNet-21k has 21,841; larger integers are ids, not classes


@dataclass(frozen=True)
class TableFile:
    """One file of a split: its address, and facts about its rows."""

    url: str
    size_bytes: int
    num_rows: int
    lowest_label: int
    highest_label: int
    labels: frozenset[int] | None = None  # those that occur, if they were read


@dataclass(frozen=True)
class TableSource:
    """A `Source`: a Hugging Face dataset with an image column and a label column."""

    origin: Origin
    columns: Columns
    files: dict[str, tuple[TableFile, ...]]
    reader: Callable[[Spans, str, str], Iterable[Item]]  # iterates over a range of rows
    readings: dict[str, dict[str, Any]] = field(default_factory=dict)  # split -> what the manifest records
    problems: dict[str, str] = field(default_factory=dict)  # split -> why it cannot be prepared

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names that the label column declares; for bare integers, the numbers up to the highest label."""
        return self.columns.class_names or tuple(str(label) for label in range(self._highest_label() + 1))

    def _highest_label(self) -> int:
        usable = [file for split, files in self.files.items() if split not in self.problems for file in files]
        return max((file.highest_label for file in usable), default=0)

    @property
    def num_rows(self) -> dict[str, int]:
        return {split: sum(file.num_rows for file in files) for split, files in self.files.items()}

    @property
    def size_bytes(self) -> dict[str, int]:
        return {split: sum(file.size_bytes for file in files) for split, files in self.files.items()}

    def reading(self, split: str) -> dict[str, Any]:
        """Return how a split is read: the columns, and its entry of `readings`."""
        return {
            "image_column": self.columns.image,
            "label_column": self.columns.label,
            **self.readings.get(split, {}),
        }

    def check_split(self, split: str) -> None:
        """Check that a split has no problem and that all its labels are classes.

        Raises:
            InputError: it has a problem, or a label is outside the classes.
        """
        if split in self.problems:
            raise InputError(self.problems[split])
        last = len(self.columns.class_names or range(self._highest_label() + 1)) - 1
        for file in self.files[split]:
            if not file.num_rows:
                continue
            if file.highest_label > last:
                raise InputError(
                    f"{file.url} holds label {file.highest_label}, outside the classes 0 to {last}: "
                    "correct it at the source, or choose another --label-column"
                )
            if not self.columns.class_names and last >= MOST_UNNAMED_CLASSES:
                raise InputError(
                    f"{file.url} holds label {file.highest_label} in column {self.columns.label} and no class names: "
                    f"expected 0 to {MOST_UNNAMED_CLASSES - 1:,} at most; choose another --label-column"
                )

    def rows(self, split: str, start: int, stop: int) -> Iterable[Item]:
        spans = []
        for file in self.files[split]:
            if start < file.num_rows and stop > 0:
                spans.append((file.url, max(start, 0), min(stop, file.num_rows)))
            start, stop = start - file.num_rows, stop - file.num_rows
        return self.reader(tuple(spans), self.columns.image, self.columns.label)


# From files to a source


class TableFormat(Protocol):
    """Access to the files of a dataset in one format; each `path` is one of `SplitFiles`."""

    @property
    def reader(self) -> Callable[[Spans, str, str], Iterable[Item]]: ...
    @property
    def source(self) -> str: ...
    def url(self, path: str) -> str: ...
    def num_rows(self, path: str) -> int: ...
    def table(self, path: str) -> Table: ...
    def describe_file(self, path: str, columns: Columns) -> TableFile: ...
    def origin(self, columns: Columns) -> Origin: ...


def assemble_source(files: TableFormat, found: SplitFiles, wanted: Reading) -> TableSource:
    """Return the source that the found files make.

    Raises:
        InputError: `wanted` does not fit the source, or no split of it can be prepared.
    """
    # Name the splits, agree on the columns, and find the row count and label range of each file.
    names = name_splits(files.source, list(found.files), wanted.split_map)
    by_split = {split: found.files[name] for name, split in names.prepared.items()}
    unreadable: dict[str, str] = {}
    columns = _agree_on_columns(files, by_split, wanted, unreadable)
    described = {split: _describe_files(files, paths, split, columns, unreadable) for split, paths in by_split.items()}

    # Find missing parts: a problem of their split unless the user allows them.
    problems = names.problems | unreadable
    missing = {}
    for name, split in names.prepared.items():
        missing[split] = [*found.missing, *_check_complete(files, name, split, found, problems)]
        if missing[split] and not wanted.allow_missing:
            problems.setdefault(
                split,
                f"{files.source} is not complete: {'; '.join(missing[split])}; get what is missing, "
                "or continue without it with --allow-missing",
            )
    if len(problems) == len(by_split):
        raise InputError(next(problems[split] for split in by_split))

    # All readable splits have the same columns. Collect what the manifest records.
    chosen = next(columns[split] for split in by_split if split not in unreadable)
    notes = [*found.notes, *_note_absent_labels(chosen, [each for files in described.values() for each in files])]
    readings = {split: _make_reading(split, names, found, columns[split], missing[split], notes) for split in by_split}
    return TableSource(files.origin(chosen), chosen, described, files.reader, readings, problems)


def _agree_on_columns(
    files: TableFormat, by_split: dict[str, tuple[str, ...]], wanted: Reading, problems: dict[str, str]
) -> dict[str, Columns]:
    """Return the columns of each split, which are the same two in every file.

    A split with a file that has others, or none, gets an entry in `problems`.
    """
    columns: dict[str, Columns] = {}
    chosen: dict[bytes, Columns] = {}  # by schema, since most files have the same one
    first, first_url = None, ""
    for split, paths in by_split.items():
        for path in paths:
            try:
                table = files.table(path)
                key = table.schema.serialize().to_pybytes()
                each = chosen[key] if key in chosen else chosen.setdefault(key, choose_columns(table, wanted))
                if first is None:
                    first, first_url = each, table.url
                _check_alike(first, first_url, each, table.url)
            except InputError as error:
                problems.setdefault(split, str(error))
                break
            first = first if first.class_names else each
            columns[split] = _merge_columns(columns[split], each) if split in columns else each

    # Class names that only some files declare hold for all.
    named = next((each.class_names for each in columns.values() if each.class_names), ())
    return {split: _with_names(columns.get(split, Columns("", "")), named) for split in by_split}


def _check_alike(first: Columns, first_url: str, each: Columns, url: str) -> None:
    """Check that two files are read by the same columns and name the same classes.

    Raises:
        InputError: they differ.
    """
    for kind, one, other in (("image", first.image, each.image), ("label", first.label, each.label)):
        if one != other:
            raise InputError(
                f"{url} has its {kind}s in column {other}, {first_url} in column {one}: "
                f"choose one that both have with --{kind}-column, or give them the same name"
            )
    if first.class_names and each.class_names and first.class_names != each.class_names:
        raise InputError(f"{url} names other classes than {first_url}: cast both to the same ClassLabel")


def _merge_columns(one: Columns, other: Columns) -> Columns:
    images = tuple(dict.fromkeys(one.other_images + other.other_images))
    labels = tuple(dict.fromkeys(one.other_labels + other.other_labels))
    return Columns(one.image, one.label, one.class_names or other.class_names, images, labels)


def _with_names(columns: Columns, class_names: tuple[str, ...]) -> Columns:
    return Columns(columns.image, columns.label, class_names, columns.other_images, columns.other_labels)


def _describe_files(
    files: TableFormat, paths: tuple[str, ...], split: str, columns: dict[str, Columns], problems: dict[str, str]
) -> tuple[TableFile, ...]:
    """Return the facts about each file of a split; for a split with a problem only the row counts."""
    described = []
    for path in paths:
        if split not in problems:
            try:
                described.append(files.describe_file(path, columns[split]))
                if described[-1].lowest_label < 0:  # as in ImageNet's test split
                    found = f"the label {described[-1].lowest_label}, which means none,"
                    problems[split] = explain_unlabelled(files.table(path), columns[split].label, found)
                continue
            except InputError as error:
                problems[split] = str(error)
        described.append(TableFile(files.url(path), 0, files.num_rows(path), 0, 0, frozenset()))
    return tuple(described)


def _check_complete(
    files: TableFormat, name: str, split: str, found: SplitFiles, problems: dict[str, str]
) -> list[str]:
    """Return lines on parts that are missing from a split; contradictions among its files become its problem."""
    paths = found.files[name]
    parts = check_parts(paths)
    if parts.contradictions:
        problems.setdefault(
            split,
            f"{files.source}: the split {name} has {parts.contradictions[0]}: "
            "keep the set that you mean, and move the other away",
        )
    num_rows = sum(files.num_rows(path) for path in paths)
    rows = check_rows(name, num_rows, found.info.num_rows, README)
    lacking = [*parts.missing, *found.lacking.get(name, ())]
    return [f"the split {name} lacks {line}" for line in lacking] + [f"the split {name}: {line}" for line in rows]


def _make_reading(
    split: str, names: SplitNames, found: SplitFiles, columns: Columns, missing: list[str], notes: list[str]
) -> dict[str, Any]:
    """Return what the manifest records of how a split was read, besides the columns."""
    passed_over = [f"image column {other}" for other in columns.other_images]
    passed_over += [f"label column {other}" for other in columns.other_labels]
    passed_over += [f"split {other}" for other in names.alternatives.get(split, ())]
    kept = {
        "config": found.config,
        "split_map": names.recorded_map(split),
        "passed_over": [*passed_over, *found.passed_over],
        "missing": missing,
        "notes": notes,
        "license": found.license,
    }
    return {key: value for key, value in kept.items() if value}


# Labels


def _note_absent_labels(columns: Columns, files: Sequence[TableFile]) -> list[str]:
    """Return a line for the manifest if classes have no names and some of their numbers are in no row."""
    counted = [file for file in files if file.labels != frozenset()]  # has rows, and could be read
    if columns.class_names or not counted:
        return []
    if any(file.labels is None for file in counted):
        lowest = min(file.lowest_label for file in counted)
        return [f"the labels start at {lowest}: no image has a lower one"] if lowest > 0 else []
    found = frozenset().union(*(file.labels or () for file in counted))
    absent = [str(label) for label in range(min(max(found) + 1, MOST_UNNAMED_CLASSES)) if label not in found]
    return [f"no image has the labels {list_some(absent, 3)} of 0 to {max(found)}"] if absent else []


def find_label_range(table: Table, column: str, labels: pa.ChunkedArray) -> tuple[int, int, frozenset[int]]:
    """Return the lowest label, the highest (0 and 0 if there are no rows), and all labels that occur.

    Raises:
        InputError: a row has no label.
    """
    if labels.null_count:
        raise InputError(explain_unlabelled(table, column, f"{labels.null_count:,} rows without a label (null)"))
    values = frozenset(labels.unique().to_pylist())
    return min(values, default=0), max(values, default=0), values


def explain_unlabelled(table: Table, column: str, found: str) -> str:
    """Return an error's line for a split in which some rows have no label."""
    keep = f".filter(lambda label: label is not None and label >= 0, input_columns={column!r})"
    return (
        f"{table.url} has {found} in column {column}: leave this split out with --splits, "
        f"or keep the rows that have one with {table.advise(keep)}"
    )


# Rows


def read_items(batch: pa.RecordBatch, image_column: str, label_column: str) -> Iterator[Item]:
    """Yield the rows of a batch. Their images are views, not copies, and keep the batch in memory."""
    images, names = batch.column(image_column), [""] * batch.num_rows
    if pa.types.is_struct(images.type):
        children = dict(zip((field.name for field in images.type), images.flatten(), strict=True))
        images = children["bytes"]
        names = _decode_names(children["path"]) if "path" in children else names
    labels = batch.column(label_column).to_pylist()
    is_held = images.is_valid().to_pylist() if images.null_count else [True] * len(images)
    for name, data, label, held in zip(names, _view_values(images), labels, is_held, strict=True):
        fault = explain_oversize(len(data)) if held else "no bytes in the source" + (", only a path" if name else "")
        yield Item(name, b"" if fault else data, label, fault)


def _view_values(images: pa.Array) -> Iterator[memoryview]:
    """Yield a view of each value's bytes, which is empty for a null.

    Arrow's columnar format has the offsets in buffer 1 and the bytes in buffer 2.
    """
    if not (pa.types.is_binary(images.type) or pa.types.is_large_binary(images.type)):
        images = images.cast(pa.large_binary())
    width = np.int64 if pa.types.is_large_binary(images.type) else np.int32
    _, offset_buffer, data_buffer = images.buffers()
    data = memoryview(data_buffer or b"").cast("B")  # Arrow's views have signed bytes, which do not equal any `bytes`
    if not len(images):
        return
    ends = np.frombuffer(offset_buffer, width)[images.offset : images.offset + len(images) + 1].tolist()
    for start, end in pairwise(ends):
        yield data[start:end]


def _decode_names(paths: pa.Array) -> list[str]:
    return [(path or b"").decode(errors="surrogateescape") for path in paths.cast(pa.binary()).to_pylist()]
