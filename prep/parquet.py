"""Hugging Face datasets in parquet files, in a folder or on the hub.

A dataset is opened from the footers of its files alone. Its rows are read by range, as encoded bytes, so the dataset
is never copied to disk. No image is decoded (`datasets` fails on the EXIF data of some of ImageNet's images).
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from prep.card import read_card
from prep.columns import Columns, Table, declared_features, make_table
from prep.dataset import Origin
from prep.errors import InputError
from prep.file_kinds import is_lfs_pointer
from prep.listing import Listing, explain_hub_error, list_hub, list_local
from prep.source import Item, Reading
from prep.split_files import SplitFiles, choose_files
from prep.tables import (
    BYTES_PER_READ,
    ROWS_PER_READ,
    Spans,
    TableFile,
    TableSource,
    assemble_source,
    find_label_range,
    read_items,
)

MAGIC = b"PAR1"  # at the start and the end of a parquet file
REMOTE_READ_BYTES = 16 << 20  # a request's latency is small next to this transfer; ImageNet's row groups have 11 MB


# Rows


@dataclass(frozen=True)
class ParquetRows:
    """A range of a split's rows: (url, first row, end row) of each file that it touches.

    Few rows are in memory at a time, however large the files' row groups are.
    """

    spans: Spans
    image_column: str
    label_column: str

    def __iter__(self) -> Iterator[Item]:
        for url, start, stop in self.spans:
            try:
                with open_parquet_file(url) as parquet:
                    yield from self._read_rows(parquet, start, stop)
            except Exception as error:  # of pyarrow, the disk, or the hub's HTTP client, which may not pickle
                cause = " ".join(str(error).split())[:300]
                raise InputError(
                    f"{url} cannot be read ({cause}): run again; if it fails again, download the file again"
                ) from error

    def _read_rows(self, parquet: pq.ParquetFile, start: int, stop: int) -> Iterator[Item]:
        row = 0
        for group in range(parquet.num_row_groups):
            metadata = parquet.metadata.row_group(group)
            if row < stop and row + metadata.num_rows > start:
                yield from self._read_group(parquet, group, start - row, stop - row)
            row += metadata.num_rows

    def _read_group(self, parquet: pq.ParquetFile, group: int, start: int, stop: int) -> Iterator[Item]:
        """Yield the rows start..stop of a row group, where `start` may be negative and `stop` beyond its end."""
        columns = _list_leaves(parquet.schema_arrow, self.image_column, self.label_column)
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
def open_parquet_file(url: str) -> Iterator[pq.ParquetFile]:
    """Open a parquet file to read it in small pieces: mapped if it is local, else in requests of 16 MiB.

    Without either, Arrow would hold all of a row group's columns in memory, which may be the complete file. A view of
    a mapped file stays valid after the file is closed: Arrow unmaps it when the last view is deleted.
    """
    if "://" not in url:
        with pa.memory_map(url) as mapped:
            yield pq.ParquetFile(mapped, pre_buffer=False)
        return
    remote: Any = fsspec.open(url, "rb")
    with remote.fs.open(remote.path, "rb") as opened:
        yield pq.ParquetFile(opened, buffer_size=REMOTE_READ_BYTES, pre_buffer=False)


def _list_leaves(schema: pa.Schema, image_column: str, label_column: str) -> list[str]:
    """Return the columns to read; from a struct of an image only its bytes and its name."""
    if not pa.types.is_struct(schema.field(image_column).type):
        return [image_column, label_column]
    return [f"{image_column}.bytes", f"{image_column}.path", label_column]


def _rows_per_read(group: pq.RowGroupMetaData) -> int:
    """Return the number of rows with 16 MiB together, but at most as many as fit in the cache."""
    row_bytes = group.total_byte_size // max(1, group.num_rows)
    return max(1, min(ROWS_PER_READ, BYTES_PER_READ // max(1, row_bytes)))


# The dataset


@dataclass(frozen=True)
class Footer:
    """The metadata at the end of a parquet file, and the file's size."""

    metadata: pq.FileMetaData
    size_bytes: int

    @property
    def schema(self) -> pa.Schema:
        return self.metadata.schema.to_arrow_schema()


def open_parquet_dataset(source: str, wanted: Reading) -> TableSource:
    """Open a local folder or a hub dataset: its splits, files, row counts and classes, from the footers alone.

    Raises:
        InputError: it does not exist, is gated, unreachable, damaged or without labels, is not an image classification
            dataset, or could be read in several ways.
    """
    # List the files and choose those of each split.
    listing = list_local(Path(source)) if Path(source).is_dir() else list_hub(source)
    try:
        card = read_card(listing.card)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    found = choose_files(listing, card, wanted.config)

    # Read their footers in parallel: on the hub, each takes a request.
    urls = [listing.url(path) for files in found.files.values() for path in files]
    with ThreadPoolExecutor(16) as pool:
        footers = dict(zip(urls, pool.map(_read_footer, urls), strict=True))
    return assemble_source(ParquetFiles(listing, found, footers), found, wanted)


@dataclass(frozen=True)
class ParquetFiles:
    """The parquet files of a dataset: a `prep.tables.TableFormat`."""

    listing: Listing
    found: SplitFiles
    footers: Mapping[str, Footer]
    reader = ParquetRows

    @property
    def source(self) -> str:
        return self.listing.source

    def url(self, path: str) -> str:
        return self.listing.url(path)

    def num_rows(self, path: str) -> int:
        return self.footers[self.url(path)].metadata.num_rows

    def table(self, path: str) -> Table:
        """Return the columns of a file."""
        config = f", {self.found.config!r}" if self.found.config else ""
        load = f"d.load_dataset({self.source!r}{config})"
        return make_table(self.url(path), self.footers[self.url(path)].schema, self.found.info.features, load)

    def describe_file(self, path: str, columns: Columns) -> TableFile:
        """Return a file's row count and label range, from the statistics in its footer if they suffice."""
        url = self.url(path)
        footer = self.footers[url]
        self._check_has_bytes(path, footer, columns)

        # Without class names it matters which labels occur. On the hub that would take a request for each row group.
        statistics = _read_statistics(footer.metadata, columns.label)
        is_known = all(s is not None and s.has_min_max and s.has_null_count and not s.null_count for s in statistics)
        if is_known and (columns.class_names or self.listing.commit):
            lowest = min((s.min for s in statistics), default=0)
            highest = max((s.max for s in statistics), default=0)
            return TableFile(url, footer.size_bytes, footer.metadata.num_rows, lowest, highest)

        # Otherwise read the label column.
        with open_parquet_file(url) as parquet:
            labels = parquet.read([columns.label]).column(columns.label)
        label_range = find_label_range(self.table(path), columns.label, labels)
        return TableFile(url, footer.size_bytes, footer.metadata.num_rows, *label_range)

    def _check_has_bytes(self, path: str, footer: Footer, columns: Columns) -> None:
        """Check that some row has the bytes of an image.

        Raises:
            InputError: all rows have only the path of an image.
        """
        statistics = _read_statistics(footer.metadata, f"{columns.image}.bytes")
        num_nulls = sum(s.null_count for s in statistics if s is not None and s.has_null_count)
        if statistics and footer.metadata.num_rows and num_nulls == footer.metadata.num_rows:
            table = self.table(path)
            raise InputError(
                f"{table.url} holds the paths of its images but not their bytes (column {columns.image}): "
                f"embed them with {table.advise(f'.cast_column({columns.image!r}, d.Image())')}"
            )

    def origin(self, columns: Columns) -> Origin:
        """Return name and revision: the commit on the hub; for a folder a digest of file names, sizes and footers."""
        if self.listing.commit:
            return Origin(self.source, self.listing.commit)
        digest = hashlib.sha256()
        for url in sorted(self.footers):
            size_bytes = os.path.getsize(url)
            name = os.path.relpath(url, self.source)
            digest.update(f"{name}\0{size_bytes}\0".encode(errors="surrogateescape") + _read_footer_bytes(url))

        # Class names that only the card declares are not in any footer.
        named = self.found.info.features.get(columns.label)
        if named and columns.class_names == named.class_names and not self._has_own_names(columns):
            digest.update("\0".join(columns.class_names).encode())
        return Origin(Path(self.source).name, digest.hexdigest())

    def _has_own_names(self, columns: Columns) -> bool:
        """Check whether the files themselves declare the label column."""
        return any(
            declared_features(footer.schema, {}).get(columns.label) is not None for footer in self.footers.values()
        )


# Footers


def _read_statistics(metadata: pq.FileMetaData, path: str) -> list[Any]:
    """Return the statistics of a column in each row group, None where not recorded; [] if the column is missing."""
    leaves = [i for i in range(metadata.num_columns) if metadata.schema.column(i).path == path]
    return [metadata.row_group(g).column(leaf).statistics for leaf in leaves for g in range(metadata.num_row_groups)]


def _read_footer(url: str) -> Footer:
    if not url.startswith("hf://"):
        return _read_local_footer(url)
    source = url.split("@", maxsplit=1)[0].removeprefix("hf://datasets/")
    try:
        remote: Any = fsspec.open(url, "rb")
        with remote as opened:
            return Footer(pq.ParquetFile(opened).metadata, opened.seek(0, os.SEEK_END))
    except pa.ArrowInvalid as error:
        raise InputError(f"{url} is not a complete parquet file ({error}): report it to the dataset's owner") from error
    except Exception as error:  # the errors of the hub's HTTP client are not OSErrors
        raise InputError(explain_hub_error(source, error)) from error


def _read_local_footer(path: str) -> Footer:
    try:
        with open(path, "rb") as file:
            # Name the usual faults first: pyarrow's message is the same for all of them.
            start = file.read(64)
            size_bytes = file.seek(0, os.SEEK_END)
            if is_lfs_pointer(start):
                raise InputError(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in its folder")
            if not size_bytes:
                raise InputError(f"{path} is empty (0 bytes): download it again")
            if not start.startswith(MAGIC):
                raise InputError(f"{path} is not a parquet file (it starts with {start[:8]!r}): download it again")
            return Footer(pq.ParquetFile(file).metadata, size_bytes)
    except FileNotFoundError as error:
        raise InputError(f"{path} is a link to nothing: download it again") from error
    except pa.ArrowException as error:
        cause = " ".join(str(error).split())[:300]
        raise InputError(f"{path} is not a complete parquet file ({cause}): download it again") from error


def _read_footer_bytes(path: str) -> bytes:
    """Return the footer as it is on disk: its length is in the 4 bytes before the magic at the file's end."""
    with open(path, "rb") as file:
        file.seek(-8, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, os.SEEK_END)
        return file.read(length)
