"""Hugging Face datasets in parquet, in a folder or on the hub: `datasets` resolves their files.

It never touches an image (its EXIF handling fails on some of ImageNet's): rows are read by `prep.parquet` as
encoded bytes, by range, so the dataset is never copied to disk whole.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import datasets
import fsspec
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.exceptions import DatasetNotFoundError

from prep.dataset import InputError, Origin
from prep.parquet import ParquetRows


@dataclass(frozen=True)
class ParquetFile:
    """One parquet file of a split."""

    url: str
    num_rows: int
    lowest_label: int
    highest_label: int


@dataclass(frozen=True)
class ParquetSource:
    """A Hugging Face dataset with an image and a label column."""

    origin: Origin
    class_names: tuple[str, ...]
    image_column: str
    label_column: str
    files: dict[str, tuple[ParquetFile, ...]]

    @property
    def num_rows(self) -> dict[str, int]:
        return {split: sum(file.num_rows for file in files) for split, files in self.files.items()}

    def check(self, split: str) -> None:
        last = len(self.class_names) - 1
        for file in self.files[split]:
            for label in (file.lowest_label, file.highest_label):
                if file.num_rows and not 0 <= label <= last:
                    raise InputError(f"{file.url} holds label {label}, outside the classes 0 to {last}: mend it")

    def rows(self, split: str, start: int, stop: int) -> "ParquetRows":
        spans = []
        for file in self.files[split]:
            if start < file.num_rows and stop > 0:
                spans.append((file.url, max(start, 0), min(stop, file.num_rows)))
            start, stop = start - file.num_rows, stop - file.num_rows
        return ParquetRows(tuple(spans), self.image_column, self.label_column)


def open_dataset(source: str) -> ParquetSource:
    """Open a local folder or a hub dataset: its splits, files, row counts and classes, from the footers alone.

    Raises:
        InputError: it is not there, gated, unreachable, damaged, unlabelled, or no image classification.
    """
    data_files = _resolve(source)
    urls = [(split, str(url)) for split, files in data_files.items() for url in files]
    with ThreadPoolExecutor(16) as pool:
        footers = dict(zip([url for _, url in urls], pool.map(_footer, [url for _, url in urls]), strict=True))
    image_column, label_column, names = _columns(source, next(iter(footers.values())).schema.to_arrow_schema())
    for url, footer in footers.items():
        _check_columns(url, footer.schema.to_arrow_schema(), image_column, label_column)
    files = {
        split: tuple(_describe(url, footers[url], label_column) for s, url in urls if s == split)
        for split in data_files
    }
    class_names = names or _numbered_classes(files)
    return ParquetSource(_origin(source, files), class_names, image_column, label_column, files)


def _numbered_classes(files: dict[str, tuple[ParquetFile, ...]]) -> tuple[str, ...]:
    """Class names for labels that are bare integers: the integers, up to the highest."""
    highest = max(file.highest_label for described in files.values() for file in described)
    return tuple(str(label) for label in range(highest + 1))


def _resolve(source: str) -> dict[str, list[str]]:
    """Split -> parquet files, by the rules of `datasets`; a hub id is pinned to its present commit."""
    huggingface_hub.logging.set_verbosity_error()  # its retries are no news: one line says what failed
    try:
        builder = datasets.load_dataset_builder(source)
    except Exception as error:
        raise InputError(_explain(source, error)) from error
    files = {str(split): list(urls) for split, urls in (builder.config.data_files or {}).items()}
    others = [url for urls in files.values() for url in urls if not str(url).endswith(".parquet")]
    if others or not files:
        raise InputError(
            f"{source} has no parquet files but {', '.join(map(str, others[:1])) or 'nothing'}: convert it"
        )
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


def _footer(url: str) -> pq.FileMetaData:
    try:
        with fsspec.open(url, "rb") as opened:
            return pq.ParquetFile(opened).metadata
    except pa.ArrowInvalid as error:
        raise InputError(f"{url} is no whole parquet file ({error}): download it again") from error
    except Exception as error:  # the hub's HTTP client has its own kinds, no OSErrors
        if not url.startswith("hf://"):
            raise
        raise InputError(_explain(url.split("@", maxsplit=1)[0].removeprefix("hf://datasets/"), error)) from error


def _columns(source: str, schema: pa.Schema) -> tuple[str, str, tuple[str, ...]]:
    """The image column, the label column and the class names (empty where the labels are bare integers)."""
    features = datasets.Features.from_arrow_schema(schema)
    images = [name for name, f in features.items() if isinstance(f, datasets.Image)] or [
        name for name in ("image", "img") if name in features
    ]
    labels = [name for name, f in features.items() if isinstance(f, datasets.ClassLabel)] or [
        name for name in ("label", "labels", "fine_label") if name in features
    ]
    if not images or not labels:
        raise InputError(f"{source} has columns {', '.join(features)}: an image and a label column are needed")
    names = getattr(features[labels[0]], "names", None) or ()
    return images[0], labels[0], tuple(names)


def _check_columns(url: str, schema: pa.Schema, image_column: str, label_column: str) -> None:
    if not {image_column, label_column} <= set(schema.names):
        raise InputError(f"{url} has columns {', '.join(schema.names)}, not {image_column} and {label_column}: mend it")
    if not pa.types.is_integer(schema.field(label_column).type):
        found = schema.field(label_column).type
        raise InputError(f"{url} has labels of type {found}: cast column {label_column} to ClassLabel or integers")


def _describe(url: str, metadata: pq.FileMetaData, label_column: str) -> ParquetFile:
    """Row count and label range of a file: from its footer's statistics where it has them, else from the column."""
    leaf = next(i for i in range(metadata.num_columns) if metadata.schema.column(i).path == label_column)
    statistics = [metadata.row_group(g).column(leaf).statistics for g in range(metadata.num_row_groups)]
    if all(s is not None and s.has_min_max and s.null_count == 0 for s in statistics):
        labels = [label for s in statistics for label in (s.min, s.max)]
    else:
        with fsspec.open(url, "rb") as opened:
            labels = pq.ParquetFile(opened).read([label_column]).column(0).to_pylist()
        if None in labels:
            raise InputError(f"{url} has {labels.count(None)} rows without a label: remove them")
    return ParquetFile(url, metadata.num_rows, min(labels, default=0), max(labels, default=0))


def _origin(source: str, files: dict[str, tuple[ParquetFile, ...]]) -> Origin:
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
