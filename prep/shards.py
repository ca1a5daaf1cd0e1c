"""Writing one shard: a pure function of (source, range of rows, options), so any worker can do any shard.

A shard is a tar of KEY.jpg and KEY.cls, DALI's index beside it, and a record of what it holds. The tar gets
its name last: where it is, the other two are whole.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prep.dataset import REJECTED, Options, Shard
from prep.errors import InputError
from prep.images import StoredImage, UnusableImageError, as_jpeg
from prep.ledger import entry
from prep.source import Item
from prep.store import WORK_FOLDER, Store
from prep.tar import TarWriter, dali_index, index_name

UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass(frozen=True)
class ShardJob:
    """Some rows of a split, the first of them row `start`, to be written as shard `number` in `store`."""

    rows: Iterable[Item]
    start: int
    num_rows: int
    num_classes: int
    options: Options
    split: str
    number: int
    store: Store

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:06d}.tar"

    @property
    def index_name(self) -> str:
        return index_name(self.name)

    @property
    def record_name(self) -> str:
        return f"{WORK_FOLDER}/{self.name}.json"


@dataclass
class Contents:
    """What a shard holds: columns of the sample index (and each image's source row), and the ledger of its rows."""

    columns: dict[str, list[Any]] = field(
        default_factory=lambda: {n: [] for n in ("key", "offset", "size", "label", "width", "height", "sha256", "row")}
    )
    components: list[list[tuple[str, int, int, str]]] = field(default_factory=list)
    ledger: list[dict[str, Any]] = field(default_factory=list)
    source_size_bytes: int = 0

    def record(self, shard: Shard) -> dict[str, Any]:
        """All that closing the split needs of this shard."""
        facts = {"shard": asdict(shard), "source_size_bytes": self.source_size_bytes}
        return {**facts, "columns": self.columns, "ledger": self.ledger}


def write_shard(job: ShardJob) -> None:
    """Write a shard's tar, index and record, each under its name only when it is whole."""
    file = job.store.create(job.name)
    try:
        tar = TarWriter(file)
        contents = _fill(tar, job)
        tar.finish()
        shard = Shard(job.name, len(contents.components), file.size_bytes, tar.composite_sha256)
        if shard.num_images:
            job.store.write(job.index_name, dali_index(contents.components))
        job.store.write(job.record_name, json.dumps(contents.record(shard)).encode())
        if shard.num_images:
            job.store.publish(file, job.name)
    finally:
        file.discard()  # what was not published: a failure, or no row was usable (no reader likes an empty tar)


def _fill(tar: TarWriter, job: ShardJob) -> Contents:
    contents = Contents()
    for row, item in enumerate(job.rows, job.start):
        _check_label(job, row, item)
        try:
            if item.fault:
                raise UnusableImageError(item.fault)
            image = as_jpeg(item.data, job.options)
        except UnusableImageError as reason:
            contents.ledger.append(entry(row, item.name, REJECTED, str(reason)))
            continue
        contents.ledger += [entry(row, item.name, event, reason) for event, reason in image.findings]
        contents.source_size_bytes += len(item.data)
        _add_sample(tar, contents, row, sample_key(row, item.name), image, _label_text(job, item.label))
    return contents


def _add_sample(tar: TarWriter, contents: Contents, row: int, key: str, image: StoredImage, label: str) -> None:
    sha256 = hashlib.sha256(image.data)
    offset = tar.add(f"{key}.jpg", image.data, sha256.digest())
    label_offset = tar.add(f"{key}.cls", label.encode(), hashlib.sha256(label.encode()).digest())
    size = len(image.data)
    contents.components.append([("jpg", offset, size, f"{key}.jpg"), ("cls", label_offset, len(label), f"{key}.cls")])
    values = (key, offset, size, int(label), image.width, image.height, sha256.hexdigest(), row)
    for column, value in zip(contents.columns.values(), values, strict=True):
        column.append(value)


def sample_key(row: int, name: str) -> str:
    """A key unique in its split, safe in any tar and for webdataset (no dot, no slash): row and the source's name."""
    stem = UNSAFE.sub("_", Path(name).stem)[:64]
    return f"{row:08d}-{stem}" if stem else f"{row:08d}"


def _label_text(job: ShardJob, label: int) -> str:
    return str(label).zfill(len(str(job.num_classes - 1)))


def _check_label(job: ShardJob, row: int, item: Item) -> None:
    last = job.num_classes - 1
    if not 0 <= item.label <= last:
        raise InputError(f"row {row} of {job.split} ({item.name}) has label {item.label}, outside 0 to {last}: mend it")
