"""`python benchmarks/throughput.py [--data DIR]`: measure each stage of training, name the bottleneck, suggest changes.

Stages: read (training's images in training's order, from storage (cold) and from memory (warm)); decode (from memory to
pixels); loader (the complete loader, up to the device); model (the training step on one batch, again and again); train
(the step fed by the loader). They are measured in rounds, one window of each stage per round. With all stages measured,
the verdict names the bottleneck, what would help and by how much, and the hours and dollars of the reference recipe.
With --recipe NAME: loader, model and training at each resolution of a recipe, and the hours and dollars of all of it.
One JSON record goes to stdout, a table and the verdict to stderr. Under torchrun: rates per process and in total.
docs/benchmarks.md explains the figures.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from stages.setting import MODES, AmpMode, Setting

from loaders.config import LoaderConfig
from prep.errors import InputError, run
from train.compile import CompileMode
from train.config import Recipe
from train.recipe import RECIPES

if TYPE_CHECKING:
    from verdict.cost import Cost

    from loaders import Loader, World

LEAST_REPETITIONS = 5
# All of loaders.backends.BACKENDS except "synthetic", which has nothing to read or decode. Written out here because
# importing the backends takes seconds, which --help should not; a test compares the two.
MEASURED_BACKENDS = ("dali", "reference")
DEFAULT_LOADER = LoaderConfig()
DEFAULT_BATCH, DEFAULT_SIZE = 64, 224


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line, or the given words."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/throughput.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help="prepared dataset (default: data/imagenet, else two sample photos)")
    add("--mode", choices=MODES, default="all", help="stages to measure (default: all, which ends with a verdict)")
    add("--backend", choices=MEASURED_BACKENDS, default="dali", help="default: dali")
    add("--recipe", choices=RECIPES, metavar="NAME", help="measure each resolution of this recipe, as it trains there")
    add("--scale", type=float, default=1.0, help="with --recipe: measure at its resolutions times this (a rehearsal)")
    add("--full", action="store_true", help="with --recipe: also reading, decoding, and the effect of each change")
    add("--batch-size", type=int, help="images per step and process (default: 64, or the recipe's)")
    add("--microbatch", type=int, default=0, help="images at once per process (default: all, or the recipe's)")
    add("--size", type=int, help="image size in pixels (default: 224)")
    add("--model", default="resnet50d", help="name of a timm model (default: resnet50d, or the recipe's)")
    add("--amp", choices=get_args(AmpMode), default="bf16", help="autocast precision (default: bf16, or the recipe's)")
    add("--compile", choices=get_args(CompileMode), default="none", help="torch.compile mode (default: none)")
    add("--repetitions", type=int, default=LEAST_REPETITIONS, help="number of rounds, at least 5 (default: 5)")
    add("--seconds", type=float, default=3.0, help="approximate length of one window of a stage (default: 3)")
    add("--threads", type=int, default=0, help="decoding threads per process (default: an equal share of the cores)")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--placement", default=DEFAULT_LOADER.placement, metavar="SIDE", help="where to decode images: auto, cpu, gpu")
    add(
        "--decode", default=DEFAULT_LOADER.decode, metavar="HOW", help="auto, roi (crop region only), full (full image)"
    )
    add("--splice", default=DEFAULT_LOADER.splice, metavar="HOW", help="restart shards: auto (only the crop) or off")
    load = f"share of the JPEGs for the GPU's hardware decoder (default: {DEFAULT_LOADER.hw_decoder_load:g})"
    add("--hw-decoder-load", type=float, default=DEFAULT_LOADER.hw_decoder_load, metavar="SHARE", help=load)
    add("--dollars-per-hour", type=float, metavar="D", help="price of all machines together, for the recipe's cost")
    add("--tune", action="store_true", help="search the loader's fastest settings on this machine and write their file")
    add("--minutes", type=float, default=5.0, help="length of the search of --tune (default: 5)")
    add("--out", type=Path, metavar="FILE", help="also write the record to this file")

    # With a recipe, its values are the defaults.
    if recipe := find_recipe(parser.parse_args(words)):
        parser.set_defaults(
            model=recipe.model.name, amp=recipe.amp, compile=recipe.speed.compile, microbatch=recipe.speed.microbatch
        )
    return parser.parse_args(words)


def find_recipe(arguments: argparse.Namespace) -> Recipe | None:
    """Return the recipe to measure, None without --recipe."""
    return RECIPES[arguments.recipe]() if arguments.recipe else None


def check_arguments(arguments: argparse.Namespace) -> None:
    """Check the values of the flags; raise InputError for the first one that cannot be used."""
    if arguments.repetitions < LEAST_REPETITIONS:
        raise InputError(f"--repetitions must be at least {LEAST_REPETITIONS}, got {arguments.repetitions}")
    for name in ("size", "mode", "tune"):
        if arguments.recipe and getattr(arguments, name) not in (None, "all", False):
            raise InputError(f"--recipe and --{name} exclude each other: give one of them")
    for name in ("seconds", "size", "scale", "batch_size", "dollars_per_hour"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise InputError(f"--{name.replace('_', '-')} must be greater than 0, got {value}")
    if arguments.out and not arguments.out.resolve().parent.is_dir():
        raise InputError(f"{arguments.out.parent} does not exist: create it or choose another --out")
    read_loader(arguments).check()


def read_setting(arguments: argparse.Namespace, run_dir: Path) -> Setting:
    """Return the settings of the measurement; compiled code is cached in `run_dir`."""
    return Setting(
        batch_size=arguments.batch_size or DEFAULT_BATCH,
        size=arguments.size or DEFAULT_SIZE,
        model=arguments.model,
        amp=arguments.amp,
        compile=arguments.compile,
        microbatch=arguments.microbatch,
        run_dir=run_dir,
        loader=read_loader(arguments),
        repetitions=arguments.repetitions,
        seconds=arguments.seconds,
    )


def read_loader(arguments: argparse.Namespace) -> LoaderConfig:
    """Return the loader's settings as the flags ask for them; "auto" is not resolved yet."""
    return LoaderConfig(
        backend=arguments.backend,
        num_threads=arguments.threads,
        placement=arguments.placement,
        decode=arguments.decode,
        splice=arguments.splice,
        hw_decoder_load=arguments.hw_decoder_load,
    )


def measure_throughput(arguments: argparse.Namespace, world: "World") -> dict[str, Any]:
    """Measure the stages and return the record; every process of the world must call it."""
    from signs.measure import measure_signs  # noqa: PLC0415
    from stages.judging import build_verdict  # noqa: PLC0415
    from stages.photos import open_split  # noqa: PLC0415
    from stages.progress import ProgressDisplay  # noqa: PLC0415
    from stages.rounds import open_stages, run_rounds  # noqa: PLC0415
    from stages.summary import describe_stages  # noqa: PLC0415
    from verdict.cost import Cost  # noqa: PLC0415

    from loaders import TrainTransform, build_loader  # noqa: PLC0415
    from train.loader_settings import agree_on_placement  # noqa: PLC0415
    from train.recipe import DEFAULT_RECIPE, RECIPES  # noqa: PLC0415

    with (
        open_split(arguments.data, world) as split,
        tempfile.TemporaryDirectory(prefix="penstock-") as run_dir,
        ProgressDisplay(world) as display,
    ):
        # Build the loader as training does. Every rank decodes on the side that rank 0 chose.
        setting = read_setting(arguments, Path(run_dir))
        transform, batch_size = TrainTransform(setting.size), setting.batch_size * world.size
        placement = agree_on_placement(setting.loader, world)
        loader = build_loader(split, transform, batch_size, world, config=placement)

        # Measure all stages in rounds, then close them: the probes of the verdict open other stages.
        with open_stages(arguments.mode, loader, setting) as stages:
            windows = run_rounds(stages, setting.repetitions, display.report)
            signs = measure_signs(loader, stages, windows, setting, display.report) if arguments.mode == "all" else []

        # Compute the figures over all processes, and the verdict from them.
        described = describe_stages(windows, world)
        cost = Cost(RECIPES[DEFAULT_RECIPE](), arguments.dollars_per_hour)
        verdict = build_verdict(described, loader, setting, cost, display.report, signs)
        return build_record(setting, arguments, loader, described, verdict, cost)


def tune_loader(arguments: argparse.Namespace, world: "World") -> dict[str, Any]:
    """Search the loader's fastest settings and return their file's content; every process of the world must call it."""
    from stages.photos import open_split  # noqa: PLC0415
    from tuning.command import Request, run_search  # noqa: PLC0415
    from tuning.turns import Workload  # noqa: PLC0415

    with open_split(arguments.data, world) as split:
        setting = read_setting(arguments, Path())
        work = Workload(split, world, setting.batch_size, setting.size)
        return run_search(Request(work, read_loader(arguments), arguments.minutes))


def measure_phases(arguments: argparse.Namespace, recipe: Recipe, world: "World") -> dict[str, Any]:
    """Measure all resolutions of a recipe and return the record; every process of the world must call it."""
    from phases.command import measure_recipe  # noqa: PLC0415

    setting = read_setting(arguments, Path())
    share = len(world.share(recipe.batch_size))
    return measure_recipe(arguments, recipe, replace(setting, batch_size=arguments.batch_size or share), world)


def build_record(
    setting: Setting,
    arguments: argparse.Namespace,
    loader: "Loader",
    stages: dict[str, dict[str, Any]],
    verdict: dict[str, Any] | None,
    cost: "Cost",
) -> dict[str, Any]:
    """Return the record: the figures, and all that is needed to read and to repeat them."""
    import torch  # noqa: PLC0415
    from record import describe_dali, describe_origin, describe_placement  # noqa: PLC0415
    from stages.photos import PHOTOS_NAME, describe_dataset, find_data  # noqa: PLC0415
    from stages.summary import describe_efficiency  # noqa: PLC0415

    # The model's settings are recorded only if a stage has used the model.
    has_steps, world = arguments.mode in ("all", "model", "train"), loader.world
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
        "batch_size": setting.batch_size,
        "size": setting.size,
        "model": arguments.model if has_steps else None,
        "amp": arguments.amp if has_steps else None,
        "compile": arguments.compile if has_steps else None,
        "num_processes": world.size,
        "threads": loader.make_spec().num_threads,
        "torch_threads": torch.get_num_threads(),
        "device": world.device.type,
        "placement": describe_placement(loader.placement),
        "splices": loader.whole is not None,
        **describe_origin("benchmarks/throughput.py", world, **describe_dali(arguments.backend)),
    }


def main() -> None:
    """Measure or tune on all processes, then print and write the record on rank 0."""
    arguments = parse_arguments()
    check_arguments(arguments)

    # These imports cost seconds: --help and a refused flag must not wait for them.
    from record import publish  # noqa: PLC0415
    from stages.tables import print_recipe, print_record  # noqa: PLC0415

    from train.dist import join_world  # noqa: PLC0415
    from train.loader_settings import agree_on_placement  # noqa: PLC0415

    with join_world(arguments.device) as world:
        # Refuse a placement that this machine does not have before sample photos are prepared.
        agree_on_placement(read_loader(arguments), world)
        recipe = find_recipe(arguments)
        if recipe:
            record = measure_phases(arguments, recipe, world)
        else:
            record = tune_loader(arguments, world) if arguments.tune else measure_throughput(arguments, world)
    if world.rank == 0:
        if recipe:
            print_recipe(record)
        elif not arguments.tune:
            print_record(record)
        publish(record, arguments.out)


if __name__ == "__main__":
    run(main)
