"""`python benchmarks/throughput.py [--data DIR]`: images/s of each part of the flow, what binds, and what to change.

read: the images of training's order, from storage (cold) and from memory (warm); decode: from memory to pixels; loader:
all of it, to the device; model: the training step on one batch for ever; train: the step fed by the loader. In rounds,
each in turn. With all of them: which binds, what would help and how much, hours and dollars of the reference recipe.
One JSON record goes to stdout, a table and the verdict to stderr. Under torchrun: each process and the total.
docs/benchmarks.md explains the figures.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from record import describe_dali, describe_origin, describe_placement, publish
from stages.judging import judge
from stages.photos import PHOTOS_NAME, describe_dataset, find_data, open_split
from stages.progress import Shown
from stages.rounds import MODES, opened, run_rounds
from stages.setting import Setting
from stages.summary import describe_efficiency, describe_stages
from stages.tables import show
from tuning.command import Request, run
from tuning.turns import Workload
from verdict.cost import Cost

from loaders import Loader, LoaderConfig, TrainTransform, World, build_loader
from loaders.backends import BACKENDS
from prep.errors import InputError, exit_with
from train.dist import join_world
from train.recipe import DEFAULT_RECIPE, RECIPES
from train.speed import CompileMode
from train.step import AMP_TYPES
from train.tuned import agree_on_placement

LEAST_REPETITIONS = 5
USUAL = LoaderConfig()


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/throughput.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, compile_modes = parser.add_argument, CompileMode.__args__  # pyright: ignore[reportAttributeAccessIssue]
    add("--data", type=Path, metavar="DIR", help="prepared dataset (default: data/imagenet, else two sample photos)")
    add("--mode", choices=MODES, default="all", help="default: all, which ends in a verdict")
    add("--backend", choices=[name for name in BACKENDS if name != "synthetic"], default="dali", help="default: dali")
    add("--batch-size", type=int, default=64, help="images a step and process (default: 64)")
    add("--size", type=int, default=224, help="pixels (default: 224)")
    add("--model", default="resnet50d", help="any of timm's (default: resnet50d)")
    add("--amp", choices=list(AMP_TYPES), default="bf16", help="default: bf16")
    add("--compile", choices=compile_modes, default="none", help="torch.compile's modes (default: none)")
    add("--repetitions", type=int, default=LEAST_REPETITIONS, help="rounds; default, and least: 5")
    add("--seconds", type=float, default=3.0, help="a repetition of a stage, about (default: 3)")
    add("--threads", type=int, default=0, help="decoding threads a process (default: an equal share of the cores)")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--placement", default=USUAL.placement, metavar="SIDE", help="where images are decoded: auto, cpu or gpu")
    add("--decode", default=USUAL.decode, metavar="HOW", help="auto, roi (regions) or full (images)")
    load = f"share of the JPEGs for the GPU's own decoder (default: {USUAL.hw_decoder_load:g})"
    add("--hw-decoder-load", type=float, default=USUAL.hw_decoder_load, metavar="SHARE", help=load)
    add("--dollars-per-hour", type=float, metavar="D", help="of all machines together, for the recipe's cost")
    add("--tune", action="store_true", help="find the loader's fastest settings on this machine, and write their file")
    add("--minutes", type=float, default=5.0, help="of --tune (default: 5)")
    add("--out", type=Path, metavar="FILE", help="write the record here too")
    return parser.parse_args(words)


def check(arguments: argparse.Namespace) -> None:
    """Raises InputError for values that cannot be measured with."""
    if arguments.repetitions < LEAST_REPETITIONS:
        raise InputError(f"{arguments.repetitions} repetitions show no spread: take {LEAST_REPETITIONS} or more")
    for name in ("seconds", "size", "dollars_per_hour"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise InputError(f"--{name.replace('_', '-')} {value} is too little: take more than 0")
    if arguments.out and not arguments.out.resolve().parent.is_dir():
        raise InputError(f"{arguments.out.parent} does not exist: create it or choose another --out")
    read_loader(arguments).check()


def read_setting(arguments: argparse.Namespace, run_dir: Path) -> Setting:
    """What is measured with; compiled code goes to `run_dir`."""
    return Setting(
        batch_size=arguments.batch_size,
        size=arguments.size,
        model=arguments.model,
        amp=arguments.amp,
        compile=arguments.compile,
        run_dir=run_dir,
        loader=read_loader(arguments),
        repetitions=arguments.repetitions,
        seconds=arguments.seconds,
    )


def read_loader(arguments: argparse.Namespace) -> LoaderConfig:
    """Return the loader's settings as they were asked for."""
    return LoaderConfig(
        backend=arguments.backend,
        num_threads=arguments.threads,
        placement=arguments.placement,
        decode=arguments.decode,
        hw_decoder_load=arguments.hw_decoder_load,
    )


def measure(arguments: argparse.Namespace, world: World) -> dict[str, Any]:
    """The record of one measurement; every process of the world must call it."""
    with (
        open_split(arguments.data, world) as split,
        tempfile.TemporaryDirectory(prefix="penstock-") as run_dir,
        Shown(world) as shown,
    ):
        setting = read_setting(arguments, Path(run_dir))
        transform, batch_size = TrainTransform(setting.size), setting.batch_size * world.size
        placement = agree_on_placement(setting.loader, world)
        loader = build_loader(split, transform, batch_size, world, config=placement)
        with opened(arguments.mode, loader, setting) as stages:
            windows = run_rounds(stages, setting.repetitions, shown.say)
        described = describe_stages(windows, world)
        cost = Cost(RECIPES[DEFAULT_RECIPE](), arguments.dollars_per_hour)
        verdict = judge(described, loader, setting, cost, shown.say)
        return build_record(arguments, loader, described, verdict, cost)


def tune(arguments: argparse.Namespace, world: World) -> dict[str, Any]:
    """The file of the loader's fastest settings; every process of the world must call it."""
    with open_split(arguments.data, world) as split:
        work = Workload(split, world, arguments.batch_size, arguments.size)
        return run(Request(work, read_loader(arguments), arguments.minutes))


def build_record(
    arguments: argparse.Namespace,
    loader: Loader,
    stages: dict[str, dict[str, Any]],
    verdict: dict[str, Any] | None,
    cost: Cost,
) -> dict[str, Any]:
    """All that is needed to read the figures and to take them again."""
    steps, world = arguments.mode in ("all", "model", "train"), loader.world
    train = stages.get("train")
    return {
        "what": "throughput",
        "mode": arguments.mode,
        "stages": stages,
        "efficiency": describe_efficiency(stages),
        "verdict": verdict,
        "recipe": cost.to_dict(train["total"]["median"]) if train else None,
        "dataset": describe_dataset(loader.split, None if find_data(arguments.data) else PHOTOS_NAME),
        "backend": arguments.backend,
        "batch_size": arguments.batch_size,
        "size": arguments.size,
        "model": arguments.model if steps else None,
        "amp": arguments.amp if steps else None,
        "compile": arguments.compile if steps else None,
        "num_processes": world.size,
        "threads": loader.spec().num_threads,
        "torch_threads": torch.get_num_threads(),
        "device": world.device.type,
        "placement": describe_placement(loader.placement),
        **describe_origin("benchmarks/throughput.py", world, **describe_dali(arguments.backend)),
    }


def main() -> None:
    """Measure, then report from rank 0."""
    arguments = parse_arguments()
    check(arguments)
    with join_world(arguments.device) as world:
        agree_on_placement(read_loader(arguments), world)  # refuses what is not there before photographs are prepared
        record = tune(arguments, world) if arguments.tune else measure(arguments, world)
    if world.rank == 0:
        if not arguments.tune:
            show(record)
        publish(record, arguments.out)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        exit_with(error)
