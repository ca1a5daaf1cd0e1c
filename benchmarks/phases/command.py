"""`throughput.py --recipe NAME`: measure the phases, add them up, and return the record."""

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from phases.measure import Bench, MeasuredPhase, measure_evaluation, measure_training
from phases.plan import IMAGENET_VALIDATION, Phase, plan_phases
from phases.total import PhaseResult, gain_without, mean_rate, sum_gains, sum_seconds
from phases.words import Preparation, Total, name_part, write_signs, write_total
from record import describe_dali, describe_origin, describe_placement, write_json
from stages.machine import count_cores
from stages.photos import PHOTOS_NAME, describe_dataset, find_data, open_split
from stages.progress import ProgressDisplay
from stages.setting import Setting
from stages.stepping import build_step
from verdict.bounds import find_bounds
from verdict.cost import IMAGENET_IMAGES

from loaders import World
from prep.errors import InputError
from train.config import Recipe
from train.loader_settings import agree_on_placement

RECORD = Path(__file__).resolve().parent.parent / "records" / "preparation.json"
MEASURED, INTERRUPTED = "throughput of a recipe", "part of the throughput of a recipe"
RACE, OURS = "original bytes, checked", "penstock"  # the race of preparation.json that decodes each image once
HOUR = 3600


def measure_recipe(arguments: argparse.Namespace, recipe: Recipe, setting: Setting, world: World) -> dict[str, Any]:
    """Measure a recipe in all its phases and return the record; every process of the world must call it.

    Args:
        setting: as the flags ask for it; its batch size is that of one process.
    """
    phases = plan_phases(recipe, arguments.scale)
    training, evaluation = phases[:-1], phases[-1]
    check_sizes(training)
    with (
        open_split(arguments.data, world) as split,
        tempfile.TemporaryDirectory(prefix="penstock-") as run_dir,
        ProgressDisplay(world) as display,
    ):
        # One training step for all resolutions, as in a run.
        setting = replace(setting, run_dir=Path(run_dir), recipe=recipe)
        placement = agree_on_placement(setting.loader, world)
        bench = Bench(recipe, split, world, placement, setting, arguments.full)
        step = build_step(
            replace(setting, size=training[-1].measured_size), bench.open_loader(training[-1].measured_size)
        )
        setup = describe_setup(arguments, bench, training[0].measured_size)

        # Keep what is measured after each phase, in case the command is interrupted.
        measured: list[MeasuredPhase] = []
        for each in measure_training(bench, step, training, display.report):
            measured.append(each)
            if arguments.out and world.rank == 0:
                phases_so_far = describe_phases(bench, measured)
                write_json(arguments.out, {"what": INTERRUPTED, "phases": phases_so_far, **setup})
        evaluated = measure_evaluation(bench, step, evaluation, display.report)
        return {**describe_recipe(arguments, bench, measured, (evaluation, evaluated)), **setup}


def check_sizes(phases: list[Phase]) -> None:
    """Raise InputError if two phases would be measured at the same resolution."""
    if len({phase.measured_size for phase in phases}) < len(phases):
        sizes = ", ".join(str(phase.measured_size) for phase in phases)
        raise InputError(
            f"the resolutions times --scale must differ from each other, got {sizes}: give a larger --scale"
        )


def read_preparation(cores: float) -> Preparation:
    """Return the hours of preparing ImageNet-1k with `cores` cores, at the rate per core of its record."""
    content = json.loads(RECORD.read_text())
    rate = content["races"][RACE]["contenders"][OURS]["images_per_second"]["median"] / content["hardware"]["cores"]
    hours = (IMAGENET_IMAGES + IMAGENET_VALIDATION) / (rate * cores) / HOUR
    return Preparation(rate, hours, f"benchmarks/records/{RECORD.name}, {content['hardware']['cores']} cores")


def describe_recipe(
    arguments: argparse.Namespace,
    bench: Bench,
    measured: list[MeasuredPhase],
    evaluation: tuple[Phase, dict[str, Any]],
) -> dict[str, Any]:
    """Return the part of the record that holds the figures."""
    recipe, results = bench.recipe, [each.result for each in measured]
    phase, evaluated = evaluation
    total = Total(
        training=sum_seconds(results) / HOUR,
        evaluation=phase.num_images / evaluated["total"]["median"] / HOUR,
        preparation=read_preparation(count_cores()),
    )
    price = arguments.dollars_per_hour
    signs = [(each.result.phase, sign) for each in measured for sign in each.signs]
    says = [
        *list_departures(arguments, bench),
        *write_total(recipe, results, total, price, bench.is_full),
        *write_signs(signs),
    ]
    return {
        "what": MEASURED,
        "phases": describe_phases(bench, measured),
        "evaluation": {**vars(phase), "evaluate": evaluated, "hours": total.evaluation},
        "total": {
            "images_per_second": mean_rate(results),
            "training_hours": total.training,
            "evaluation_hours": total.evaluation,
            "preparation": vars(total.preparation),
            "hours": total.hours,
            "dollars_per_hour": price,
            "dollars": None if price is None else total.hours * price,
            "gains": [vars(each) for each in sum_gains(results)],
            "gains_without": {
                name: gain_without(results, name) for name in dict.fromkeys(each.bottleneck for each in results)
            },
        },
        "says": says,
    }


def describe_setup(arguments: argparse.Namespace, bench: Bench, size: int) -> dict[str, Any]:
    """Return the part of the record that says what is measured, how and where.

    Args:
        size: one of the measured resolutions; the loader has the same number of threads at all of them.
    """
    recipe, setting = bench.recipe, bench.setting
    return {
        "recipe": {"name": recipe.name, "epochs": recipe.epochs, "batch_size": recipe.batch_size},
        "departures": list_departures(arguments, bench),
        "is_full": bench.is_full,
        "batch_size": setting.batch_size,
        "microbatch": setting.microbatch,
        "model": setting.model,
        "amp": setting.amp,
        "compile": setting.compile,
        "scale": arguments.scale,
        "num_processes": bench.world.size,
        "device": bench.world.device.type,
        "backend": setting.loader.backend,
        "dataset": describe_dataset(bench.split, None if find_data(arguments.data) else PHOTOS_NAME),
        "threads": bench.open_loader(size).make_spec().num_threads,
        "placement": describe_placement(bench.placement),
        **describe_origin("benchmarks/throughput.py", bench.world, **describe_dali(arguments.backend)),
    }


def describe_phases(bench: Bench, measured: list[MeasuredPhase]) -> list[dict[str, Any]]:
    """Return the measured phases for the record; shares are of them alone."""
    results = [each.result for each in measured]
    return [describe_phase(each, results, bench.is_full) for each in measured]


def describe_phase(each: MeasuredPhase, results: list[PhaseResult], is_full: bool) -> dict[str, Any]:
    """Return one phase for the record."""
    result, num_images = each.result, sum(other.phase.num_images for other in results)
    return {
        **vars(result.phase),
        "share_of_images": result.phase.num_images / num_images,
        "share_of_time": result.seconds / sum_seconds(results),
        "hours": result.seconds / HOUR,
        "stages": each.stages,
        "bottleneck": name_part(result.bottleneck, is_full),
        "bounds": {name: rate for name, rate in find_bounds(result.figures).items() if rate < float("inf")},
        "advice": [vars(advice) for advice in result.promised],
        "signs": {sign.name: vars(sign) for sign in each.signs},
    }


def list_departures(arguments: argparse.Namespace, bench: Bench) -> list[str]:
    """Return a line if the measurement is not that of the recipe itself."""

    def differ() -> Iterator[str]:
        recipe, setting = bench.recipe, bench.setting
        if arguments.scale != 1:
            yield f"sizes times {arguments.scale:g}"
        if setting.model != recipe.model.name:
            yield f"{setting.model} instead of {recipe.model.name}"
        if bench.batch_size != recipe.batch_size:
            yield f"{bench.batch_size} images per step instead of {recipe.batch_size}"
        if setting.amp != recipe.amp:
            yield f"amp {setting.amp} instead of {recipe.amp}"
        if setting.compile != recipe.speed.compile:
            yield f"compile {setting.compile} instead of {recipe.speed.compile}"

    found = ", ".join(differ())
    return [f"Not measured as the recipe trains: {found}. The hours are those of this measurement."] if found else []
