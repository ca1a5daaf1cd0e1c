"""`python benchmarks/startup.py --data DIR`: measure the seconds to the first batch of a dataset of ImageNet-1k's size.

DIR's images are listed repeatedly under new keys, and their shards linked under new names, until the dataset has
--images images: the index, the manifest and the number of files are as large as ImageNet's, only the bytes are not.
Each measurement is a separate process that opens the split and then waits for the first batch, alternately at the start
of an epoch and at 90% of it. One JSON record goes to stdout, one line per position to stderr.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from record import describe_default_placement, describe_origin, label_source, print_progress, publish, summarize

from prep.errors import InputError, run
from prep.files import sha256_of

if TYPE_CHECKING:
    from prep.dataset import Split

IMAGENET_IMAGES, IMAGES_PER_SHARD = 1_281_167, 2000
LEAST_REPETITIONS = 5
BATCH_SIZE = 64
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
    add("--measure", nargs=2, metavar=("DIR", "SHARE"), help=argparse.SUPPRESS)  # one measurement, in a child process
    return parser.parse_args()


def enlarge(split: "Split", num_images: int, root: Path) -> None:
    """Write a split of `num_images` rows below `root`, with as many shards, over the files of a small split."""
    import numpy as np  # noqa: PLC0415

    from prep.dataset import MANIFEST, SAMPLES, encode_samples  # noqa: PLC0415

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


def measure_in_process(root: Path, share: float) -> dict[str, float]:
    """Run one measurement in a new process, which imports everything before its clock starts."""
    command = [sys.executable, __file__, "--data", str(root), "--measure", str(root), str(share)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure_moments(root: Path, repetitions: int) -> dict[str, Any]:
    """Return a summary of all repetitions for each position; the positions alternate."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in MOMENTS}
    for _ in range(repetitions):
        for name, share in MOMENTS.items():
            runs[name].append(measure_in_process(root, share))
    return {name: {key: summarize([run[key] for run in each]) for key in each[0]} for name, each in runs.items()}


def main() -> None:
    """Write the large dataset, measure, publish the record."""
    arguments = parse_arguments()
    if arguments.measure:
        print(json.dumps(measure_start(Path(arguments.measure[0]), float(arguments.measure[1]))))
        return
    if arguments.repetitions < LEAST_REPETITIONS:
        raise InputError(f"--repetitions must be at least {LEAST_REPETITIONS}, got {arguments.repetitions}")

    from prep.dataset import Split  # noqa: PLC0415

    # Measure on the enlarged dataset, in child processes that start this file with --measure.
    split = Split(arguments.data, "train")
    with tempfile.TemporaryDirectory(prefix="penstock-") as temporary:
        enlarge(split, arguments.images, Path(temporary))
        moments = measure_moments(Path(temporary), arguments.repetitions)
    source = split.manifest.source.name
    record = {
        "what": "startup",
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
