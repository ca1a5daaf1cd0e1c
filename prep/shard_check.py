"""Check one shard, in a worker: compare its tar with the manifest, the sample index and the files next to it.

Damaged bytes can make any reader raise any error, so nothing is raised here: everything is reported. If a tar is
damaged, `describe_damage` reads it again and says which images are affected, else which byte outside of the images.
"""

import hashlib
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

import pyarrow as pa

from prep.dataset import Shard
from prep.errors import InputError, describe_os_error
from prep.files import sha256_of
from prep.images import UnusableImageError, describe_undecodable
from prep.jpeg import decode
from prep.segment_check import compare_segments
from prep.segments import Segments, find_segments, segments_name
from prep.store import Store
from prep.tar import (
    BLOCK,
    Component,
    TarSample,
    TarStream,
    dali_index,
    index_name,
    member_header,
    read_samples,
)
from prep.tar_sample import ANY, Fields, choose_members

MOST_NAMED = 5  # damaged images in a line
Row = dict[str, Any]  # of the sample index
Piece = tuple[int, bytes, str]  # offset in the tar, the bytes that should be there, and what they are


@dataclass(frozen=True)
class ShardCheck:
    """One shard to check, and what to compare it with."""

    store: Store
    shard: Shard
    num_classes: int
    is_adopted: bool
    rows: bytes | None  # its rows of the sample index, in Arrow's IPC format; None if the index is damaged
    decoded: frozenset[int]  # which of its rows to decode in full
    fields: Fields = ANY  # which members of its samples were chosen

    @property
    def index_name(self) -> str:
        return index_name(self.shard.name)

    @property
    def segments_name(self) -> str:
        return segments_name(self.shard.name)


@dataclass
class ShardReport:
    """The faults of a shard, in words; all empty if there are none."""

    tar: str = ""
    index: str = ""
    segments: str = ""  # is damaged or missing
    contradiction: str = ""  # undamaged segments and an undamaged tar contradict each other
    rows: list[str] = field(default_factory=list)  # the sample index contradicts an undamaged tar
    undecodable: list[str] = field(default_factory=list)
    composite_sha256: str = ""  # of the tar as it was read
    num_decoded: int = 0


def check_shard(job: ShardCheck) -> ShardReport:
    """Read a shard once, and a second time if it is damaged, to say which part of it."""
    report = ShardReport()
    try:
        if job.store.size(job.shard.name) is None:
            report.tar = "is missing"
        else:
            _check_files(job, report)
    except ModuleNotFoundError:  # a missing decoder does not mean that the shard is damaged
        raise
    except OSError as error:
        report.tar = report.tar or f"cannot be read ({describe_os_error(error)})"
    except Exception as error:  # an object store's own
        report.tar = report.tar or f"cannot be read ({type(error).__name__}: {error})"
    return report


def _check_files(job: ShardCheck, report: ShardReport) -> None:
    # Compare the samples with the rows of the index, and hash the tar.
    rows = _read_rows(job.rows)
    segments: list[Segments | None] = [None] * len(rows)
    with job.store.open(job.shard.name) as file:
        reader = TarStream(file, job.shard.name)
        samples = _compare_samples(job, reader, rows, segments, report)
        reader.ends_in_zeros()  # reads to the end, wherever the comparison stopped
    report.composite_sha256 = reader.composite_sha256

    # A damaged tar explains all differences from the rows: describe the damage instead of them.
    if (reader.size_bytes, reader.composite_sha256) != (job.shard.size_bytes, job.shard.composite_sha256):
        report.rows = []
        with job.store.open(job.shard.name) as file:
            num_classes = None if job.is_adopted else job.num_classes
            report.tar = describe_damage(file, reader.size_bytes, job.shard, rows, num_classes)
        return

    # The tar is undamaged, so the files next to it can be compared with it: DALI's index, and the segments.
    index, absence = _read_next_to(job, job.index_name)
    if index is None:
        report.index = absence
    elif index != index_samples(samples):
        report.index = "is not the index of its tar"
    if job.shard.segments_sha256:
        _check_segments(job, rows, segments, report)


def _read_next_to(job: ShardCheck, name: str) -> tuple[bytes | None, str]:
    """Return the content of a file next to the tar, or None; and in words, why it is missing."""
    try:
        return job.store.read(name), "is missing"
    except (OSError, InputError) as error:  # of this file: the tar was read, and is undamaged
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        return None, f"cannot be read ({reason})"


def _check_segments(job: ShardCheck, rows: list[Row], segments: list[Segments | None], report: ShardReport) -> None:
    # Without the sample index it is not known which images of the tar are the split's.
    digest = job.shard.segments_sha256
    content, absence = _read_next_to(job, job.segments_name)
    if job.rows is None:
        if content is None:
            report.segments = absence
        elif sha256_of(content) != digest:
            report.segments = "does not match its manifest"
        return
    keys = [row["key"] for row in rows]
    wrong, can_be_written = compare_segments(content, digest, segments, keys, absence)
    if can_be_written:
        report.segments = wrong
    else:
        report.contradiction = wrong


def index_samples(samples: Iterable[TarSample]) -> bytes:
    """Return DALI's index of a tar with these samples."""
    return dali_index([sample.index_entries() for sample in samples])


def _read_rows(rows: bytes | None) -> list[Row]:
    return pa.ipc.open_file(pa.BufferReader(rows)).read_all().to_pylist() if rows is not None else []


def _compare_samples(
    job: ShardCheck, reader: TarStream, rows: list[Row], segments: list[Segments | None], report: ShardReport
) -> list[TarSample]:
    """Compare each sample of a tar with its row; return the samples without their data.

    Args:
        segments: is filled with those of the rows' images, if the split has them.
    """
    samples: list[TarSample] = []
    unmatched = {row["offset"]: i for i, row in enumerate(rows)}
    try:
        for sample in read_samples(reader, lambda _: True):
            samples.append(_without_data(sample))
            for component in sample.components:
                if (i := unmatched.pop(component.offset, None)) is not None:
                    _compare_image(job, rows[i], sample, component, report)
                    if job.shard.segments_sha256:
                        segments[i] = find_segments(component.data or b"")
                    if i in job.decoded:
                        _check_decoding(rows[i], component, report)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # the reader's own, or the disk's
        report.rows.append(str(error))
    report.rows += [f"{rows[i]['key']} is not in the tar where it should be" for i in unmatched.values()]
    if len(samples) != job.shard.num_images and not job.is_adopted:
        report.rows.append(f"the tar holds {len(samples):,} samples, the manifest says {job.shard.num_images:,}")
    return samples


def _without_data(sample: TarSample) -> TarSample:
    return replace(sample, components=tuple(replace(component, data=None) for component in sample.components))


def _compare_image(job: ShardCheck, row: Row, sample: TarSample, image: Component, report: ShardReport) -> None:
    """Compare an image's digest, name and label with its row, and check that it is the image to choose."""
    # Digest and name.
    key = row["key"]
    if image.sha256 != row["sha256"]:
        report.rows.append(f"{key} has another size or sha256 in the tar")
    if not (_has_key(sample, key) if job.is_adopted else image.name == f"{key}.jpg"):
        report.rows.append(f"{key} is named {image.name} in the tar")

    # The choice of image and label that the tar's members give.
    try:
        choice = choose_members(sample, job.fields)
    except UnusableImageError as error:
        report.rows.append(f"{key} is not usable in the tar: {error}")
        return
    if choice.image.offset != image.offset:
        report.rows.append(f"{key} is {image.name}, but the image of this sample is {choice.image.name}")
    if choice.label != row["label"]:
        report.rows.append(f"{key} has label {row['label']}, in the tar {choice.label}")


def _has_key(sample: TarSample, key: str) -> bool:
    """Check whether a row's key is that of an adopted sample; the tar's name may precede it."""
    return f"/{key}".endswith(f"/{sample.key}")


def _check_decoding(row: Row, image: Component, report: ShardReport) -> None:
    """Decode an image in full, if its bytes are those of its row."""
    if image.sha256 != row["sha256"]:
        return
    report.num_decoded += 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Grey reads every code of the JPEG too, and costs less than the colours.
            pixels, _ = decode(image.data or b"", "GRAY")
    except ModuleNotFoundError:
        raise
    except Exception as error:  # Pillow's decoders may raise any error
        report.undecodable.append(f"{row['key']} does not decode ({describe_undecodable(image.data or b'', error)})")
        return
    height, width = pixels.shape[:2]
    if (width, height) != (row["width"], row["height"]):
        report.rows.append(f"{row['key']} is {row['width']}x{row['height']}, decoded {width}x{height}")


# Damage.


def describe_damage(file: BinaryIO, size_bytes: int, shard: Shard, rows: list[Row], num_classes: int | None) -> str:
    """Return in words how a tar of `size_bytes` differs from the manifest's `shard`.

    Args:
        rows: the shard's rows of the sample index; empty if the index is damaged.
        num_classes: of a tar that Penstock wrote, so that every byte of it is known; None for an adopted tar.
    """
    # A shorter file has lost the images after its end.
    lost = [row["key"] for row in rows if row["offset"] + row["size"] > size_bytes]
    if size_bytes < shard.size_bytes:
        of_images = f": {len(lost):,} of {len(rows):,} images are lost, from {lost[0]} on" if lost else ""
        return f"is cut short at byte {size_bytes:,} of {shard.size_bytes:,}{of_images}"

    # Otherwise look for changed images, then for changes outside of them.
    images = _describe_changed_images(file, rows)
    if size_bytes > shard.size_bytes:
        return f"has {size_bytes:,} bytes, not {shard.size_bytes:,}{' and ' if images else ''}{images}"
    if images or not rows:
        return images or "does not match the sha256 of its manifest"
    return f"{_describe_changed_framing(file, shard, rows, num_classes)}; no image is damaged"


def _describe_changed_images(file: BinaryIO, rows: list[Row]) -> str:
    changed = [row["key"] for row in rows if _read_digest(file, row) != row["sha256"]]
    more = ", ..." if len(changed) > MOST_NAMED else ""
    named = ", ".join(changed[:MOST_NAMED]) + more
    return f"has other bytes in {len(changed):,} of {len(rows):,} images ({named})" if changed else ""


def _describe_changed_framing(file: BinaryIO, shard: Shard, rows: list[Row], num_classes: int | None) -> str:
    for offset, expected, meaning in _framing(rows, shard.size_bytes, num_classes) if num_classes else ():
        file.seek(offset)
        found = file.read(len(expected))
        if found != expected:
            first = next(i for i, byte in enumerate(expected) if found[i : i + 1] != bytes([byte]))
            return f"has another byte {offset + first:,}, in {meaning}"
    return "has other bytes in a header, another member or the padding"


def _read_digest(file: BinaryIO, row: Row) -> bytes:
    file.seek(row["offset"])
    return hashlib.sha256(file.read(row["size"])).digest()


def _framing(rows: list[Row], size_bytes: int, num_classes: int) -> Iterator[Piece]:
    """Yield everything that `prep.tar.TarWriter` writes around the images of a shard."""
    width = len(str(num_classes - 1))  # digits of a label
    end = 0
    for row in rows:
        offset, size, name, label = row["offset"], row["size"], f"{row['key']}.jpg", f"{row['key']}.cls"
        yield offset - BLOCK, member_header(name.encode(), size), f"the header of {name}"
        yield offset + size, bytes(-size % BLOCK), f"the padding after {name}"
        after = offset + size + -size % BLOCK
        yield after, member_header(label.encode(), width), f"the header of {label}"
        yield after + BLOCK, str(row["label"]).zfill(width).encode().ljust(BLOCK, b"\0"), f"{label} or its padding"
        end = after + 2 * BLOCK
    yield end, bytes(size_bytes - end), "the padding at its end"
