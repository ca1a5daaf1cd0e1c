"""Rows of parquet files as encoded images, read by range: never more than one row group in memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow.parquet as pq

from prep.dataset import InputError
from prep.source import Item

ROWS_PER_READ = 64  # 7 MB of ImageNet


@dataclass(frozen=True)
class ParquetRows:
    """A range of a split's rows: (url, first row, end row) of each file it touches."""

    spans: tuple[tuple[str, int, int], ...]
    image_column: str
    label_column: str

    def __iter__(self) -> Iterator[Item]:
        for url, start, stop in self.spans:
            try:
                with fsspec.open(url, "rb") as opened:
                    yield from self._read(pq.ParquetFile(opened), start, stop)
            except Exception as error:  # pyarrow's, the disk's, or the hub's HTTP client's own, which may not pickle
                cause = " ".join(str(error).split())[:300]
                raise InputError(f"{url} cannot be read ({cause}): run again; if it stays, download it anew") from error

    def _read(self, parquet: pq.ParquetFile, start: int, stop: int) -> Iterator[Item]:
        columns = [self.image_column, self.label_column]
        groups, row = _row_groups(parquet.metadata, start, stop)
        for batch in parquet.iter_batches(ROWS_PER_READ, row_groups=groups, columns=columns):
            first = max(0, start - row)
            wanted = batch.slice(first, max(0, min(batch.num_rows, stop - row) - first))
            images, labels = (wanted.column(name).to_pylist() for name in columns)
            yield from (_item(image, label) for image, label in zip(images, labels, strict=True))
            row += batch.num_rows


def _item(image: dict[str, Any] | bytes | None, label: int) -> Item:
    if isinstance(image, dict):
        return Item(image["path"] or "", image["bytes"] or b"", label)
    return Item("", image or b"", label)


def _row_groups(metadata: pq.FileMetaData, start: int, stop: int) -> tuple[list[int], int]:
    """The row groups that hold rows start..stop, and the first row of the first of them."""
    groups, first_row, row = [], 0, 0
    for group in range(metadata.num_row_groups):
        end = row + metadata.row_group(group).num_rows
        if row < stop and end > start:
            first_row = first_row if groups else row
            groups.append(group)
        row = end
    return groups, first_row
