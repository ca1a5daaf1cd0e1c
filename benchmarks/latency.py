"""Measure latencies: of the first batch of a dataset of ImageNet's size, and of an answer of the app."""

import dataclasses
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Children import this file before their clocks start or while they run: the tables and tyro are imported in main alone.
from record import describe_default_placement, describe_origin, label_source, summarize
from reports.records import CHECKOUT, read_record
from worker import FailedError, ask_once, last_line

from prep.errors import InputError, run
from prep.files import sha256_of

if TYPE_CHECKING:
    from worker_main import Answers

    from prep.dataset import Split
    from serve.artifact import Served
    from serve.cam import GradCam

SCRIPT = "benchmarks/latency.py"
IMAGENET_IMAGES, IMAGES_PER_SHARD = 1_281_167, 2000
BATCH_SIZE = 64
MOMENTS = {"start": 0.0, "90%": 0.9}  # positions, as shares of an epoch
LONGEST_SECONDS = 3600  # of one measurement, which may fetch a large index from a slow bucket
WARMUP = 2  # answers of the app that are not counted
NUM_CLASSES = 1000
LIMIT_SECONDS = 1.0  # the longest answer that the app promises
Measure = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class FirstBatch:
    """Measure the seconds to the first batch of a dataset of ImageNet-1k's size.

    The images of --data are listed repeatedly under new keys, and their shards linked under new names, until the
    dataset has --images images: the index, the manifest and the number of files are as large as ImageNet's, only the
    bytes are not. Each measurement is a separate process that opens the split and then waits for the first batch,
    alternately at the start of an epoch and at 90% of it.

    With --bucket it measures instead the seconds from the command to the first batch: from a folder, and through a
    cache from the bucket, to which the dataset is uploaded; the cache is full, or empty. The file of --out keeps the
    other measurement, if it has one.
    """

    data: Path  # prepared dataset whose images are repeated
    images: int = IMAGENET_IMAGES  # of the large dataset
    repetitions: int = 5  # measurements per position, at least 5
    out: Path | None = None  # write the record to this file
    bucket: str = ""  # measure the start from this bucket (s3://bucket/prefix, which must be empty)


@dataclass(frozen=True)
class App:
    """Measure the seconds from a file to the complete answer of serve/app.py, on the CPU.

    The network is untrained, since it computes as long as a trained one. The picture is generated, as large as a
    photograph and as hard to decode as noise. Each repetition opens and decodes the file, computes the five most likely
    classes with a map for each, and writes the page's HTML.
    """

    model: str = "resnet50d"  # name of a timm model; the default is the app's
    size: int = 224  # input size in pixels
    photo: tuple[int, int] = (4000, 3000)  # width and height of the picture in pixels, those of a phone's photograph
    repetitions: int = 9  # timed answers, at least 5
    out: Path | None = None  # write the record to this file


def measure_in_turns(measurements: dict[str, Measure], repetitions: int) -> dict[str, dict[str, Any]]:
    """Take all measurements once per repetition; return a summary of each of their figures."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in measurements}
    for _ in range(repetitions):
        for name, measure in measurements.items():
            runs[name].append(measure())
    return {name: {key: summarize([run[key] for run in each]) for key in each[0]} for name, each in runs.items()}


# The first batch.


def measure_first_batch(options: FirstBatch) -> dict[str, Any]:
    """Write the large dataset and measure; return the record, with the other measurement in the file of --out."""
    from prep.dataset import Split  # noqa: PLC0415

    kept = read_kept(options.out)
    split = Split(options.data, "train")
    source = split.manifest.source.name
    dataset = {"name": source, "label": label_source(source), "num_images": options.images}
    with tempfile.TemporaryDirectory(prefix="penstock-") as temporary:
        root = Path(temporary)
        enlarge(split, options.images, root)
        if options.bucket:
            found = {"dataset": dataset, **measure_bucket(root, options.bucket, options.repetitions)}
            return {**kept, "bucket": found | describe_origin(SCRIPT)}
        jobs = {name: {"root": str(root), "share": share} for name, share in MOMENTS.items()}
        opening = partial(ask_once, "latency:time_opening", limit_seconds=LONGEST_SECONDS)
        moments = measure_in_turns({name: partial(opening, job) for name, job in jobs.items()}, options.repetitions)
    placement = describe_default_placement()
    return {**kept, "dataset": dataset, "moments": moments, "placement": placement, **describe_origin(SCRIPT)}


def read_kept(out: Path | None) -> dict[str, Any]:
    """Return the record in a file, of which a measurement replaces its own part; a new one without a file.

    Raises:
        InputError: the file holds something else.
    """
    if out is None or not out.exists():
        return {"what": "startup"}
    record = read_record(out, out.parent)
    if record.what != "startup":
        raise InputError(f"{out} is a record of {record.what}: choose another --out")
    return record.content


def enlarge(split: "Split", num_images: int, root: Path) -> None:
    """Write a split of `num_images` rows below `root`, with as many shards, over the files of a small split."""
    import numpy as np  # noqa: PLC0415

    from prep.dataset import LEDGER, MANIFEST, SAMPLES, encode_samples  # noqa: PLC0415
    from prep.segments import segments_name  # noqa: PLC0415

    folder = root / "train"
    folder.mkdir()

    # Link the small split's shards under new names: a multiple of their number, so that every copy is complete.
    num_shards = -(-num_images // IMAGES_PER_SHARD)
    few = len(split.manifest.shards)
    shards = [
        dataclasses.replace(split.manifest.shards[i % few], name=f"train-{i:06d}.tar")
        for i in range(-(-num_shards // few) * few)
    ]
    for i, shard in enumerate(shards):
        (folder / shard.name).symlink_to(split.shard_paths[i % few].resolve())
        if shard.segments_sha256:
            (folder / segments_name(shard.name)).symlink_to(split.segments_path(i % few).resolve())

    # Repeat the rows of the index; each repetition refers to the next copy of the shards.
    rows_N = np.arange(num_images) % len(split)
    copies_N = np.arange(num_images) // len(split) % (len(shards) // few)
    columns: dict[str, Any] = {
        name: split.column(name)[rows_N] for name in ("offset", "size", "label", "width", "height")
    }
    columns["key"] = [f"{i:08d}" for i in range(num_images)]
    columns["shard"] = (split.column("shard")[rows_N] + few * copies_N).astype(np.int32)
    columns["sha256"] = split.samples.column("sha256").take(rows_N).combine_chunks()

    # Write the index, and a manifest with its digest.
    index = encode_samples(columns)
    (folder / SAMPLES).write_bytes(index)
    facts = {"num_images": num_images, "shards": tuple(shards), "samples_sha256": sha256_of(index)}
    (folder / MANIFEST).write_text(dataclasses.replace(split.manifest, **facts).to_json())
    (folder / LEDGER).symlink_to((split.folder / LEDGER).resolve())


def time_opening(job: dict[str, Any]) -> "Answers":
    """Yield the seconds to open the split, and from then on to the first batch at a share of the epoch."""
    from loaders import Split, TrainTransform, build_loader  # noqa: PLC0415 (before the clock starts)

    started = time.perf_counter()
    split = Split(Path(job["root"]), "train")
    opened = time.perf_counter()
    loader = build_loader(split, TrainTransform(), BATCH_SIZE)
    loader.position = int(job["share"] * len(split)) // BATCH_SIZE * BATCH_SIZE
    batches = iter(loader)  # kept, because closing it is not counted
    next(batches)
    yield {"open_seconds": opened - started, "first_batch_seconds": time.perf_counter() - opened}


def measure_bucket(root: Path, url: str, repetitions: int) -> dict[str, Any]:
    """Upload a dataset to a bucket; measure the start from the folder, and from the bucket through a cache.

    Raises:
        InputError: there is something in the bucket.
    """
    from prep.remote import Remote  # noqa: PLC0415

    remote = Remote(url)
    if remote.list():
        raise InputError(f"{url} is not empty: choose another --bucket")
    for path in sorted(root.glob("*/*")):
        remote.put(f"{path.parent.name}/{path.name}", path.resolve())
    before = os.getloadavg()[0]

    # Fill the one cache; the other one is emptied before each measurement.
    full, empty = root / "full", root / "empty"
    command = [sys.executable, str(CHECKOUT / "prep" / "stage.py"), url, "--to", str(full)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FailedError(last_line(done.stderr))
    places = {"a folder": (str(root), ""), "a full cache": (url, str(full)), "an empty cache": (url, str(empty))}
    commands = {name: partial(measure_command, *words, empty) for name, words in places.items()}
    starts = measure_in_turns(commands, repetitions)
    return {
        "index_bytes": (root / "train" / "samples.arrow").stat().st_size,
        "load_average": [before, os.getloadavg()[0]],  # of the machine, before and after; its own is 1 to 2
        "starts": starts,
    }


def measure_command(root: str, cache: str, empty: Path) -> dict[str, float]:
    """Return the seconds from the start of a new process to the open split and to the first batch.

    Args:
        empty: the cache that is deleted before.
    """
    shutil.rmtree(empty, ignore_errors=True)
    started = time.time()
    times = ask_once("latency:tell_times", {"root": root, "cache": cache}, LONGEST_SECONDS)
    return {f"{moment}_seconds": at - started for moment, at in times.items()}


def tell_times(job: dict[str, Any]) -> "Answers":
    """Yield the times, in seconds since 1970, at which the split was open and at which the first batch was there."""
    from loaders import TrainTransform, World, build_loader, open_splits  # noqa: PLC0415

    (split,) = open_splits(job["root"], ["train"], job["cache"], World())
    opened = time.time()
    batches = iter(build_loader(split, TrainTransform(), BATCH_SIZE))  # kept, because closing it is not counted
    next(batches)
    yield {"opened": opened, "first_batch": time.time()}


# The app.


def measure_app(options: App) -> dict[str, Any]:
    """Build the network, time its answers to a generated photograph; return the record."""
    # These imports cost seconds: --help and a refused flag must not wait for them.
    import torch  # noqa: PLC0415

    from serve.app.answer import make_cam  # noqa: PLC0415
    from serve.artifact import Served  # noqa: PLC0415
    from serve.preprocess import Preprocessing  # noqa: PLC0415
    from serve.weights import build_network  # noqa: PLC0415

    # Build the network and its preprocessing: the usual resize to 8/7 of the crop, as 256 for 224.
    torch.manual_seed(0)
    model = build_network(options.model, NUM_CLASSES).eval()
    preprocessing = Preprocessing(options.size * 8 // 7, options.size)
    preprocessing.validate()
    served = Served(model, options.model, NUM_CLASSES, preprocessing)
    cam = make_cam(served)

    with tempfile.TemporaryDirectory(prefix="penstock-") as temporary:
        path = Path(temporary) / "photo.jpg"
        write_photo(options.photo, path)
        photo = {"pixels": list(options.photo), "size_bytes": path.stat().st_size}
        answers = {"app": partial(time_answer, served, cam, path)}
        measure_in_turns(answers, WARMUP)
        timed = measure_in_turns(answers, options.repetitions)["app"]
    return {
        "what": "serving",
        "model": {"name": options.model, "size": options.size, "num_classes": NUM_CLASSES, "weights": "untrained"},
        "photo": photo,
        **timed,
        "limit_seconds": LIMIT_SECONDS,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "threads": torch.get_num_threads(),
        **describe_origin(SCRIPT),
    }


def write_photo(size: tuple[int, int], path: Path) -> None:
    """Write a JPEG of soft noise of (width, height) pixels, the same after the same torch seed.

    It has about one byte per four pixels, as photographs of cameras have.
    """
    import torch  # noqa: PLC0415
    from PIL import Image  # noqa: PLC0415

    noise = Image.frombytes("L", (512, 512), torch.rand(512 * 512).mul(255).byte().numpy().tobytes())
    noise.resize(size, Image.Resampling.BICUBIC).convert("RGB").save(path, "JPEG", quality=92)


def time_answer(served: "Served", cam: "GradCam", path: Path) -> dict[str, float]:
    """Return the seconds of one answer: to the decoded picture, from there to the last map, and in total with HTML.

    Also returns the bytes of the HTML, which the visitor's browser receives.
    """
    from serve.app.answer import answer_photo  # noqa: PLC0415
    from serve.app.page import write_answer  # noqa: PLC0415
    from serve.app.uploads import open_photo  # noqa: PLC0415

    started = time.perf_counter()
    photo = open_photo(path)
    opened = time.perf_counter()
    found = answer_photo(served, cam, photo)
    answered = time.perf_counter()
    html = write_answer(found, answered - started)
    seconds = {
        "decode_seconds": opened - started,
        "answer_seconds": answered - opened,
        "whole_seconds": time.perf_counter() - started,
    }
    return {**seconds, "answer_bytes": len(html.encode())}


def main() -> None:
    """Measure, publish the record."""
    from options import check_outputs, check_repetitions, parse_options  # noqa: PLC0415
    from reports.kinds import publish  # noqa: PLC0415

    options: FirstBatch | App = parse_options(FirstBatch | App, SCRIPT, __doc__)  # pyright: ignore
    check_repetitions(options.repetitions)
    check_outputs(options.out)
    record = measure_first_batch(options) if isinstance(options, FirstBatch) else measure_app(options)
    publish(record, options.out)


if __name__ == "__main__":
    run(main)
