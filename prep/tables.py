"""Tables of images and labels, whatever files hold them: the source that they make, and items from their rows."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from prep.columns import Columns, Table
from prep.dataset import Origin
from prep.errors import InputError
from prep.source import Item, oversize

Spans = tuple[tuple[str, int, int], ...]  # (file, first row, end row) of each file that a range touches
ROWS_PER_READ = 32  # 3.5 MB of ImageNet: stays in the cache
BYTES_PER_READ = 16 << 20
MOST_UNNAMED_CLASSES = 100_000  # ImageNet-21k has 21,841; beyond it the integers are ids, not classes


@dataclass(frozen=True)
class TableFile:
    """One file of a split: where it is, and what is known of its rows."""

    url: str
    size_bytes: int
    num_rows: int
    lowest_label: int
    highest_label: int
    labels: frozenset[int] | None = None  # those that occur, where they were read


@dataclass(frozen=True)
class TableSource:
    """A Hugging Face dataset with an image and a label column; `reader` iterates over a range of its rows.

    `problems` holds, for a split that cannot be prepared, the line that says why: `check` raises it, so that a split
    nobody asked for stops nothing. `readings` holds what the manifest keeps of each split.
    """

    origin: Origin
    columns: Columns
    files: dict[str, tuple[TableFile, ...]]
    reader: Callable[[Spans, str, str], Iterable[Item]]
    readings: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The label column's; where its labels are bare integers, those up to the highest."""
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
        """Return how a split is read: the columns, and what `readings` says."""
        return {
            "image_column": self.columns.image,
            "label_column": self.columns.label,
            **self.readings.get(split, {}),
        }

    def check(self, split: str) -> None:
        """Raises InputError where a split cannot be prepared, or a label lies outside the classes."""
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


def describe_labels(table: Table, column: str, labels: pa.ChunkedArray) -> tuple[int, int, frozenset[int]]:
    """Return the lowest label, the highest (0 and 0 where there are no rows), and those that occur."""
    if labels.null_count:
        raise InputError(unlabelled(table, column, f"{labels.null_count:,} rows without a label (null)"))
    values = frozenset(labels.unique().to_pylist())
    return min(values, default=0), max(values, default=0), values


def unlabelled(table: Table, column: str, found: str) -> str:
    """Return the line that refuses a split some of whose rows have no label."""
    keep = f".filter(lambda label: label is not None and label >= 0, input_columns={column!r})"
    return (
        f"{table.url} has {found} in column {column}: leave this split out with --splits, "
        f"or keep the rows that have one with {table.advise(keep)}"
    )


def read_items(batch: pa.RecordBatch, image_column: str, label_column: str) -> Iterator[Item]:
    """The rows of a batch, their images without a copy: the views keep the batch's memory alive."""
    images, names = batch.column(image_column), [""] * batch.num_rows
    if pa.types.is_struct(images.type):
        children = dict(zip((field.name for field in images.type), images.flatten(), strict=True))
        images = children["bytes"]
        names = _names(children["path"]) if "path" in children else names
    labels = batch.column(label_column).to_pylist()
    is_held = images.is_valid().to_pylist() if images.null_count else [True] * len(images)
    for name, data, label, held in zip(names, _views(images), labels, is_held, strict=True):
        fault = oversize(len(data)) if held else "no bytes in the source" + (", only a path" if name else "")
        yield Item(name, b"" if fault else data, label, fault)


def _views(images: pa.Array) -> Iterator[memoryview]:
    """Each value's bytes, empty for a null (Arrow's columnar format: offsets in buffer 1, bytes in buffer 2)."""
    if not (pa.types.is_binary(images.type) or pa.types.is_large_binary(images.type)):
        images = images.cast(pa.large_binary())
    width = np.int64 if pa.types.is_large_binary(images.type) else np.int32
    _, offset_buffer, data_buffer = images.buffers()
    data = memoryview(data_buffer or b"").cast("B")  # Arrow's own views are of signed bytes, equal to no `bytes`
    if not len(images):
        return
    ends = np.frombuffer(offset_buffer, width)[images.offset : images.offset + len(images) + 1].tolist()
    for start, end in pairwise(ends):
        yield data[start:end]


def _names(paths: pa.Array) -> list[str]:
    return [(path or b"").decode(errors="surrogateescape") for path in paths.cast(pa.binary()).to_pylist()]
