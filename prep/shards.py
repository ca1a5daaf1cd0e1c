"""Writing one shard: a pure function of (source, range of rows, options), so any worker can do any shard.

A shard is a tar of KEY.jpg and KEY.cls, DALI's index beside it, and a record of what it holds. The tar gets
its name last: where it is, the other two are whole.
"""

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from prep.dataset import InputError, Shard, sync_folder, write_whole
from prep.images import Jpeg, UnusableImageError, as_jpeg
from prep.source import Item

WORK_FOLDER = ".prep"  # in a split's folder while it is being written; gone when it is whole
BLOCK, TAR_RECORD = 512, 10240
BUFFER_BYTES = 1 << 22


@dataclass(frozen=True)
class ShardJob:
    """Some rows of a split, the first of them row `start`, to be written as shard `number` in `folder`."""

    rows: Iterable[Item]
    start: int
    num_rows: int
    num_classes: int
    decode_check: bool
    split: str
    number: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:06d}.tar"

    @property
    def record_path(self) -> Path:
        return self.folder / WORK_FOLDER / f"{self.name}.json"


@dataclass
class Contents:
    """What a shard holds: columns of the sample index, DALI's index lines, and the ledger of its rows."""

    columns: dict[str, list[Any]] = field(
        default_factory=lambda: {n: [] for n in ("key", "offset", "size", "label", "width", "height", "sha256")}
    )
    index_lines: list[str] = field(default_factory=list)
    ledger: list[dict[str, Any]] = field(default_factory=list)


class TarWriter:
    """A plain USTAR file with fixed metadata, hashed while it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.offset, self.sha256 = file, 0, hashlib.sha256()

    def add(self, name: str, data: bytes) -> int:
        """Append a member; the offset of its first byte."""
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._write(member.tobuf(tarfile.USTAR_FORMAT))
        offset = self.offset
        self._write(data)
        self._write(bytes(-len(data) % BLOCK))
        return offset

    def finish(self) -> None:
        """Two blocks of zeros, filled up to a tar record, and everything on disk."""
        self._write(bytes(2 * BLOCK))
        self._write(bytes(-self.offset % TAR_RECORD))
        self.file.flush()
        os.fsync(self.file.fileno())

    def _write(self, data: bytes) -> None:
        self.file.write(data)
        self.sha256.update(data)
        self.offset += len(data)


def write_shard(job: ShardJob) -> None:
    """Write a shard's tar, index and record, each under its name only when it is whole."""
    partial = job.folder / WORK_FOLDER / f"{job.name}.partial"
    with partial.open("wb", buffering=BUFFER_BYTES) as file:
        tar = TarWriter(file)
        contents = _fill(tar, job)
        tar.finish()
    shard = Shard(job.name, len(contents.index_lines), tar.offset, tar.sha256.hexdigest())
    if shard.num_images:
        index = f"v1.2 {shard.num_images}\n" + "".join(line + "\n" for line in contents.index_lines)
        write_whole((job.folder / job.name).with_suffix(".idx"), index.encode())
    record = {"shard": asdict(shard), "columns": contents.columns, "ledger": contents.ledger}
    write_whole(job.record_path, json.dumps(record).encode())
    if shard.num_images:
        os.replace(partial, job.folder / job.name)
        sync_folder(job.folder)
    else:
        partial.unlink()  # every row of it was rejected: no reader likes an empty tar


def _fill(tar: TarWriter, job: ShardJob) -> Contents:
    contents = Contents()
    for row, item in enumerate(job.rows, job.start):
        _check_label(job, row, item)
        key = sample_key(row, item.name)
        try:
            jpeg = as_jpeg(item.data, job.decode_check)
        except UnusableImageError as reason:
            contents.ledger.append(_entry(row, item, "rejected", str(reason)))
            continue
        if jpeg.note:
            contents.ledger.append(_entry(row, item, "converted", jpeg.note))
        _add_sample(tar, contents, key, jpeg, _label_text(job, item.label))
    return contents


def _add_sample(tar: TarWriter, contents: Contents, key: str, jpeg: Jpeg, label: str) -> None:
    offset = tar.add(f"{key}.jpg", jpeg.data)
    label_offset = tar.add(f"{key}.cls", label.encode())
    size = len(jpeg.data)
    contents.index_lines.append(f"jpg {offset} {size} {key}.jpg cls {label_offset} {len(label)} {key}.cls")
    sha256 = hashlib.sha256(jpeg.data).hexdigest()
    values = (key, offset, size, int(label), jpeg.width, jpeg.height, sha256)
    for column, value in zip(contents.columns.values(), values, strict=True):
        column.append(value)


def sample_key(row: int, name: str) -> str:
    """A key unique in its split, safe in any tar and for webdataset (no dot, no slash): row and the source's name."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(name).stem)[:64]
    return f"{row:08d}-{stem}" if stem else f"{row:08d}"


def _label_text(job: ShardJob, label: int) -> str:
    return str(label).zfill(len(str(job.num_classes - 1)))


def _check_label(job: ShardJob, row: int, item: Item) -> None:
    last = job.num_classes - 1
    if not 0 <= item.label <= last:
        raise InputError(f"row {row} of {job.split} ({item.name}) has label {item.label}, outside 0 to {last}: mend it")


def _entry(row: int, item: Item, event: str, reason: str) -> dict[str, Any]:
    return {"row": row, "name": item.name, "event": event, "reason": reason}
