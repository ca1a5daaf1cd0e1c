"""A stage measured again with something changed, in turns with itself as it was: what advice promises is measured.

What counts is the ratio of the two, so that unrest in the minutes between does not enter a promise.
"""

import os
import statistics
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace

from pace import gather
from stages.decoding import Decoding, MemoryLoader, hold_batches
from stages.machine import count_cores
from stages.rounds import Report
from stages.setting import Setting
from stages.smaller import mean_bytes, shrink
from stages.stage import Stage, Window, measure
from stages.stepping import Feed, Stepping, build_step, open_synthetic
from verdict.advice import FREE_STORAGE, SMALLER_FILES, SMALLER_IMAGES, THREADS, Probe, Scaling

from loaders import Loader, build_loader

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
    """What twice the cores would do: nothing for threads whose number is set, by a flag or OMP_NUM_THREADS."""
    return Scaling(
        decode=1.0 if loader.config.num_threads else 2.0,
        model=1.0 if "OMP_NUM_THREADS" in os.environ else 2.0,
    )
