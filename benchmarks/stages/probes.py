"""A stage measured again with something changed, in turns with itself as it was: what advice promises is measured.

What counts is the ratio of the two, so that unrest in the minutes between does not enter a promise.
"""

import os
import statistics
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from pace import gather
from stages.decoding import Decoding, MemoryLoader, hold_batches
from stages.machine import count_cores
from stages.rounds import Report
from stages.setting import Setting
from stages.smaller import mean_bytes, shrink
from stages.stage import Stage, Window, measure
from stages.stepping import Feed, Stepping, build_step, open_synthetic
from tuning.turns import FAILURES, in_a_line
from verdict.advice import FREE_STORAGE, SMALLER_FILES, SMALLER_IMAGES, THREADS, OtherPlacement, Probe, Scaling

from loaders import Loader, LoaderConfig, build_loader
from loaders.config import MOST_THREADS, default_num_threads, share_cores
from loaders.placement import DEFAULT_DECODE
from train.dist import from_every_rank

REPETITIONS = 3
SIZE_SHARE = 0.72  # 224 to 160 pixels, as fast recipes train
SIZE_STEP = 32  # pixels


def measure_probes(names: Iterable[str], loader: Loader, setting: Setting, report: Report) -> dict[str, Probe]:
    """Those of the probes that there is something to try for, each measured as ratios to the stage as it is."""
    made = {
        FREE_STORAGE: probe_storage,
        THREADS: probe_threads,
        SMALLER_FILES: probe_files,
        SMALLER_IMAGES: probe_size,
    }
    probes = {}
    for name in names:
        report(f"what would {name} give", 1.0)
        if probe := made[name](loader, setting):
            probes[name] = probe
    return probes


def probe_storage(loader: Loader, setting: Setting) -> Probe:
    """Training from memory: behind slow storage nobody sees what decoding and the model take from each other."""
    step, memory = build_step(setting, loader), MemoryLoader(loader, hold_batches(loader))
    with ExitStack() as stack:
        feeds = [stack.enter_context(Feed(each)) for each in (loader, memory)]
        return compare([Stepping(feed, step) for feed in feeds], setting, 0.0)


def probe_threads(loader: Loader, setting: Setting) -> Probe | None:
    """Decoding with a thread for each core that this process has to itself."""
    num_threads = int(count_cores() // loader.world.local_size)
    if num_threads <= loader.spec().num_threads:
        return None
    config = replace(loader.config, num_threads=num_threads)
    more = build_loader(loader.split, loader.transform, loader.batch_size, loader.world, config=config)
    held = hold_batches(loader)
    with ExitStack() as stack:
        pair = [stack.enter_context(Decoding(each, held)) for each in (loader, more)]
        return compare(pair, setting, num_threads)


def probe_files(loader: Loader, setting: Setting) -> Probe | None:
    """Decoding of the same images, stored smaller."""
    held = hold_batches(loader)
    smaller = shrink(loader, held)
    share = mean_bytes(smaller) / mean_bytes(held)
    if share >= 1:
        return None
    with ExitStack() as stack:
        pair = [stack.enter_context(Decoding(loader, each)) for each in (held, smaller)]
        return compare(pair, setting, share * float(loader.split.column("size").mean()))


def probe_size(loader: Loader, setting: Setting) -> Probe | None:
    """The model at a lower resolution; not where each resolution is compiled for minutes."""
    size = max(SIZE_STEP, round(setting.size * SIZE_SHARE / SIZE_STEP) * SIZE_STEP)
    if size >= setting.size or setting.compile != "none":
        return None
    step = build_step(setting, loader)
    with ExitStack() as stack:
        feeds = [stack.enter_context(Feed(open_synthetic(loader, each))) for each in (setting.size, size)]
        return compare([Stepping(feed, step) for feed in feeds], setting, size)


def probe_placement(loader: Loader, setting: Setting, report: Report) -> OtherPlacement | None:
    """Measure training with the other placement. Return None if only one placement is possible.

    The other placement decodes as is usual there: whole images on a GPU, where decoding of regions may end the process.
    """
    if loader.world.device.type != "cuda" or "gpu" not in loader.backend.placements:
        return None
    there = "cpu" if loader.placement.side == "gpu" else "gpu"
    report(f"what would decoding on the {there.upper()} give", 1.0)
    config = replace(loader.config, placement=there, decode=DEFAULT_DECODE[there])
    open_other = partial(
        build_loader, loader.split, loader.transform, loader.batch_size, loader.world, loader.sampling, config
    )
    return compare_placements(loader, config, open_other, setting)


def compare_placements(
    loader: Loader, config: LoaderConfig, open_other: Callable[[], Loader], setting: Setting
) -> OtherPlacement:
    """Measure the step fed by `loader` and fed by another loader in turns; one that cannot run is told with its reason.

    Args:
        config: of the other loader, with an explicit placement.
        open_other: builds the other loader.

    Raises:
        RuntimeError, InputError: the other loader fails while it is measured, and this is one of several processes:
            the others wait for it in the step.
    """
    told = partial(OtherPlacement, loader.placement.side, config.placement, config.decode)
    with ExitStack() as stack:
        # The other loader must deliver a batch before the step takes part, whose processes wait for each other: where
        # it fails in one of them, all of them leave here.
        feeds, reasons = [], []
        try:
            other = open_other()
            other.position = loader.position
            feeds = [stack.enter_context(Feed(other))]
            next(feeds[0].batches)
        except FAILURES as error:
            reasons = [in_a_line(error)]
        if reasons := from_every_rank(reasons, loader.world):
            return told(None, reasons[0])
        # The same step takes the batches of both loaders, in turns.
        try:
            step = build_step(setting, loader)
            feeds = [stack.enter_context(Feed(loader)), *feeds]
            return told(compare([Stepping(feed, step) for feed in feeds], setting, 0.0).rate)
        except FAILURES as error:
            if loader.world.size > 1:
                raise
            return told(None, in_a_line(error))


def compare(pair: list[Stage], setting: Setting, value: float) -> Probe:
    """Both in turns: the second's rate and CPU time beside the first's, as ratios."""
    for stage in pair:
        stage.calibrate(setting.seconds / 2)
    windows = [[measure(stage) for stage in pair] for _ in range(REPETITIONS)]
    world = pair[0].world
    rates, costs = zip(*(_ratios(before, after) for before, after in windows), strict=True)
    everyones = gather([statistics.median(rates), statistics.median(costs)], world)
    rate, cost = (statistics.median(column) for column in zip(*everyones, strict=True))
    return Probe(rate, cost, value)


def _ratios(before: Window, after: Window) -> tuple[float, float]:
    """Of images/s, and of CPU-seconds an image."""
    rates = [window.num_images / window.seconds for window in (before, after)]
    costs = [window.cpu_seconds / window.num_images for window in (before, after)]
    return rates[1] / rates[0], costs[1] / costs[0] if costs[0] else 1.0


def find_scaling(loader: Loader) -> Scaling:
    """Return what twice the cores would do: nothing for threads whose number is set, by a flag or OMP_NUM_THREADS.

    By default there is a decoding thread for each core, but not more than a limit: beyond it more cores do not help.
    """
    cores, usual = len(share_cores(loader.world)), default_num_threads(loader.world)
    return Scaling(
        decode=1.0 if loader.config.num_threads else min(MOST_THREADS, 2 * cores) / usual,
        model=1.0 if "OMP_NUM_THREADS" in os.environ else 2.0,
    )
