"""Measure a recipe phase by phase: loader, model and training at each resolution, with one network for all of them."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import phases
import probes
import signs
import stages
import torch
import verdict
from machine import count_cores
from phases import Phase, PhaseResult
from record import write_json
from stages import Report, Setting

from loaders import EvalTransform, Loader, Split, World, build_loader
from loaders.order import Sampling
from loaders.placement import Choice
from loaders.plan import Plan
from train.config import Recipe
from train.step import Step
from train.validate import iterate_logits, sum_scores

RECORD = Path(__file__).resolve().parent / "records" / "preparation.json"
RACE, OURS = "original bytes, checked", "penstock"  # the race of preparation.json that decodes each image once
MEASURED, INTERRUPTED = "throughput of a recipe", "part of the throughput of a recipe"
EVALUATE = "evaluate"
SIGN_SHARE = 3  # a window for a sign takes this part of a usual window, if stages are measured in turn
HOUR = 3600


@dataclass(frozen=True)
class Bench:
    """What all phases share."""

    recipe: Recipe
    setting: Setting  # its batch size is that of one process
    split: Split
    placement: Choice
    world: World

    @property
    def batch_size(self) -> int:
        """Images per step over all processes."""
        return self.setting.batch_size * self.world.size

    def open_loader(self, phase: Phase) -> Loader:
        """Return the training loader at a phase's resolution."""
        transform = replace(self.recipe.transform, size=phase.measured_size, first_size=None)
        sampling = Sampling(self.recipe.seed, self.recipe.data.order, self.recipe.data.repeats)
        return build_loader(self.split, transform, self.batch_size, self.world, sampling, self.placement)

    def setting_at(self, phase: Phase) -> Setting:
        """Return the setting at a phase's resolution."""
        return replace(self.setting, size=phase.measured_size)

    def setting_of_sign(self, phase: Phase) -> Setting:
        """Return the setting for a sign: with shorter windows."""
        return replace(self.setting_at(phase), seconds=self.setting.seconds / SIGN_SHARE)


@dataclass(frozen=True)
class MeasuredPhase:
    """One training phase: its figures for the verdict, those of its stages for the record, and its signs."""

    result: PhaseResult
    stages: dict[str, dict[str, Any]]
    signs: list[signs.Sign]


def measure_recipe(bench: Bench, report: Report, out: Path | None) -> dict[str, Any]:
    """Measure a recipe in all its phases and return the record; every process of the world must call it.

    Args:
        out: file that gets the record so far after each phase, in case the command is interrupted; None: no file.
    """
    *training, evaluation = phases.plan_phases(bench.recipe, bench.setting.scale)
    first, last = training[0], training[-1]

    # One training step for all resolutions, as in a run. The loader has the same number of threads at all of them.
    step = stages.build_step(bench.setting_at(last), bench.open_loader(last))
    setup = describe_bench(bench, first)
    few = None
    if not bench.setting.full:
        few = signs.measure_few(bench.open_loader(first), step, bench.setting_of_sign(first))
    measured: list[MeasuredPhase] = []
    for number, phase in enumerate(training):
        report_phase = partial(_report_part, report, number, len(training), f"{phase.size} px, ")
        measured.append(measure_phase(bench, step, phase, report_phase, few))
        if out and bench.world.rank == 0:
            write_json(out, {"what": INTERRUPTED, "phases": describe_phases(bench, measured), **setup})
    evaluated = measure_evaluation(bench, step, evaluation, report)
    return {**describe_recipe(bench, measured, evaluation, evaluated), **setup}


# One phase.


def measure_phase(bench: Bench, step: Step, phase: Phase, report: Report, few: float | None) -> MeasuredPhase:
    """Measure one training phase.

    In full: all stages in rounds, and the effect of the changes that can help. Otherwise loader, model and training,
    one after another, while the GPU is watched.

    Args:
        few: seconds of a step of few images, if that was measured for all phases together.
    """
    loader, setting = bench.open_loader(phase), bench.setting_at(phase)
    with stages.open_stages("all" if setting.full else stages.STEPS, loader, setting, step) as opened:
        if setting.full:
            windows = stages.run_rounds(opened, setting.repetitions, report)
            found = signs.measure_signs(loader, opened, windows, setting, report)
        else:
            watched = {}
            for number, stage in enumerate(opened):
                report_stage = partial(_report_part, report, number, len(opened), "")
                watched[stage.name] = signs.watch(stage, setting.repetitions, report_stage)
            windows = {name: each.windows for name, each in watched.items()}
            fixed_share = few and few / signs.step_seconds(windows[stages.MODEL])
            # The batches of the loader's windows show how evenly its JPEG engines work; no other share is tried.
            times = [each for window in windows[stages.LOADER] for each in window.batch_seconds]
            by_load = {loader.config.hw_decoder_load: times} if len(times) >= signs.LEAST_BATCHES else {}
            found = signs.find_signs(loader, step, bench.setting_of_sign(phase), fixed_share, watched, by_load)

    # The stages are closed: the probes open other ones.
    described = stages.describe_stages(windows, bench.world)
    figures = probes.read_figures(described, loader)
    tried, other = {}, None
    if setting.full:
        tried, other = probes.try_changes(verdict.WANTED_OF_RECIPE, figures, found, loader, setting, report)
    promised = verdict.promise_changes(figures, tried, probes.find_core_scaling(loader), other)
    return MeasuredPhase(PhaseResult(phase, figures, promised), described, found)


def _report_part(report: Report, number: int, num_parts: int, prefix: str, what: str, done: float) -> None:
    """Report the progress of part `number` of several equal parts."""
    report(f"{prefix}{what}", (number + done) / num_parts)


# Evaluation: the model and its EMA on batches of the evaluation transform, as after each epoch.


class EndlessEvaluation(Loader):
    """An evaluation loader that starts again at the end of the split, without a pause."""

    def _plans(self, position: int) -> Iterator[Plan]:
        while True:
            yield from super()._plans(position)
            position = 0


class Evaluating(stages.Feeding):
    """Evaluate batch after batch. Afterwards the models are in training mode."""

    def __init__(self, feed: stages.Feed, step: Step) -> None:
        super().__init__(feed, EVALUATE)
        self.models = {"model": step.state.model, "ema": step.state.ema}
        self.batches = iterate_logits(self.models, step.augment.normalize, feed, step.amp, self.world)
        self.sums_M5 = torch.zeros(len(self.models), 5, dtype=torch.float64, device=self.world.device)

    def __exit__(self, *error: object) -> None:
        for model in self.models.values():
            model.train()

    @torch.inference_mode()
    def take(self) -> None:
        batch, logits_MBK = next(self.batches)
        self.sums_M5 += torch.stack([sum_scores(logits_BK, batch) for logits_BK in logits_MBK])


def measure_evaluation(bench: Bench, step: Step, phase: Phase, report: Report) -> dict[str, Any]:
    """Return the figures of evaluating the model and its EMA, on the training images."""
    size, evaluation = phase.measured_size, bench.recipe.evaluation
    transform = EvalTransform(size, max(size, round(evaluation.resize * size / evaluation.size)))
    loader = EndlessEvaluation(bench.split, transform, bench.batch_size, bench.world, Sampling(), bench.placement)
    with ExitStack() as stack:
        stage = stack.enter_context(Evaluating(stack.enter_context(stages.Feed(loader)), step))
        stage.calibrate(bench.setting.seconds)
        windows = stages.run_in_turn(stage, bench.setting.repetitions, report)
    return stages.describe_stage(EVALUATE, windows, bench.world)


# The record.


def read_preparation(cores: float) -> phases.Preparation:
    """Return the hours of preparing ImageNet-1k with `cores` cores, at the rate per core of its record."""
    content = json.loads(RECORD.read_text())
    rate = content["races"][RACE]["contenders"][OURS]["images_per_second"]["median"] / content["hardware"]["cores"]
    hours = (verdict.IMAGENET_IMAGES + phases.IMAGENET_VALIDATION) / (rate * cores) / HOUR
    return phases.Preparation(rate, hours, f"benchmarks/records/{RECORD.name}, {content['hardware']['cores']} cores")


def describe_recipe(
    bench: Bench, measured: list[MeasuredPhase], evaluation: Phase, evaluated: dict[str, Any]
) -> dict[str, Any]:
    """Return the part of the record that holds the figures."""
    recipe, results, price = bench.recipe, [each.result for each in measured], bench.setting.dollars_per_hour
    total = phases.Total(
        training=phases.sum_seconds(results) / HOUR,
        evaluation=evaluation.num_images / evaluated["total"]["median"] / HOUR,
        preparation=read_preparation(count_cores()),
    )
    bottlenecks = dict.fromkeys(each.bottleneck for each in results)
    return {
        "what": MEASURED,
        "phases": describe_phases(bench, measured),
        "evaluation": {**vars(evaluation), "evaluate": evaluated, "hours": total.evaluation},
        "total": {
            "images_per_second": phases.mean_rate(results),
            "training_hours": total.training,
            "evaluation_hours": total.evaluation,
            "preparation": vars(total.preparation),
            "hours": total.hours,
            "dollars_per_hour": price,
            "dollars": None if price is None else total.hours * price,
            "gains": [vars(each) for each in phases.sum_gains(results)],
            "gains_without": {name: phases.gain_without(results, name) for name in bottlenecks},
        },
        "says": [
            *list_departures(bench),
            *phases.write_total(recipe, results, total, price, bench.setting.full),
            *phases.write_signs([(each.result.phase, sign) for each in measured for sign in each.signs]),
        ],
    }


def describe_bench(bench: Bench, phase: Phase) -> dict[str, Any]:
    """Return the part of the record that says what is measured, how and where."""
    recipe, setting = bench.recipe, bench.setting
    return {
        "recipe": {"name": recipe.name, "epochs": recipe.epochs, "batch_size": recipe.batch_size},
        "departures": list_departures(bench),
        "is_full": setting.full,
        "microbatch": setting.microbatch,
        "scale": setting.scale,
        **stages.describe_setup(setting, bench.open_loader(phase)),
    }


def list_departures(bench: Bench) -> list[str]:
    """Return a line if the measurement is not that of the recipe itself."""
    recipe, setting = bench.recipe, bench.setting
    differences = {
        f"sizes times {setting.scale:g}": setting.scale != 1,
        f"{setting.model} instead of {recipe.model.name}": setting.model != recipe.model.name,
        f"{bench.batch_size} images per step instead of {recipe.batch_size}": bench.batch_size != recipe.batch_size,
        f"amp {setting.amp} instead of {recipe.amp}": setting.amp != recipe.amp,
        f"compile {setting.compile} instead of {recipe.speed.compile}": setting.compile != recipe.speed.compile,
    }
    found = ", ".join(line for line, differs in differences.items() if differs)
    return [f"Not measured as the recipe trains: {found}. The hours are those of this measurement."] if found else []


def describe_phases(bench: Bench, measured: list[MeasuredPhase]) -> list[dict[str, Any]]:
    """Return the measured phases for the record; shares are of them alone."""
    results = [each.result for each in measured]
    num_images, seconds = sum(each.phase.num_images for each in results), phases.sum_seconds(results)
    return [
        {
            **vars(result.phase),
            "share_of_images": result.phase.num_images / num_images,
            "share_of_time": result.seconds / seconds,
            "hours": result.seconds / HOUR,
            "stages": each.stages,
            "bottleneck": phases.name_part(result.bottleneck, bench.setting.full),
            "bounds": {name: rate for name, rate in verdict.find_bounds(result.figures).items() if rate < float("inf")},
            "advice": [vars(advice) for advice in result.promised],
            "signs": {sign.name: vars(sign) for sign in each.signs},
        }
        for each, result in zip(measured, results, strict=True)
    ]
