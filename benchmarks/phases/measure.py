"""Measure a recipe phase by phase: loader, model and training at each resolution, with one network for all of them."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from phases.evaluating import EVALUATE, EndlessEvaluation, Evaluating
from phases.plan import Phase
from phases.total import PhaseResult
from signs.engines import LEAST_BATCHES, Times, judge_engines
from signs.launching import measure_few, step_seconds
from signs.measure import find_signs, measure_signs
from signs.sign import Sign
from signs.watched import watch
from stages.judging import Tried, count_all_cores, find_read_share, read_figures, try_changes, want_larger_batch
from stages.probes import find_core_scaling
from stages.rounds import STEPS, Report, open_stages, run_in_turn, run_rounds
from stages.setting import Setting
from stages.stage import LOADER, MODEL, TRAIN
from stages.stepping import Feed
from stages.summary import describe_stage, describe_stages
from verdict.advice import WANTED_OF_RECIPE, promise_changes
from verdict.bounds import Figures, find_bottleneck

from loaders import EvalTransform, Loader, Split, World, build_loader
from loaders.order import Sampling
from loaders.placement import Choice
from train.config import Recipe
from train.step import Step

SIGN_SHARE = 3  # a window for a sign takes this part of a usual window, if stages are measured in turn


@dataclass(frozen=True)
class MeasuredPhase:
    """One training phase: its figures for the verdict, those of its stages for the record, and its signs."""

    result: PhaseResult
    stages: dict[str, dict[str, Any]]
    signs: list[Sign]


@dataclass(frozen=True)
class Bench:
    """What all phases share."""

    recipe: Recipe
    split: Split
    world: World
    placement: Choice
    setting: Setting  # its batch size is that of one process
    is_full: bool  # measure reading, decoding and the effect of changes as well

    @property
    def batch_size(self) -> int:
        """Images per step over all processes."""
        return self.setting.batch_size * self.world.size

    def open_loader(self, size: int) -> Loader:
        """Return the training loader at one resolution."""
        transform = replace(self.recipe.transform, size=size, first_size=None)
        sampling = Sampling(self.recipe.seed, self.recipe.data.order, self.recipe.data.repeats)
        return build_loader(self.split, transform, self.batch_size, self.world, sampling, self.placement)


def measure_training(bench: Bench, step: Step, phases: list[Phase], report: Report) -> Iterator[MeasuredPhase]:
    """Yield each training phase as soon as it is measured."""
    few = None if bench.is_full else _measure_few(bench, step, phases[0])
    for number, phase in enumerate(phases):
        report_phase = partial(_report_part, report, number, len(phases), f"{phase.size} px, ")
        if bench.is_full:
            yield _measure_fully(bench, step, phase, report_phase)
        else:
            yield _measure_quickly(bench, step, phase, report_phase, few)


def _measure_few(bench: Bench, step: Step, phase: Phase) -> float | None:
    """Return the seconds of a step of few images, for all phases."""
    setting = replace(bench.setting, size=phase.measured_size)
    return measure_few(bench.open_loader(phase.measured_size), step, _shorten(setting))


def _shorten(setting: Setting) -> Setting:
    """Return the setting for a sign: with shorter windows."""
    return replace(setting, seconds=setting.seconds / SIGN_SHARE)


def _report_part(report: Report, number: int, num_parts: int, prefix: str, what: str, done: float) -> None:
    """Report the progress of part `number` of several equal parts."""
    report(f"{prefix}{what}", (number + done) / num_parts)


def _measure_quickly(bench: Bench, step: Step, phase: Phase, report: Report, few: float | None) -> MeasuredPhase:
    """Measure loader, model and training, one after another, and watch the GPU meanwhile.

    Args:
        few: seconds of a step of few images.
    """
    loader, setting = bench.open_loader(phase.measured_size), replace(bench.setting, size=phase.measured_size)
    with open_stages(STEPS, loader, setting, step) as stages:
        watched = {}
        for number, stage in enumerate(stages):
            report_stage = partial(_report_part, report, number, len(stages), "")
            watched[stage.name] = watch(stage, setting.repetitions, report_stage)
        fixed_share = few and few / step_seconds(watched[MODEL].windows)
        signs = find_signs(loader, step, _shorten(setting), fixed_share, watched)

    # The batches of the loader's windows show how evenly its JPEG engines work; other shares for them are not tried.
    if loader.decodes_on_gpu:
        times = [each for window in watched[LOADER].windows for each in window.batch_seconds]
        load = loader.config.hw_decoder_load
        measured: dict[float, Times] = {load: times} if len(times) >= LEAST_BATCHES else {}
        engines = judge_engines(load, measured, watched[LOADER].busy_share("jpg"))
        signs += [engines] if engines else []
    described = describe_stages({name: each.windows for name, each in watched.items()}, bench.world)
    figures = read_quick_figures(described, loader)
    promised = promise_changes(figures, {}, find_core_scaling(loader))
    return MeasuredPhase(PhaseResult(phase, figures, promised), described, signs)


def _measure_fully(bench: Bench, step: Step, phase: Phase, report: Report) -> MeasuredPhase:
    """Measure all stages in rounds, the signs, and the effect of the changes that can help in this phase."""
    loader, setting = bench.open_loader(phase.measured_size), replace(bench.setting, size=phase.measured_size)
    with open_stages("all", loader, setting, step) as stages:
        windows = run_rounds(stages, setting.repetitions, report)
        signs = measure_signs(loader, stages, windows, setting, report)
    described = describe_stages(windows, bench.world)
    figures = read_figures(described, loader)
    wanted = [*WANTED_OF_RECIPE[find_bottleneck(figures)], *want_larger_batch(figures, signs)]
    tried: Tried = try_changes(wanted, loader, setting, report)
    promised = promise_changes(figures, tried.probes, tried.scaling, tried.other)
    return MeasuredPhase(PhaseResult(phase, figures, promised), described, signs)


def read_quick_figures(stages: dict[str, dict[str, Any]], loader: Loader) -> Figures:
    """Return the figures with the complete loader in the place of decoding, and storage without a limit."""
    rates = {name: stages[name]["total"]["median"] for name in (LOADER, MODEL, TRAIN)}
    cpu = {name: stages[name]["cpu_seconds_per_1000_images"] / 1000 for name in (LOADER, MODEL)}
    return Figures(
        read_warm=float("inf"),
        decode=rates[LOADER],
        model=rates[MODEL],
        loader=rates[LOADER],
        train=rates[TRAIN],
        read_cold=None,
        fits_memory=True,
        cpu_read=0.0,
        cpu_decode=cpu[LOADER],
        cpu_model=cpu[MODEL],
        num_cores=count_all_cores(loader),
        shares_cores=loader.world.device.type == "cpu",
        decodes_on_gpu=loader.decodes_on_gpu,
        mean_bytes=float(loader.split.column("size").mean()),
        read_share=find_read_share(stages[LOADER]),
    )


def measure_evaluation(bench: Bench, step: Step, phase: Phase, report: Report) -> dict[str, Any]:
    """Return the figures of evaluating the model and its EMA, on the training images."""
    share = phase.measured_size / bench.recipe.evaluation.size
    transform = EvalTransform(
        phase.measured_size, max(phase.measured_size, round(bench.recipe.evaluation.resize * share))
    )
    loader = EndlessEvaluation(bench.split, transform, bench.batch_size, bench.world, Sampling(), bench.placement)
    with ExitStack() as stack:
        stage = stack.enter_context(Evaluating(stack.enter_context(Feed(loader)), step))
        stage.calibrate(bench.setting.seconds)
        windows = run_in_turn([stage], bench.setting.repetitions, report)
    return describe_stage(EVALUATE, windows[EVALUATE], bench.world)
