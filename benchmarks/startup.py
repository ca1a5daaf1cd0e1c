"""`python benchmarks/startup.py --data DIR`: seconds to the first batch of a dataset as large as ImageNet-1k.

DIR's images are indexed again and again under new keys, their shards linked under new names, until there are --images
of them: the index, the manifest and the files are as many as ImageNet's, the bytes are not. Each measurement is a
process of its own, at the start of an epoch and at 90% of it in turn: opening the split, and then the first batch.
One JSON record goes to stdout, a line for people to stderr.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from record import describe_default_placement, describe_origin, label_source, publish, say, summarize

from loaders import Split, TrainTransform, build_loader
from prep.dataset import MANIFEST, SAMPLES, encode_samples
from prep.errors import InputError, exit_with
from prep.files import sha256_of

IMAGENET_IMAGES, IMAGES_PER_SHARD = 1_281_167, 2000
LEAST_REPETITIONS = 5
BATCH_SIZE = 64
MOMENTS = {"start": 0.0, "90%": 0.9}  # shares of an epoch


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/startup.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="a prepared dataset to take images from")
    add("--images", type=int, default=IMAGENET_IMAGES, metavar="N", help=f"default: {IMAGENET_IMAGES}")
    add("--repetitions", type=int, default=LEAST_REPETITIONS, help="default, and least: 5")
    add("--out", type=Path, metavar="FILE", help="write the record here too")
    add("--measure", nargs=2, metavar=("DIR", "SHARE"), help=argparse.SUPPRESS)  # in a process of its own
    return parser.parse_args()


def enlarge(split: Split, num_images: int, root: Path) -> None:
    """A split of `num_images` rows and as many shards as it would have, over the files of a small one."""
    folder = root / "train"
    folder.mkdir()
    num_shards = -(-num_images // IMAGES_PER_SHARD)
    rows_N = np.arange(num_images) % len(split)
    few = len(split.manifest.shards)
    shards = [
        dataclasses.replace(split.manifest.shards[i % few], name=f"train-{i:06d}.tar")
        for i in range(-(-num_shards // few) * few)
    ]
    for i, shard in enumerate(shards):
        (folder / shard.name).symlink_to(split.shard_paths[i % few].resolve())
    copies_N = np.arange(num_images) // len(split) % (len(shards) // few)
    columns: dict[str, Any] = {
        name: split.column(name)[rows_N] for name in ("offset", "size", "label", "width", "height")
    }
    columns["key"] = [f"{i:08d}" for i in range(num_images)]
    columns["shard"] = (split.column("shard")[rows_N] + few * copies_N).astype(np.int32)
    columns["sha256"] = split.samples.column("sha256").take(rows_N).combine_chunks()
    index = encode_samples(columns)
    (folder / SAMPLES).write_bytes(index)
    facts = {"num_images": num_images, "shards": tuple(shards), "samples_sha256": sha256_of(index)}
    (folder / MANIFEST).write_text(dataclasses.replace(split.manifest, **facts).to_json())


def measure(root: Path, share: float) -> dict[str, float]:
    """Seconds to open the split, and from then on to the first batch."""
    started = time.perf_counter()
    split = Split(root, "train")
    opened = time.perf_counter()
    loader = build_loader(split, TrainTransform(), BATCH_SIZE)
    loader.position = int(share * len(split)) // BATCH_SIZE * BATCH_SIZE
    batches = iter(loader)
    next(batches)
    return {"open_seconds": opened - started, "first_batch_seconds": time.perf_counter() - opened}


def run_once(root: Path, share: float) -> dict[str, float]:
    """One measurement in a new process, which has imported everything before it starts."""
    command = [sys.executable, __file__, "--data", str(root), "--measure", str(root), str(share)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def compare(root: Path, repetitions: int) -> dict[str, Any]:
    """All repetitions, the moments in turn."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in MOMENTS}
    for _ in range(repetitions):
        for name, share in MOMENTS.items():
            runs[name].append(run_once(root, share))
    return {name: {key: summarize([run[key] for run in each]) for key in each[0]} for name, each in runs.items()}


def main() -> None:
    """Make the dataset, measure, report."""
    arguments = parse_arguments()
    if arguments.measure:
        print(json.dumps(measure(Path(arguments.measure[0]), float(arguments.measure[1]))))
        return
    if arguments.repetitions < LEAST_REPETITIONS:
        raise InputError(f"{arguments.repetitions} repetitions show no spread: take {LEAST_REPETITIONS} or more")
    split = Split(arguments.data, "train")
    with tempfile.TemporaryDirectory(prefix="penstock-") as temporary:
        enlarge(split, arguments.images, Path(temporary))
        moments = compare(Path(temporary), arguments.repetitions)
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
        say(f"{name}: opened in {opened:.2f} s, first batch {first:.2f} s later")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        exit_with(error)
