"""Tables of images and labels, whatever files hold them: their columns, their labels' range, and items from them.

Workers read rows with what stands here, so `datasets`, which takes 1.5 s to import, is imported where it is used.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from prep.dataset import InputError, Origin
from prep.source import Item, Reading, oversize

Spans = tuple[tuple[str, int, int], ...]  # (file, first row, end row) of each file that a range touches
ROWS_PER_READ = 32  # 3.5 MB of ImageNet: stays in the cache
BYTES_PER_READ = 16 << 20


@dataclass(frozen=True)
class Columns:
    """Which columns of a dataset hold the images and the labels; no class names where labels are bare integers."""

    image: str
    label: str
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class TableFile:
    """One file of a split: where it is, and what is known of its rows."""

    url: str
    size_bytes: int
    num_rows: int
    lowest_label: int
    highest_label: int


@dataclass(frozen=True)
class TableSource:
    """A Hugging Face dataset with an image and a label column; `reader` iterates over a range of its rows."""

    origin: Origin
    columns: Columns
    files: dict[str, tuple[TableFile, ...]]
    reader: Callable[[Spans, str, str], Iterable[Item]]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The label column's; where its labels are bare integers, those up to the highest."""
        highest = max((file.highest_label for files in self.files.values() for file in files), default=0)
        return self.columns.class_names or tuple(str(label) for label in range(highest + 1))

    @property
    def num_rows(self) -> dict[str, int]:
        return {split: sum(file.num_rows for file in files) for split, files in self.files.items()}

    @property
    def size_bytes(self) -> dict[str, int]:
        return {split: sum(file.size_bytes for file in files) for split, files in self.files.items()}

    def reading(self, split: str) -> dict[str, Any]:
        """Return the facts for the manifest."""
        return {"image_column": self.columns.image, "label_column": self.columns.label}

    def check(self, split: str) -> None:
        last = len(self.class_names) - 1
        for file in self.files[split]:
            for label in (file.lowest_label, file.highest_label):
                if file.num_rows and not 0 <= label <= last:
                    raise InputError(f"{file.url} holds label {label}, outside the classes 0 to {last}: mend it")

    def rows(self, split: str, start: int, stop: int) -> Iterable[Item]:
        spans = []
        for file in self.files[split]:
            if start < file.num_rows and stop > 0:
                spans.append((file.url, max(start, 0), min(stop, file.num_rows)))
            start, stop = start - file.num_rows, stop - file.num_rows
        return self.reader(tuple(spans), self.columns.image, self.columns.label)


def find_columns(source: str, schemas: dict[str, pa.Schema], wanted: Reading) -> Columns:
    """The columns of a dataset by the schemas of its files, which must agree.

    Raises:
        InputError: no image or no label column, or a file that lacks one, has it of another type or other classes.
    """
    columns = _find_columns(source, next(iter(schemas.values())))
    for url, schema in schemas.items():
        _check_columns(url, schema, columns)
        names = _class_names(schema, columns.label)
        if names and names != columns.class_names:
            raise InputError(f"{url} names other classes than {next(iter(schemas))}: cast both to the same ClassLabel")
    return columns


def _find_columns(source: str, schema: pa.Schema) -> Columns:
    import datasets  # noqa: PLC0415

    features = datasets.Features.from_arrow_schema(schema)
    images = [name for name, f in features.items() if isinstance(f, datasets.Image)] or [
        name for name in ("image", "img") if name in features
    ]
    labels = [name for name, f in features.items() if isinstance(f, datasets.ClassLabel)] or [
        name for name in ("label", "labels", "fine_label") if name in features
    ]
    if not images or not labels:
        raise InputError(f"{source} has columns {', '.join(features)}: an image and a label column are needed")
    return Columns(images[0], labels[0], _class_names(schema, labels[0]))


def _class_names(schema: pa.Schema, label_column: str) -> tuple[str, ...]:
    """The names that `datasets` keeps in a schema's metadata; empty where labels are bare integers."""
    known = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = known.get("info", {}).get("features", {}).get(label_column, {})
    return tuple(feature.get("names") or ())


def _check_columns(url: str, schema: pa.Schema, columns: Columns) -> None:
    if not {columns.image, columns.label} <= set(schema.names):
        raise InputError(
            f"{url} has columns {', '.join(schema.names)}, not {columns.image} and {columns.label}: mend it"
        )
    found = schema.field(columns.label).type
    if not pa.types.is_integer(found):
        raise InputError(f"{url} has labels of type {found}: cast column {columns.label} to ClassLabel or integers")
    found = schema.field(columns.image).type
    encoded = found.field("bytes").type if pa.types.is_struct(found) and found.get_field_index("bytes") >= 0 else found
    if not _is_binary(encoded):
        raise InputError(f"{url} has images of type {found}: cast column {columns.image} to datasets.Image()")


def label_range(url: str, labels: pa.ChunkedArray) -> tuple[int, int]:
    """The lowest and the highest label, 0 and 0 where there are no rows."""
    if labels.null_count:
        raise InputError(f"{url} has {labels.null_count} rows without a label: remove them")
    values = labels.to_numpy()
    return (int(values.min()), int(values.max())) if len(values) else (0, 0)


def read_items(batch: pa.RecordBatch, image_column: str, label_column: str) -> Iterator[Item]:
    """The rows of a batch, their images without a copy: the views keep the batch's memory alive."""
    images, names = batch.column(image_column), [""] * batch.num_rows
    if pa.types.is_struct(images.type):
        children = dict(zip((field.name for field in images.type), images.flatten(), strict=True))
        images = children["bytes"]
        names = _names(children["path"]) if "path" in children else names
    labels = batch.column(label_column).to_pylist()
    for name, data, label in zip(names, _views(images), labels, strict=True):
        fault = oversize(len(data))
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
    held = images.is_valid().to_pylist() if images.null_count else [True] * len(images)
    for is_held, start, end in zip(held, ends, ends[1:], strict=False):
        yield data[start:end] if is_held else data[:0]


def _names(paths: pa.Array) -> list[str]:
    return [(path or b"").decode(errors="surrogateescape") for path in paths.cast(pa.binary()).to_pylist()]


def _is_binary(found: pa.DataType) -> bool:
    kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(is_kind(found) for is_kind in kinds)
