"""Hugging Face datasets in parquet, in a folder or on the hub: `datasets` resolves their files.

It never touches an image (its EXIF handling fails on some of ImageNet's): rows are read by `prep.parquet` as
encoded bytes, by range, so the dataset is never copied to disk whole.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import fsspec
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.exceptions import DatasetNotFoundError

from prep.dataset import InputError, Origin
from prep.parquet import ParquetRows, open_parquet
from prep.source import Reading
from prep.tables import TableFile, TableSource, find_columns, label_range


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
        InputError: it is not there, gated, unreachable, damaged, unlabelled, or no image classification.
    """
    data_files = _resolve(source)
    urls = [url for files in data_files.values() for url in files]
    with ThreadPoolExecutor(16) as pool:
        footers = dict(zip(urls, pool.map(_footer, urls), strict=True))
    columns = find_columns(source, {url: footer.schema for url, footer in footers.items()}, wanted)
    files = {
        split: tuple(_describe(url, footers[url], columns.label) for url in files)
        for split, files in data_files.items()
    }
    return TableSource(_origin(source, files), columns, files, ParquetRows)


def _resolve(source: str) -> dict[str, list[str]]:
    """Split -> parquet files, by the rules of `datasets`; a hub id is pinned to its present commit."""
    huggingface_hub.logging.set_verbosity_error()  # its retries are no news: one line says what failed
    try:
        builder = datasets.load_dataset_builder(source)
    except Exception as error:
        raise InputError(_explain(source, error)) from error
    files = {str(split): list(map(str, urls)) for split, urls in (builder.config.data_files or {}).items()}
    others = [url for urls in files.values() for url in urls if not url.endswith(".parquet")]
    if others or not files:
        raise InputError(f"{source} has no parquet files but {', '.join(others[:1]) or 'nothing'}: convert it")
    return files


def _explain(source: str, error: Exception) -> str:
    """One line on what to do; never the token, and never the hub's page-long answer."""
    cannot_open = f"cannot open {source}: {' '.join(str(error).split())[:300]}"
    if Path(source).is_dir():
        return cannot_open
    text = f"{type(error).__name__} {error}".replace(source, "")  # whose name may hold any of the words looked for
    if "gated" in text or "401" in text or "403" in text:
        return (
            f"{source} is gated: accept its terms at https://huggingface.co/datasets/{source}, "
            "then `hf auth login` or set HF_TOKEN to a read token"
        )
    if isinstance(error, DatasetNotFoundError) and "accessed" in text:
        return f"{source} is not on the hub, or private: check the name, then `hf auth login` if it is private"
    unreachable = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
    if unreachable or any(word in text.lower() for word in ("reach", "connect", "timeout")):
        return f"cannot reach the hub for {source}: check the network, or give --source a local folder"
    return cannot_open


def _footer(url: str) -> Footer:
    try:
        remote: Any = fsspec.open(url, "rb")
        with remote as opened:
            return Footer(pq.ParquetFile(opened).metadata, opened.seek(0, os.SEEK_END))
    except pa.ArrowInvalid as error:
        raise InputError(f"{url} is no whole parquet file ({error}): download it again") from error
    except Exception as error:  # the hub's HTTP client has its own kinds, no OSErrors
        if not url.startswith("hf://"):
            raise
        raise InputError(_explain(url.split("@", maxsplit=1)[0].removeprefix("hf://datasets/"), error)) from error


def _describe(url: str, footer: Footer, label_column: str) -> TableFile:
    """Row count and label range of a file: from its footer's statistics where it has them, else from the column."""
    metadata = footer.metadata
    leaf = next(i for i in range(metadata.num_columns) if metadata.schema.column(i).path == label_column)
    statistics = [metadata.row_group(g).column(leaf).statistics for g in range(metadata.num_row_groups)]
    if all(s is not None and s.has_min_max and s.null_count == 0 for s in statistics):
        lowest = min((s.min for s in statistics), default=0)
        highest = max((s.max for s in statistics), default=0)
    else:
        with open_parquet(url) as parquet:
            lowest, highest = label_range(url, parquet.read([label_column]).column(0))
    return TableFile(url, footer.size_bytes, metadata.num_rows, lowest, highest)


def _origin(source: str, files: dict[str, tuple[TableFile, ...]]) -> Origin:
    """Name and revision: the commit for a hub id; for a folder a digest of file names, sizes and footers."""
    urls = sorted(file.url for described in files.values() for file in described)
    if urls[0].startswith("hf://"):
        return Origin(source, urls[0].split("@")[1].split("/")[0])
    digest = hashlib.sha256()
    for url in urls:
        digest.update(f"{os.path.relpath(url, source)}\0{os.path.getsize(url)}\0".encode() + _footer_bytes(url))
    return Origin(Path(source).name, digest.hexdigest())


def _footer_bytes(path: str) -> bytes:
    """The footer as it is on disk: its length stands in 4 bytes before the closing magic."""
    with open(path, "rb") as file:
        file.seek(-8, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, os.SEEK_END)
        return file.read(length)
