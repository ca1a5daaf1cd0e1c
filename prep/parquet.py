"""Rows of parquet files as encoded images, read by range: a few rows in memory, whatever the files' row groups."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from prep.errors import InputError
from prep.source import Item
from prep.tables import BYTES_PER_READ, ROWS_PER_READ, Spans, read_items

REMOTE_READ_BYTES = 16 << 20  # a request's latency is then small beside its transfer; ImageNet's row groups have 11 MB


@dataclass(frozen=True)
class ParquetRows:
    """A range of a split's rows: (url, first row, end row) of each file it touches."""

    spans: Spans
    image_column: str
    label_column: str

    def __iter__(self) -> Iterator[Item]:
        for url, start, stop in self.spans:
            try:
                with open_parquet(url) as parquet:
                    yield from self._read(parquet, start, stop)
            except Exception as error:  # pyarrow's, the disk's, or the hub's HTTP client's own, which may not pickle
                cause = " ".join(str(error).split())[:300]
                raise InputError(f"{url} cannot be read ({cause}): run again; if it stays, download it anew") from error

    def _read(self, parquet: pq.ParquetFile, start: int, stop: int) -> Iterator[Item]:
        row = 0
        for group in range(parquet.num_row_groups):
            metadata = parquet.metadata.row_group(group)
            if row < stop and row + metadata.num_rows > start:
                yield from self._read_group(parquet, group, start - row, stop - row)
            row += metadata.num_rows

    def _read_group(self, parquet: pq.ParquetFile, group: int, start: int, stop: int) -> Iterator[Item]:
        columns = _leaves(parquet.schema_arrow, self.image_column, self.label_column)
        batch_size = _rows_per_read(parquet.metadata.row_group(group))
        row = 0
        for batch in parquet.iter_batches(batch_size, row_groups=[group], columns=columns, use_threads=False):
            if row >= stop:
                return
            first = max(0, start - row)
            part = batch.slice(first, max(0, min(batch.num_rows, stop - row) - first))
            yield from read_items(part, self.image_column, self.label_column)
            row += batch.num_rows


@contextmanager
def open_parquet(url: str) -> Iterator[pq.ParquetFile]:
    """A parquet file to read bit by bit: mapped where it is local, else in requests of 16 MiB.

    Neither mapped nor buffered, Arrow would hold the whole of a row group's columns, which may be the whole file.
    A view of a mapped file outlives its closing: Arrow unmaps when the last one goes.
    """
    if "://" not in url:
        with pa.memory_map(url) as mapped:
            yield pq.ParquetFile(mapped, pre_buffer=False)
        return
    remote: Any = fsspec.open(url, "rb")
    with remote.fs.open(remote.path, "rb") as opened:
        yield pq.ParquetFile(opened, buffer_size=REMOTE_READ_BYTES, pre_buffer=False)


def _leaves(schema: pa.Schema, image_column: str, label_column: str) -> list[str]:
    """The columns to read, of a struct of an image its bytes and its name alone."""
    if not pa.types.is_struct(schema.field(image_column).type):
        return [image_column, label_column]
    return [f"{image_column}.bytes", f"{image_column}.path", label_column]


def _rows_per_read(group: pq.RowGroupMetaData) -> int:
    """As many rows as come to 16 MiB, and no more than stay in the cache."""
    row_bytes = group.total_byte_size // max(1, group.num_rows)
    return max(1, min(ROWS_PER_READ, BYTES_PER_READ // max(1, row_bytes)))
