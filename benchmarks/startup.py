"""`python benchmarks/startup.py --data DIR`: measure the seconds to the first batch of a dataset of ImageNet-1k's size.

DIR's images are listed repeatedly under new keys, and their shards linked under new names, until the dataset has
--images images: the index, the manifest and the number of files are as large as ImageNet's, only the bytes are not.
Each measurement is a separate process that opens the split and then waits for the first batch, alternately at the start
of an epoch and at 90% of it. One JSON record goes to stdout, one line per position to stderr.

With --bucket URL it measures instead the seconds from the command to the first batch: from a folder, and through a
cache from the bucket, to which the dataset is uploaded; the cache is full, or empty. FILE of --out keeps the other
measurement, if it has one.
"""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from record import describe_default_placement, describe_origin, label_source, print_progress, publish, summarize
from reports.reading import read_record

from prep.errors import InputError, run
from prep.files import sha256_of

if TYPE_CHECKING:
    from prep.dataset import Split

WHAT = "startup"
IMAGENET_IMAGES, IMAGES_PER_SHARD = 1_281_167, 2000
LEAST_REPETITIONS = 5
BATCH_SIZE = 64
STAGE = Path(__file__).parents[1] / "prep" / "stage.py"
MOMENTS = {"start": 0.0, "90%": 0.9}  # positions, as shares of an epoch


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/startup.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="prepared dataset whose images are repeated")
    add("--images", type=int, default=IMAGENET_IMAGES, metavar="N", help=f"default: {IMAGENET_IMAGES}")
    add("--repetitions", type=int, default=LEAST_REPETITIONS, help="measurements per position, at least 5 (default: 5)")
    add("--out", type=Path, metavar="FILE", help="also write the record to this file")
    add("--bucket", metavar="URL", help="measure the start from this bucket (s3://bucket/prefix, which must be empty)")
    add("--measure", nargs=2, metavar=("DIR", "SHARE"), help=argparse.SUPPRESS)  # one measurement, in a child process
    add("--measure-command", nargs=2, metavar=("DIR|URL", "CACHE"), help=argparse.SUPPRESS)  # the same
    return parser.parse_args()


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


def measure_start(root: Path, share: float) -> dict[str, float]:
    """Return the seconds to open the split, and from then on to the first batch at a share of the epoch."""
    from loaders import Split, TrainTransform, build_loader  # noqa: PLC0415 - before the clock starts

    started = time.perf_counter()
    split = Split(root, "train")
    opened = time.perf_counter()
    loader = build_loader(split, TrainTransform(), BATCH_SIZE)
    loader.position = int(share * len(split)) // BATCH_SIZE * BATCH_SIZE
    batches = iter(loader)
    next(batches)
    return {"open_seconds": opened - started, "first_batch_seconds": time.perf_counter() - opened}


def run_command(*command: str | Path) -> str:
    """Run a Python script in a new process; return its output.

    Raises:
        InputError: it failed; with its last line.
    """
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2] or f"a measurement ended with status {done.returncode}"
        raise InputError(last.removeprefix("error: "))
    return done.stdout


def measure_in_process(root: Path, share: float) -> dict[str, float]:
    """Run one measurement in a new process, which imports everything before its clock starts."""
    return json.loads(run_command(__file__, "--data", root, "--measure", root, str(share)))


def measure_moments(root: Path, repetitions: int) -> dict[str, Any]:
    """Return a summary of all repetitions for each position; the positions alternate."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in MOMENTS}
    for _ in range(repetitions):
        for name, share in MOMENTS.items():
            runs[name].append(measure_in_process(root, share))
    return {name: {key: summarize([run[key] for run in each]) for key in each[0]} for name, each in runs.items()}


# From a bucket.


def measure_command(root: str, cache: str) -> dict[str, float]:
    """Return the times, in seconds since 1970, at which the split was open and at which the first batch was there."""
    from loaders import TrainTransform, World, build_loader, open_splits  # noqa: PLC0415

    (split,) = open_splits(root, ["train"], cache, World())
    opened = time.time()
    next(iter(build_loader(split, TrainTransform(), BATCH_SIZE)))
    return {"opened": opened, "first_batch": time.time()}


def measure_commands(root: Path, url: str, repetitions: int) -> dict[str, Any]:
    """Return a summary of the seconds since the command for each state of the cache; the states alternate.

    Args:
        root: the dataset, on this machine and below the URL.
    """
    full, empty = root / "full", root / "empty"
    run_command(STAGE, url, "--to", full)
    places = {"a folder": (str(root), ""), "a full cache": (url, str(full)), "an empty cache": (url, str(empty))}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in places}
    for _ in range(repetitions):
        for name, words in places.items():
            shutil.rmtree(empty, ignore_errors=True)
            started = time.time()
            times = json.loads(run_command(__file__, "--data", ".", "--measure-command", *words))
            runs[name].append({f"{moment}_seconds": at - started for moment, at in times.items()})
    return {name: {key: summarize([run[key] for run in each]) for key in each[0]} for name, each in runs.items()}


def upload(root: Path, url: str) -> None:
    """Put the files of a dataset below a URL.

    Raises:
        InputError: there is something.
    """
    from prep.remote import Remote  # noqa: PLC0415

    remote = Remote(url)
    if remote.list():
        raise InputError(f"{url} is not empty: choose another --bucket")
    for path in sorted(root.glob("*/*")):
        remote.put(f"{path.parent.name}/{path.name}", path.resolve())


def measure_bucket(arguments: argparse.Namespace) -> dict[str, Any]:
    """Upload the large dataset, measure; return the part of the record that describes it."""
    from prep.dataset import Split  # noqa: PLC0415

    split = Split(arguments.data, "train")
    with tempfile.TemporaryDirectory(prefix="penstock-") as temporary:
        enlarge(split, arguments.images, Path(temporary))
        upload(Path(temporary), arguments.bucket)
        before = os.getloadavg()[0]
        starts = measure_commands(Path(temporary), arguments.bucket, arguments.repetitions)
        index = Path(temporary, "train", "samples.arrow").stat().st_size
    for name, each in starts.items():
        print_progress(f"{name}: first batch {each['first_batch_seconds']['median']:.2f} s after the command")
    source = split.manifest.source.name
    return {
        "dataset": {"name": source, "label": label_source(source), "num_images": arguments.images},
        "index_bytes": index,
        "load_average": [before, os.getloadavg()[0]],  # of the machine, before and after; its own is 1 to 2
        "starts": starts,
        **describe_origin("benchmarks/startup.py"),
    }


def read_kept(out: Path | None) -> dict[str, Any]:
    """Return the record in a file, of which this measurement replaces its own part; a new one without a file.

    Raises:
        InputError: the file holds something else.
    """
    if out is None or not out.exists():
        return {"what": WHAT}
    record = read_record(out, out.parent)
    if record.what != WHAT:
        raise InputError(f"{out} is a record of {record.what}: choose another --out")
    return record.content


def main() -> None:
    """Write the large dataset, measure, publish the record."""
    arguments = parse_arguments()
    if arguments.measure:
        print(json.dumps(measure_start(Path(arguments.measure[0]), float(arguments.measure[1]))))
        return
    if arguments.measure_command:
        print(json.dumps(measure_command(*arguments.measure_command)))
        return
    if arguments.repetitions < LEAST_REPETITIONS:
        raise InputError(f"--repetitions must be at least {LEAST_REPETITIONS}, got {arguments.repetitions}")
    kept = read_kept(arguments.out)
    if arguments.bucket:
        publish({**kept, "bucket": measure_bucket(arguments)}, arguments.out)
        return

    from prep.dataset import Split  # noqa: PLC0415

    # Measure on the enlarged dataset, in child processes that start this file with --measure.
    split = Split(arguments.data, "train")
    with tempfile.TemporaryDirectory(prefix="penstock-") as temporary:
        enlarge(split, arguments.images, Path(temporary))
        moments = measure_moments(Path(temporary), arguments.repetitions)
    source = split.manifest.source.name
    record = {
        **kept,
        "dataset": {"name": source, "label": label_source(source), "num_images": arguments.images},
        "moments": moments,
        "placement": describe_default_placement(),
        **describe_origin("benchmarks/startup.py"),
    }
    publish(record, arguments.out)
    for name, each in moments.items():
        opened, first = each["open_seconds"]["median"], each["first_batch_seconds"]["median"]
        print_progress(f"{name}: split opened in {opened:.2f} s, first batch after another {first:.2f} s")


if __name__ == "__main__":
    run(main)
