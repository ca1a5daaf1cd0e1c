"""`python benchmarks/throughput.py [--data DIR] [--mode loader|model|train] …`: images/s of each part of the flow.

loader: batches taken as fast as they come; model: the training step on one batch for ever; train: the step fed by
the loader. One JSON record goes to stdout, a line for people to stderr. Under torchrun: each process and the total.
"""

import argparse
import copy
import importlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from pace import SPENT, Take, gather, repeat, warm_up
from record import describe_command, describe_date, describe_hardware, label_source, summarize

from loaders import Batch, InputError, Loader, LoaderConfig, Split, TrainTransform, World, build_loader
from loaders.backends import BACKENDS
from train.checkpoint import describe_commit, describe_versions
from train.command import exit_with
from train.config import Recipe
from train.dist import from_rank_0, join_world
from train.model import ModelConfig, build_model
from train.optim import build_optimizer
from train.step import AMP_TYPES, Step, Sums, new_state

CHECKOUT = Path(__file__).resolve().parent.parent
IMAGENET = Path("data/imagenet")
PHOTOS, PHOTOS_NAME, COPIES = ("china.jpg", "flower.jpg"), "two sample photos of scikit-learn, copied", 128
LEAST_REPETITIONS = 5
TOTAL_IMAGES = 10**9  # keeps the learning rate in its warm-up


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/throughput.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help="prepared dataset (default: data/imagenet, else two sample photos)")
    add("--mode", choices=["loader", "model", "train"], default="loader")
    add("--backend", choices=list(BACKENDS), help="default: dali; mode model always takes synthetic")
    add("--batch-size", type=int, default=64, help="images a step and process (default: 64)")
    add("--size", type=int, default=224, help="pixels (default: 224)")
    add("--model", default="resnet50d", help="any of timm's (default: resnet50d)")
    add("--amp", choices=list(AMP_TYPES), default="bf16", help="default: bf16")
    add("--repetitions", type=int, default=LEAST_REPETITIONS, help="default, and least: 5")
    add("--seconds", type=float, default=3.0, help="a repetition, about (default: 3)")
    add("--threads", type=int, default=0, help="decoding threads a process (default: an equal share of the cores)")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--out", type=Path, metavar="FILE", help="write the record here too")
    return parser.parse_args()


def check(arguments: argparse.Namespace) -> None:
    """Raises InputError for values that cannot be measured with; settles the backend."""
    if arguments.repetitions < LEAST_REPETITIONS:
        raise InputError(f"{arguments.repetitions} repetitions show no spread: take {LEAST_REPETITIONS} or more")
    if arguments.seconds <= 0 or arguments.size < 1:
        raise InputError("seconds and size must be more than 0")
    if arguments.mode == "model" and arguments.backend not in (None, "synthetic"):
        raise InputError(f"mode model does not use {arguments.backend}: take --backend synthetic, or --mode train")
    if arguments.out and not arguments.out.resolve().parent.is_dir():
        raise InputError(f"{arguments.out.parent} does not exist: create it or choose another --out")
    arguments.backend = arguments.backend or ("synthetic" if arguments.mode == "model" else "dali")


@contextmanager
def open_split(folder: Path | None, world: World) -> Iterator[Split]:
    """The train split to measure on; without one, photos prepared for as long as it is needed."""
    if folder is None and (IMAGENET / "train" / "manifest.json").exists():
        folder = IMAGENET
    if folder is not None:
        yield Split(folder, "train")
        return
    if world.rank != 0:
        yield Split(from_rank_0(None, world), "train")
        return
    with tempfile.TemporaryDirectory(prefix="penstock-") as temporary:
        yield Split(from_rank_0(str(prepare_photos(Path(temporary))), world), "train")


def prepare_photos(folder: Path) -> Path:
    """Copies of scikit-learn's two sample photos as shards, through the real command."""
    images = Path(str(importlib.import_module("sklearn.datasets").__file__)).parent / "images"
    source, out = folder / "source", folder / "shards"
    for photo in PHOTOS:
        name = Path(photo).stem
        (source / "train" / name).mkdir(parents=True)
        for number in range(COPIES):
            shutil.copyfile(images / photo, source / "train" / name / f"{name}_{number:03d}.jpg")
    command = [sys.executable, str(CHECKOUT / "prep" / "shard.py"), "--source", str(source), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"the sample photos could not be prepared: {' '.join(done.stderr.split())[-300:]}")
    return out


def open_loader(arguments: argparse.Namespace, split: Split, world: World) -> Loader:
    """The training loader of this process."""
    config = LoaderConfig(backend=arguments.backend, num_threads=arguments.threads)
    return build_loader(split, TrainTransform(arguments.size), arguments.batch_size * world.size, world, config=config)


def build_step(arguments: argparse.Namespace, loader: Loader) -> Step:
    """The training step as `train.fit` makes it, at the start of a run."""
    recipe = Recipe(
        name="throughput",
        epochs=100,
        batch_size=loader.batch_size,
        amp=arguments.amp,
        model=ModelConfig(arguments.model),
    )
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model, len(loader.split.class_names), loader.world.device)
    ema = copy.deepcopy(model).requires_grad_(False)
    state = new_state(recipe, model, ema, build_optimizer(model, recipe.optim))
    return Step(recipe, state, TOTAL_IMAGES, loader.world)


def build_take(arguments: argparse.Namespace, loader: Loader, batches: Iterator[Batch]) -> Take:
    """What is measured, as a function that does it for one batch."""
    if arguments.mode == "loader":
        return lambda: _drop(next(batches))
    step, sums = build_step(arguments, loader), Sums.zero(loader.world.device)
    return lambda: step(next(batches), sums)


def _drop(_: Batch) -> None:
    """The loader alone: nothing is done with a batch."""


def measure(arguments: argparse.Namespace, loader: Loader) -> tuple[list[float], dict[str, float]]:
    """Images/s of a process in each repetition, at the slowest one's pace; milliseconds a batch of the loader."""
    batches = iter(loader)
    with closing(batches):  # pyright: ignore[reportArgumentType]  (a generator)
        take = build_take(arguments, loader, batches)
        num_steps = warm_up(take, arguments.seconds, loader.world)
        before = loader.stats()
        seconds = repeat(take, num_steps, arguments.repetitions, loader.world)
        stats = loader.stats().since(before)
    spent = [1000 * getattr(stats, f"{name}_seconds") / stats.num_batches for name in SPENT]
    everyone = gather([*seconds, *spent], loader.world)
    rates = [num_steps * len(loader.slots) / max(row[i] for row in everyone) for i in range(len(seconds))]
    means = [statistics.mean(column) for column in zip(*everyone, strict=True)]
    return rates, dict(zip(SPENT, means[len(seconds) :], strict=True))


def build_record(
    arguments: argparse.Namespace, loader: Loader, rates: list[float], spent: dict[str, float]
) -> dict[str, Any]:
    """All that is needed to read the figures and to take them again."""
    trains, world = arguments.mode != "loader", loader.world
    batch_milliseconds = 1000 * arguments.batch_size / statistics.harmonic_mean(rates)
    return {
        "what": "throughput",
        "mode": arguments.mode,
        "backend": arguments.backend,
        "dataset": describe_dataset(loader.split, PHOTOS_NAME if is_photos(arguments) else None),
        "batch_size": arguments.batch_size,
        "size": arguments.size,
        "model": arguments.model if trains else None,
        "amp": arguments.amp if trains else None,
        "images_per_second": summarize(rates),
        "total": summarize([rate * world.size for rate in rates]),
        "data_wait_percent": 100 * spent["wait"] / batch_milliseconds,
        "milliseconds_a_batch": spent,
        "num_processes": world.size,
        "threads": loader.config.num_threads,
        "device": world.device.type,
        "command": describe_command("benchmarks/throughput.py", describe_start(world)),
        "commit": describe_commit(),
        "versions": describe_versions() | describe_dali(arguments.backend),
        "hardware": describe_hardware(describe_gpu(world)),
        "date": describe_date(),
    }


def is_photos(arguments: argparse.Namespace) -> bool:
    """Whether nothing better than the sample photos was there."""
    return arguments.data is None and not (IMAGENET / "train" / "manifest.json").exists()


def describe_dataset(split: Split, name: str | None) -> dict[str, Any]:
    """What was read."""
    source = split.manifest.source.name
    return {
        "name": name or source,
        "label": label_source(source),
        "num_images": len(split),
        "mean_bytes": round(float(split.column("size").mean())),
    }


def describe_start(world: World) -> tuple[str, ...]:
    """What the command begins with."""
    return ("python",) if world.size == 1 else ("torchrun", "--nproc-per-node", str(world.local_size))


def describe_gpu(world: World) -> str | None:
    """The GPU's name, if there is one in use."""
    return torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else None


def describe_dali(backend: str) -> dict[str, str]:
    """DALI's version where it took part."""
    return {"dali": importlib.import_module("nvidia.dali").__version__} if backend == "dali" else {}


def describe(record: dict[str, Any]) -> str:
    """The record for people."""
    each, data, hardware = record["images_per_second"], record["dataset"], record["hardware"]
    return (
        f"{record['mode']} {record['backend']} on {hardware['gpu'] or 'CPU'}: {each['median']:,.1f} images/s a process "
        f"({each['min']:,.1f} to {each['max']:,.1f} in {len(each['repetitions'])} repetitions), "
        f"{record['total']['median']:,.1f} over {record['num_processes']}; "
        f"data wait {record['data_wait_percent']:.1f}%; {data['name']} [{data['label']}]"
    )


def main() -> None:
    """Measure, then report from rank 0."""
    arguments = parse_arguments()
    check(arguments)
    with join_world(arguments.device) as world, open_split(arguments.data, world) as split:
        loader = open_loader(arguments, split, world)
        record = build_record(arguments, loader, *measure(arguments, loader))
    if world.rank == 0:
        print(describe(record), file=sys.stderr)
        print(json.dumps(record))
        if arguments.out:
            arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        exit_with(error)
