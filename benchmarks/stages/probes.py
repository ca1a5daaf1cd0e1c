"""Measure a stage with a change, alternating with the unchanged stage, so that each promised gain is measured.

The result is the ratio of the two, so that other load on the machine, which slows both, does not change the promise.
"""

import os
import statistics
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import torch
from pace import all_gather_values
from stages.decoding import Decoding, MemoryLoader, hold_batches
from stages.machine import count_cores
from stages.rounds import Report
from stages.setting import Setting
from stages.smaller import mean_image_bytes, shrink_batches
from stages.stage import Stage, Window, measure_window
from stages.stepping import Feed, Stepping, build_step, open_synthetic
from tuning.turns import FAILURES, shorten_error
from verdict.advice import (
    FREE_STORAGE,
    LARGER_BATCH,
    SHORT_FILES,
    SMALLER_FILES,
    SMALLER_IMAGES,
    THREADS,
    OtherPlacement,
    Probe,
    Scaling,
)

from loaders import Loader, LoaderConfig, build_loader
from loaders.config import MAX_THREADS, default_num_threads, share_cores
from loaders.placement import DEFAULT_DECODE
from train.dist import all_gather_objects

REPETITIONS = 3
SIZE_SHARE = 0.72  # 224 becomes 160 pixels, a size at which fast recipes train
SIZE_STEP = 32  # pixels


def measure_probes(names: Iterable[str], loader: Loader, setting: Setting, report: Report) -> dict[str, Probe]:
    """Measure those of the named probes that apply here, each as ratios to the unchanged stage."""
    made = {
        FREE_STORAGE: probe_storage,
        THREADS: probe_threads,
        SMALLER_FILES: probe_files,
        SHORT_FILES: partial(probe_files, name=SHORT_FILES),
        SMALLER_IMAGES: probe_size,
        LARGER_BATCH: probe_batch,
    }
    probes = {}
    for name in names:
        report(f"measuring the effect of {name}", 1.0)
        if probe := made[name](loader, setting):
            probes[name] = probe
    return probes


def probe_storage(loader: Loader, setting: Setting) -> Probe:
    """Measure training from memory instead of storage.

    Slow storage hides how much decoding and the model slow each other down; without it this becomes visible.
    """
    step, memory = build_step(setting, loader), MemoryLoader(loader, hold_batches(loader))
    with ExitStack() as stack:
        feeds = [stack.enter_context(Feed(each)) for each in (loader, memory)]
        return measure_pair([Stepping(feed, step) for feed in feeds], setting, 0.0)


def probe_threads(loader: Loader, setting: Setting) -> Probe | None:
    """Measure decoding with one thread for each core of this process; None if it has as many threads already."""
    num_threads = int(count_cores() // loader.world.local_size)
    if num_threads <= loader.make_spec().num_threads:
        return None
    config = replace(loader.config, num_threads=num_threads)
    more = build_loader(loader.split, loader.transform, loader.batch_size, loader.world, config=config)
    held = hold_batches(loader)
    with ExitStack() as stack:
        pair = [stack.enter_context(Decoding(each, held)) for each in (loader, more)]
        return measure_pair(pair, setting, num_threads)


def probe_files(loader: Loader, setting: Setting, name: str = SMALLER_FILES) -> Probe | None:
    """Measure decoding of the same images stored smaller; None if they do not become smaller.

    Both are decoded from complete JPEGs: the share that restart markers save is assumed to stay.
    """
    held = hold_batches(loader, splices=False)
    smaller = shrink_batches(loader, held, name)
    share = mean_image_bytes(smaller) / mean_image_bytes(held)
    if share >= 1:
        return None
    with ExitStack() as stack:
        pair = [stack.enter_context(Decoding(loader, each)) for each in (held, smaller)]
        return measure_pair(pair, setting, share * float(loader.split.column("size").mean()))


def probe_size(loader: Loader, setting: Setting) -> Probe | None:
    """Measure the model at a lower resolution; None with torch.compile, which takes minutes per resolution."""
    size = max(SIZE_STEP, round(setting.size * SIZE_SHARE / SIZE_STEP) * SIZE_STEP)
    if size >= setting.size or setting.compile != "none":
        return None
    step = build_step(setting, loader)
    with ExitStack() as stack:
        feeds = [stack.enter_context(Feed(open_synthetic(loader, each))) for each in (setting.size, size)]
        return measure_pair([Stepping(feed, step) for feed in feeds], setting, size)


def probe_batch(loader: Loader, setting: Setting) -> Probe | None:
    """Measure the model with twice the images per step and process; None with torch.compile, or without the memory."""
    if setting.compile != "none":
        return None
    twice, pair = 2 * loader.batch_size, []
    with ExitStack() as stack:
        try:
            for batch_size in (loader.batch_size, twice):
                # A step of its own, so that a microbatch keeps its size, and so its memory.
                feed = stack.enter_context(Feed(open_synthetic(loader, setting.size, batch_size)))
                pair.append(Stepping(feed, build_step(setting, feed.loader)))
            return measure_pair(pair, setting, twice / loader.world.size)
        except torch.OutOfMemoryError:
            if loader.world.size > 1:  # the other processes wait for this one in the step
                raise
            return None


def probe_placement(loader: Loader, setting: Setting, report: Report) -> OtherPlacement | None:
    """Measure training with the other placement; return None if only one placement is possible.

    The other placement decodes in its default way: full images on a GPU, where decoding regions may crash the process.
    """
    if loader.world.device.type != "cuda" or "gpu" not in loader.backend.placements:
        return None
    there = "cpu" if loader.placement.side == "gpu" else "gpu"
    report(f"measuring training with decoding on the {there.upper()}", 1.0)
    config = replace(loader.config, placement=there, decode=DEFAULT_DECODE[there])
    open_other = partial(
        build_loader, loader.split, loader.transform, loader.batch_size, loader.world, loader.sampling, config
    )
    return compare_placements(loader, config, open_other, setting)


def compare_placements(
    loader: Loader, config: LoaderConfig, open_other: Callable[[], Loader], setting: Setting
) -> OtherPlacement:
    """Measure the step fed by `loader` and by another loader in alternating windows.

    Args:
        config: the other loader's settings, with an explicit placement.
        open_other: builds the other loader.

    Returns:
        The other placement with its rate; if it cannot run, with the reason instead.

    Raises:
        RuntimeError, InputError: the other loader failed while it was measured, and there are several processes: the
            others already wait for this one in the step.
    """
    describe = partial(OtherPlacement, loader.placement.side, config.placement, config.decode)
    with ExitStack() as stack:
        # Open the other loader and take one batch, before the first step: the processes of a step wait for each
        # other, so a failure in one of them must be known to all before. Then all of them return here.
        feeds, reasons = [], []
        try:
            other = open_other()
            other.position = loader.position
            feeds = [stack.enter_context(Feed(other))]
            next(feeds[0].batches)
        except FAILURES as error:
            reasons = [shorten_error(error)]
        if reasons := all_gather_objects(reasons, loader.world):
            return describe(None, reasons[0])

        # The same step consumes the batches of both loaders alternately.
        try:
            step = build_step(setting, loader)
            feeds = [stack.enter_context(Feed(loader)), *feeds]
            return describe(measure_pair([Stepping(feed, step) for feed in feeds], setting, 0.0).rate)
        except FAILURES as error:
            if loader.world.size > 1:
                raise
            return describe(None, shorten_error(error))


def measure_pair(pair: list[Stage], setting: Setting, value: float) -> Probe:
    """Measure two stages in alternating windows; return the second's rate and CPU time as ratios to the first's."""
    for stage in pair:
        stage.calibrate(setting.seconds / 2)
    windows = [[measure_window(stage) for stage in pair] for _ in range(REPETITIONS)]

    # Every process takes part: the median over the windows, then over the processes.
    rates, costs = zip(*(_ratios(before, after) for before, after in windows), strict=True)
    everyones = all_gather_values([statistics.median(rates), statistics.median(costs)], pair[0].world)
    rate, cost = (statistics.median(column) for column in zip(*everyones, strict=True))
    return Probe(rate, cost, value)


def _ratios(before: Window, after: Window) -> tuple[float, float]:
    """Return the ratios of images/s and of CPU seconds per image, after to before."""
    rates = [window.num_images / window.seconds for window in (before, after)]
    costs = [window.cpu_seconds / window.num_images for window in (before, after)]
    return rates[1] / rates[0], costs[1] / costs[0] if costs[0] else 1.0


def find_core_scaling(loader: Loader) -> Scaling:
    """Return how decoding and the model would scale with twice the cores.

    A number of threads that was set, by a flag or by OMP_NUM_THREADS, does not grow. By default there is one decoding
    thread per core up to a limit, beyond which more cores do not help.
    """
    cores, usual = len(share_cores(loader.world)), default_num_threads(loader.world)
    return Scaling(
        decode=1.0 if loader.config.num_threads else min(MAX_THREADS, 2 * cores) / usual,
        model=1.0 if "OMP_NUM_THREADS" in os.environ else 2.0,
    )
