"""Checking one shard, in a worker: its tar against the manifest, the sample index and DALI's index, in one pass.

Damaged bytes make nearly anything of whatever reads them, so that nothing is raised here: all is reported.
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from prep.dataset import Shard
from prep.errors import describe_os_error
from prep.images import UnusableImageError, describe_undecodable
from prep.jpeg import decode
from prep.store import Store
from prep.tar import dali_index, index_name
from prep.tar_damage import describe_damage
from prep.tar_reader import Component, TarSample, TarStream, read_samples
from prep.tar_sample import ANY, Fields, choose

Row = dict[str, Any]


@dataclass(frozen=True)
class ShardCheck:
    """What one shard is held against."""

    store: Store
    shard: Shard
    num_classes: int
    is_adopted: bool
    rows: bytes | None  # its rows of the sample index, in Arrow's IPC format; None where those are damaged
    decoded: frozenset[int]  # which of its rows to decode in full
    fields: Fields = ANY  # which members of its samples were taken

    @property
    def index_name(self) -> str:
        return index_name(self.shard.name)


@dataclass
class ShardReport:
    """What is wrong with a shard, in words; empty where nothing is."""

    tar: str = ""
    index: str = ""
    rows: list[str] = field(default_factory=list)  # where the sample index tells otherwise than a whole tar
    undecodable: list[str] = field(default_factory=list)
    composite_sha256: str = ""  # of the tar as it is
    num_decoded: int = 0


def check_shard(job: ShardCheck) -> ShardReport:
    """Read a shard once, and where it is damaged once more to say what of it."""
    report = ShardReport()
    try:
        if job.store.size(job.shard.name) is None:
            report.tar = "is missing"
        else:
            _check(job, report)
    except ModuleNotFoundError:  # a missing decoder does not mean that the shard is damaged
        raise
    except OSError as error:
        report.tar = report.tar or f"cannot be read ({describe_os_error(error)})"
    except Exception as error:  # an object store's own
        report.tar = report.tar or f"cannot be read ({type(error).__name__}: {error})"
    return report


def _check(job: ShardCheck, report: ShardReport) -> None:
    rows = _read_rows(job.rows)
    with job.store.open(job.shard.name) as file:
        reader = TarStream(file, job.shard.name)
        samples = _compare(job, reader, rows, report)
        reader.ends_in_zeros()  # reads to the end, whatever stopped before it
    report.composite_sha256 = reader.composite_sha256
    if (reader.size_bytes, reader.composite_sha256) != (job.shard.size_bytes, job.shard.composite_sha256):
        report.rows = []
        with job.store.open(job.shard.name) as file:
            num_classes = None if job.is_adopted else job.num_classes
            report.tar = describe_damage(file, reader.size_bytes, job.shard, rows, num_classes)
        return
    index = job.store.read(job.index_name)
    if index is None:
        report.index = "is missing"
    elif index != index_samples(samples):
        report.index = "is not the index of its tar"


def index_samples(samples: Iterable[TarSample]) -> bytes:
    """DALI's index of a tar."""
    return dali_index([sample.index_entries() for sample in samples])


def _read_rows(rows: bytes | None) -> list[Row]:
    return pa.ipc.open_file(pa.BufferReader(rows)).read_all().to_pylist() if rows is not None else []


def _compare(job: ShardCheck, reader: TarStream, rows: list[Row], report: ShardReport) -> list[TarSample]:
    """Hold each sample of a tar against its row; the samples, without their bytes."""
    samples: list[TarSample] = []
    position = {row["offset"]: i for i, row in enumerate(rows)}
    try:
        for sample in read_samples(reader, lambda _: True):
            samples.append(_without_data(sample))
            for component in sample.components:
                if (i := position.pop(component.offset, None)) is not None:
                    _compare_image(job, rows[i], sample, component, report)
                    if i in job.decoded:
                        _decode(rows[i], component, report)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # the reader's own, or the disk's
        report.rows.append(str(error))
    report.rows += [f"{rows[i]['key']} is not in the tar where it should be" for i in position.values()]
    if len(samples) != job.shard.num_images and not job.is_adopted:
        report.rows.append(f"the tar holds {len(samples):,} samples, the manifest says {job.shard.num_images:,}")
    return samples


def _without_data(sample: TarSample) -> TarSample:
    return replace(sample, components=tuple(replace(component, data=None) for component in sample.components))


def _compare_image(job: ShardCheck, row: Row, sample: TarSample, image: Component, report: ShardReport) -> None:
    key = row["key"]
    if image.sha256 != row["sha256"]:
        report.rows.append(f"{key} has another size or sha256 in the tar")
    if not (_is_named(key, sample) if job.is_adopted else image.name == f"{key}.jpg"):
        report.rows.append(f"{key} is named {image.name} in the tar")
    try:
        choice = choose(sample, job.fields)
    except UnusableImageError as error:
        report.rows.append(f"{key} cannot be taken from the tar: {error}")
        return
    if choice.image.offset != image.offset:
        report.rows.append(f"{key} is {image.name}, in the tar {choice.image.name} is to be taken")
    if choice.label != row["label"]:
        report.rows.append(f"{key} has label {row['label']}, in the tar {choice.label}")


def _is_named(key: str, sample: TarSample) -> bool:
    """Whether a row's key is that of an adopted sample; it may have the tar's name in front."""
    return f"/{key}".endswith(f"/{sample.key}")


def _decode(row: Row, image: Component, report: ShardReport) -> None:
    """Decode an image in full, if its bytes are those of its row."""
    if image.sha256 != row["sha256"]:
        return
    report.num_decoded += 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pixels, _ = decode(image.data or b"", "GRAY")  # every code is read, for less than the colours would cost
    except ModuleNotFoundError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything
        report.undecodable.append(f"{row['key']} does not decode ({describe_undecodable(image.data or b'', error)})")
        return
    height, width = pixels.shape[:2]
    if (width, height) != (row["width"], row["height"]):
        report.rows.append(f"{row['key']} is {row['width']}x{row['height']}, decoded {width}x{height}")
