"""Hugging Face datasets in parquet, in a folder or on the hub.

An image is never touched here (`datasets`' EXIF handling fails on some of ImageNet's): rows are read by `prep.parquet`
as encoded bytes, by range, so the dataset is never copied to disk whole.
"""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from prep.assembly import assemble
from prep.card import read_card
from prep.columns import Columns, Table, declared_features, make_table
from prep.dataset import Origin
from prep.errors import InputError
from prep.listing import Listing, explain_hub, list_hub, list_local
from prep.parquet import ParquetRows, open_parquet
from prep.parquet_files import SplitFiles, choose_files
from prep.source import Reading, is_lfs_pointer
from prep.tables import TableFile, TableSource, describe_labels

MAGIC = b"PAR1"  # at a parquet file's start


@dataclass(frozen=True)
class Footer:
    """What a parquet file says of itself at its end, and the file's size."""

    metadata: pq.FileMetaData
    size_bytes: int

    @property
    def schema(self) -> pa.Schema:
        return self.metadata.schema.to_arrow_schema()


def open_dataset(source: str, wanted: Reading) -> TableSource:
    """Open a local folder or a hub dataset: its splits, files, row counts and classes, from the footers alone.

    Raises:
        InputError: it is not there, gated, unreachable, damaged, unlabelled, no image classification, or could be
            read in several ways.
    """
    listing = list_local(Path(source)) if Path(source).is_dir() else list_hub(source)
    try:
        card = read_card(listing.card)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    found = choose_files(listing, card, wanted.config)
    urls = [listing.url(path) for files in found.files.values() for path in files]
    with ThreadPoolExecutor(16) as pool:
        footers = dict(zip(urls, pool.map(_footer, urls), strict=True))
    parquet = Parquet(listing, found, footers)
    return assemble(parquet, found, wanted)


@dataclass(frozen=True)
class Parquet:
    """A dataset in parquet, as `prep.assembly` reads it."""

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

    def describe(self, path: str, columns: Columns) -> TableFile:
        """Return a file's row count and label range: from its footer's statistics where they suffice."""
        url = self.url(path)
        footer = self.footers[url]
        self._check_bytes(path, footer, columns)
        statistics = _statistics(footer.metadata, columns.label)
        is_known = all(s is not None and s.has_min_max and s.has_null_count and not s.null_count for s in statistics)
        # Without class names it matters which labels occur; on the hub that would take a request for each row group.
        if is_known and (columns.class_names or self.listing.commit):
            lowest = min((s.min for s in statistics), default=0)
            highest = max((s.max for s in statistics), default=0)
            return TableFile(url, footer.size_bytes, footer.metadata.num_rows, lowest, highest)
        with open_parquet(url) as parquet:
            labels = parquet.read([columns.label]).column(columns.label)
        described = describe_labels(self.table(path), columns.label, labels)
        return TableFile(url, footer.size_bytes, footer.metadata.num_rows, *described)

    def _check_bytes(self, path: str, footer: Footer, columns: Columns) -> None:
        """Raises InputError where no row has an image's bytes, only its path."""
        statistics = _statistics(footer.metadata, f"{columns.image}.bytes")
        num_nulls = sum(s.null_count for s in statistics if s is not None and s.has_null_count)
        if statistics and footer.metadata.num_rows and num_nulls == footer.metadata.num_rows:
            table = self.table(path)
            raise InputError(
                f"{table.url} holds the paths of its images but not their bytes (column {columns.image}): "
                f"embed them with {table.advise(f'.cast_column({columns.image!r}, d.Image())')}"
            )

    def origin(self, columns: Columns) -> Origin:
        """Name and revision: the commit for a hub id; for a folder a digest of file names, sizes and footers."""
        if self.listing.commit:
            return Origin(self.source, self.listing.commit)
        digest = hashlib.sha256()
        for url in sorted(self.footers):
            size_bytes = os.path.getsize(url)
            name = os.path.relpath(url, self.source)
            digest.update(f"{name}\0{size_bytes}\0".encode(errors="surrogateescape") + _footer_bytes(url))
        named = self.found.info.features.get(columns.label)
        if named and columns.class_names == named.class_names and not self._has_own_names(columns):
            digest.update("\0".join(columns.class_names).encode())  # they are in no footer
        return Origin(Path(self.source).name, digest.hexdigest())

    def _has_own_names(self, columns: Columns) -> bool:
        return any(
            declared_features(footer.schema, {}).get(columns.label) is not None for footer in self.footers.values()
        )


def _statistics(metadata: pq.FileMetaData, path: str) -> list[Any]:
    """Each row group's statistics of a column, None where it has none; an empty list where there is no such column."""
    leaves = [i for i in range(metadata.num_columns) if metadata.schema.column(i).path == path]
    return [metadata.row_group(g).column(leaf).statistics for leaf in leaves for g in range(metadata.num_row_groups)]


def _footer(url: str) -> Footer:
    if not url.startswith("hf://"):
        return _local_footer(url)
    source = url.split("@", maxsplit=1)[0].removeprefix("hf://datasets/")
    try:
        remote: Any = fsspec.open(url, "rb")
        with remote as opened:
            return Footer(pq.ParquetFile(opened).metadata, opened.seek(0, os.SEEK_END))
    except pa.ArrowInvalid as error:
        raise InputError(f"{url} is not a whole parquet file ({error}): report it to the dataset's owner") from error
    except Exception as error:  # the hub's HTTP client has its own kinds, no OSErrors
        raise InputError(explain_hub(source, error)) from error


def _local_footer(path: str) -> Footer:
    try:
        with open(path, "rb") as file:
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
        raise InputError(f"{path} is not a whole parquet file ({cause}): download it again") from error


def _footer_bytes(path: str) -> bytes:
    """The footer as it is on disk: its length stands in 4 bytes before the closing magic."""
    with open(path, "rb") as file:
        file.seek(-8, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, os.SEEK_END)
        return file.read(length)
