"""The child side of a race, in the process of a reader or a writer: open, measure windows, write, report figures.

`read`, `write` and `write_format` are entries for worker_main.py. Uses the standard library alone, since peers have
separate environments; the libraries are in the files next to this one.
"""

import io
import json
import os
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from worker_main import Answers, Progress, describe_versions, load_entry

SPLIT = "train"  # of all sources and shards
NUM_WRITERS = 2  # processes of a writer that has several
ROWS_PER_GROUP = 100  # of a source's parquet files, as Hugging Face writes them for images
WRITERS_PACKAGES = ["litdata", "mosaicml-streaming", "numpy", "pillow", "pyarrow", "torch", "webdataset"]
MARKS = "PENSTOCK_BENCHMARK_MARKS"  # environment variable with the folder of the timestamps


@dataclass(frozen=True)
class Job:
    """A reader's work: batches of `batch_size` images of `size` pixels from `data`, with `workers`."""

    entry: str  # module:function, a generator: None when it has imported everything, then batches, endlessly
    data: str  # folder with the images in the format that the entry reads
    evaluates: bool  # resize to `resize` and crop the centre, instead of a random resized crop and a flip
    size: int  # of the square output, in pixels
    resize: int  # of the short side before the centre crop, in pixels
    batch_size: int
    workers: int  # processes or threads, depending on the entry
    num_images: int  # in `data`
    warmup: float  # seconds at the start of each window, in which images do not count
    seconds: float  # of each window after that
    packages: list[str]  # packages whose versions are reported
    options: dict[str, Any]  # further options of the entry

    @property
    def shards(self) -> list[str]:
        """The tars of the prepared shards, in order."""
        return [str(path) for path in sorted(Path(self.data, SPLIT).glob("*.tar"))]


# Readers.


def read(fields: dict[str, Any]) -> Answers:
    """Answer with versions when everything is imported, then with the first batch, then with windows.

    A window begins after the warm-up, which is reported as progress, and lasts from the end of one batch to the end of
    another.
    """
    job = Job(**fields)
    batches = load_entry(job.entry)(job)
    next(batches)
    yield {"versions": describe_versions(job.packages)}

    yield _take_first(batches)
    while True:
        _count_images(batches, job.warmup)
        started = time.monotonic()
        yield Progress(None)
        num_images = _count_images(batches, job.seconds)
        yield {"num_images": num_images, "seconds": time.monotonic() - started}


def _take_first(batches: Iterator[Any]) -> dict[str, Any]:
    """Take the first batch; return facts about it, but not the batch, which would count as memory in every window."""
    started = time.monotonic()
    images = next(batches)
    return {
        "first_batch_seconds": time.monotonic() - started,
        "batch": [len(images), *images[0].shape],
        "type": str(images[0].dtype).removeprefix("torch."),
    }


def _count_images(batches: Iterator[Any], seconds: float) -> int:
    """Take batches for at least `seconds`; return the number of their images."""
    started, num_images = time.monotonic(), 0
    while time.monotonic() - started < seconds:
        num_images += len(next(batches))
    return num_images


# The shards that Penstock prepared, from which the other formats are written.


class Sample(NamedTuple):
    """One image of a shard."""

    key: str
    jpeg: bytes
    label: int


def write_format(fields: dict[str, Any]) -> Answers:
    """Write the images of `shards` in the format of a reader's library, into the folder `out`, with `workers`."""
    load_entry(fields["entry"])(fields["shards"], Path(fields["out"]), fields["workers"])
    yield None


def write_folder(shards: list[str], out: Path, workers: int) -> None:
    """Write CLASS/KEY.jpg, as torchvision's ImageFolder and timm read it."""
    for path in shards:
        for sample in read_shard(path):
            file = out / f"{sample.label:04d}" / f"{sample.key}.jpg"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(sample.jpeg)


def read_shard(path: str) -> Iterator[Sample]:
    """Yield the samples of one tar: KEY.jpg, then KEY.cls."""
    with tarfile.open(path) as tar:
        members = iter(tar)
        for image, label in zip(members, members, strict=True):
            yield Sample(image.name.removesuffix(".jpg"), _read_member(tar, image), int(_read_member(tar, label)))


def read_dictionaries(path: str) -> Iterator[dict[str, Any]]:
    """Yield the samples of one tar as dictionaries of the JPEG and its label."""
    for sample in read_shard(path):
        yield {"jpeg": sample.jpeg, "label": sample.label}


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file
    return file.read()


class DecodedShards:
    """The images of some shards as an indexed dataset of Pillow images and labels."""

    def __init__(self, shards: list[str]) -> None:
        self.samples = [sample for path in shards for sample in read_shard(path)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image  # noqa: PLC0415

        sample = self.samples[index]
        return Image.open(io.BytesIO(sample.jpeg)).convert("RGB"), sample.label


# Writers.


def write(job: dict[str, Any]) -> Answers:
    """Answer with versions when the writer is ready, then with the figures of its work.

    The job has the `entry`, the folders `source` and `out`, and `options`. The end of the work is reported as progress.

    seconds: from the first image that any process reads to the end. call_seconds: from the request to the end,
    including worker processes that a writer starts within its call. sync_seconds: the time of os.sync() afterwards.
    start_cpu_seconds: the CPU time before the work: of this process until the request, of others until their first
    image.
    """
    stages = load_entry(job["entry"])(job)
    next(stages)
    yield {"versions": describe_versions(WRITERS_PACKAGES)}

    started, times = time.monotonic(), os.times()
    next(stages)
    ended = time.monotonic()
    yield Progress(None)
    os.sync()
    synced = time.monotonic()
    marks = [json.loads(path.read_text()) for path in Path(os.environ[MARKS]).iterdir()]
    yield {
        "seconds": ended - min(mark["at"] for mark in marks),
        "call_seconds": ended - started,
        "sync_seconds": synced - ended,
        "start_cpu_seconds": sum(times[:4]) + sum(mark["cpu_seconds"] for mark in marks if mark["pid"] != os.getpid()),
        "num_images": next(stages),
        "output_bytes": sum(path.stat().st_size for path in Path(job["out"]).rglob("*") if path.is_file()),
    }


_marked: set[int] = set()  # ids of processes that have a timestamp: a forked worker needs its own


def note_first_image() -> None:
    """Write this process's timestamp. Call it before each image is read; only the first call has an effect.

    The time of every writer counts from the earliest timestamp of its processes. What comes before (imports, the start
    of worker processes) is reported separately.
    """
    if os.getpid() in _marked:
        return
    _marked.add(os.getpid())
    mark = {"pid": os.getpid(), "at": time.monotonic(), "cpu_seconds": time.process_time()}
    Path(os.environ[MARKS], f"{os.getpid()}.json").write_text(json.dumps(mark))


def list_source(job: dict[str, Any]) -> list[str]:
    """Return the source's parquet files, in order."""
    return [str(path) for path in sorted(Path(job["source"]).rglob("*.parquet"))]


def read_parquet(path: str) -> Iterator[tuple[bytes, int]]:
    """Yield the images of a parquet file with their labels, as pairs, which LitData writes faster than dictionaries.

    One row group at a time: the fastest of the simple ways that were tried.
    """
    import pyarrow.parquet as pq  # noqa: PLC0415

    note_first_image()
    for batch in pq.ParquetFile(path).iter_batches(ROWS_PER_GROUP, columns=["image.bytes", "label"]):
        images, labels = batch.column("image").field(0).to_pylist(), batch.column("label").to_pylist()
        yield from zip(images, labels, strict=True)


def count_tars(out: str) -> int:
    """Count the members KEY.jpg of all tars below a folder."""
    found = 0
    for path in Path(out).rglob("*.tar"):
        with tarfile.open(path) as tar:
            found += sum(member.name.endswith(".jpg") for member in tar)
    return found
