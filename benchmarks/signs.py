"""Signs: what slows training down and no rate of a stage shows alone. Each has its figures, in a sentence.

communication  the share of a step in which a process waits for the gradients of the others: the same step is measured
               with and without averaging the gradients (DDP's `no_sync`), alternately
launching      the CPU needs longer to launch a step's work than the GPU needs to do it, so the GPU is idle
engines        how unevenly the GPU's JPEG engines deliver batches
distance       a process runs on the cores of one socket, and its GPU is connected to another one
clocks         the GPU runs slower because of its power limit or its temperature
"""

import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from machine import ClockSampler, Gpu, Sample, Usage, open_gpu, read_address
from stages import LOADER, MODEL, TRAIN, Feed, Feeding, Report, Setting, Stepping, Windows, open_synthetic, run_in_turn
from timing import FAILURES, Stage, Window, measure_ratios, measure_window

from loaders import Loader, build_loader
from train.dist import no_sync
from train.step import Step

COMMUNICATION, LAUNCHING, ENGINES, DISTANCE, CLOCKS = "communication", "launching", "engines", "distance", "clocks"
MOST_SECONDS = 0.5  # of a window that is measured for a sign alone
WATCHED_SECONDS = 2.5  # nvidia-smi reports once per second
SYS = Path("/sys")

# The limits of the signs.
MOST_COMMUNICATION = 0.1  # of a step
MOST_FIXED = 0.7  # share of a step that a step of few images takes
MOST_IDLE, MOST_WAIT = 0.15, 0.05  # shares of the time that the GPU is idle, and that training waits for data
MOST_UNEVEN = 1.5  # p99 / p50 of a batch's time
MOST_SLOWED = 0.1  # of the samples of the clocks

FEW_IMAGES, FEW_WINDOWS = 2, 3  # of a small step: images at once (BatchNorm needs two), and windows
LOADS = (0.0, 0.65, 0.99)  # of the JPEG engines
LEAST_BATCHES = 100  # fewer have no 99th percentile
AS_FAST = 0.97  # share of the fastest load's images/s that another load may have
# Bits of nvmlDeviceGetCurrentClocksEventReasons (nvml.h), and what they mean to a user. Idleness and settings of the
# user are not among them.
REASONS = {
    0x04: "power limit",  # SwPowerCap
    0x08: "hardware slowdown",
    0x20: "temperature",  # SwThermalSlowdown
    0x40: "temperature",  # HwThermalSlowdown
    0x80: "power supply",  # HwPowerBrakeSlowdown
}

Times = Sequence[float]  # seconds of each batch


@dataclass(frozen=True)
class Sign:
    """One sign that was measured, whether or not it exceeds its limit."""

    name: str
    is_found: bool  # it exceeds its limit, and the sentence ends with advice
    share: float  # how strong it is, from 0 to 1
    says: str
    figures: dict[str, Any]


@dataclass(frozen=True)
class Watched:
    """The windows of one stage, and what was seen of the GPU meanwhile."""

    windows: list[Window]
    usage: dict[str, float]  # percentages
    samples: list[Sample]

    def busy_share(self, name: str) -> float | None:
        """Return the mean share of the time that a part of the GPU worked, e.g. "sm"; None if it is not known."""
        percent = self.usage.get(f"{name}_percent")
        return None if percent is None else percent / 100

    @property
    def wait_share(self) -> float:
        """The share of the time that was spent waiting for a batch."""
        waited = sum(window.spent["wait"] / 1000 * len(window.batch_seconds) for window in self.windows)
        return waited / sum(window.seconds for window in self.windows)


# What is measured. Every process takes part.


def measure_signs(
    loader: Loader, stages: Sequence[Stage], windows: Windows, setting: Setting, report: Report
) -> list[Sign]:
    """Return the signs, measured on the open stages of the mode `all`, with the windows that were measured on them."""
    by_name = {stage.name: stage for stage in stages}
    train = by_name[TRAIN]
    assert isinstance(train, Stepping)

    # The step, the GPU while it trains for some seconds, and the process's place.
    report("measuring signs of lost time", 1.0)
    shorter = replace(setting, seconds=min(MOST_SECONDS, setting.seconds))
    watched, repetitions = {}, math.ceil(WATCHED_SECONDS / setting.seconds)
    if loader.world.device.type == "cuda":
        watched = {name: watch(by_name[name], repetitions, report) for name in (TRAIN, LOADER)}
    few = measure_few(loader, train.step, shorter)
    fixed_share = few and few / step_seconds(windows[MODEL])
    times = measure_loads(loader, shorter) if loader.decodes_on_gpu else {}
    return find_signs(loader, train.step, shorter, fixed_share, watched, times)


def find_signs(
    loader: Loader,
    step: Step,
    setting: Setting,
    fixed_share: float | None,
    watched: Mapping[str, Watched],
    times: Mapping[float, Times],
) -> list[Sign]:
    """Return the signs of the step, the GPU and the process.

    Args:
        fixed_share: see `judge_launching`.
        watched: loader and training on a GPU, by the stage's name.
        times: of the loader's batches, by the load of the JPEG engines.
    """
    device, train = loader.world.device, watched.get(TRAIN)
    busy = train.busy_share("sm") if train else None
    idle, wait = (1 - busy, train.wait_share) if train and busy is not None else (None, None)
    found = [
        measure_communication(loader, step, setting),
        judge_launching(fixed_share, idle, wait, has_gpu=device.type == "cuda"),
        find_distance(open_gpu(device)),
        judge_clocks(train.samples if train else []),
    ]
    if loader.decodes_on_gpu:
        found.append(judge_engines(loader.config.hw_decoder_load, times, watched[LOADER].busy_share("jpg")))
    return [sign for sign in found if sign is not None]


def watch(stage: Stage, repetitions: int, report: Report) -> Watched:
    """Measure windows of a stage without a pause. nvidia-smi reports once per second: shorter ones see nothing."""
    with Usage() as usage, ClockSampler(open_gpu(stage.world.device)) as sampler:
        windows = run_in_turn(stage, repetitions, report)
    return Watched(windows, usage.figures, sampler.samples)


class Alone(Stepping):
    """The training step without communication; the processes' weights differ afterwards, which costs no time."""

    def take(self) -> None:
        with no_sync(self.step.model):
            super().take()


def measure_communication(loader: Loader, step: Step, setting: Setting) -> Sign | None:
    """Measure the share of a step that communication takes; None for one process."""
    if loader.world.size == 1:
        return None
    with Feed(open_synthetic(loader, setting.size)) as feed:
        gain, _ = measure_ratios([Stepping(feed, step), Alone(feed, step)], setting.seconds / 2)
    return judge_communication(gain)


def measure_few(loader: Loader, step: Step, setting: Setting) -> float | None:
    """Return the seconds of a step of few images without communication; None with torch.compile.

    They do not depend on the resolution, as long as launching decides.
    """
    if setting.compile != "none":  # it would compile for the small batch
        return None
    batch_size = FEW_IMAGES * step.num_parts * loader.world.size
    if batch_size >= loader.batch_size:
        return None
    with Feed(open_synthetic(loader, setting.size, batch_size)) as feed:
        stage = Alone(feed, step)
        stage.calibrate(setting.seconds)
        return step_seconds([measure_window(stage) for _ in range(FEW_WINDOWS)])


def step_seconds(windows: Sequence[Window]) -> float:
    """Return the median time of a step."""
    return statistics.median(window.seconds / len(window.batch_seconds) for window in windows)


def measure_loads(loader: Loader, setting: Setting) -> dict[float, Times]:
    """Return the seconds of each batch of the loader alone, at several loads; loads that fail are absent."""
    times = {}
    for load in sorted({*LOADS, loader.config.hw_decoder_load}):
        config = replace(loader.config, hw_decoder_load=load)
        try:
            other = build_loader(loader.split, loader.transform, loader.batch_size, loader.world, config=config)
            with Feed(other) as feed:
                stage = Feeding(feed)
                stage.calibrate(setting.seconds)
                stage.num_steps = max(LEAST_BATCHES, stage.num_steps)
                times[load] = measure_window(stage).batch_seconds
        except FAILURES:
            if loader.world.size > 1:  # the other processes wait for this one
                raise
    return times


def find_distance(gpu: Gpu | None) -> Sign | None:
    """Return the sign for this process and its GPU; None without a GPU, or if the machine has one node."""
    address = read_address(gpu) if gpu else None
    return judge_distance(SYS, address, os.sched_getaffinity(0)) if address else None


# How it is judged.


def judge_communication(gain: float) -> Sign:
    """Return the sign.

    Args:
        gain: images/s of the step without communication, divided by images/s with it.
    """
    # With twice the images between two exchanges, or half the bytes, half of the communication remains per image.
    share = max(0.0, 1 - 1 / gain)
    halved = 1 / (1 - share / 2)
    says = f"Communication between the processes takes {share:.0%} of a training step"
    if share > MOST_COMMUNICATION:
        says += (
            f": with half of it the step would be {halved:.2f} x as fast. Give each process a larger batch, accumulate "
            "(a larger --batch-size with --speed.microbatch)"
        )
    figures = {"share": share, "gain_if_halved": halved}
    return Sign(COMMUNICATION, share > MOST_COMMUNICATION, share, f"{says}.", figures)


def judge_launching(
    fixed_share: float | None, idle: float | None = None, wait: float | None = None, has_gpu: bool = True
) -> Sign | None:
    """Return the sign; None if nothing of it was measured.

    A step of 2 images launches the same kernels as a complete one, but the GPU finishes them at once: if it takes
    almost as long, launching decides. It is measured without communication, which does not depend on the images
    either. And the GPU is idle although training does not wait for data; this also finds launches that are slow because
    the loader's threads use the cores.

    The time until the launching loop returns, compared with the time until the GPU has finished, would show neither.
    The driver holds about a thousand launches, and one step of ResNet-50 has 1,036 (records/h200/gpu-model.json): the
    loop waits for the GPU in any case.

    Args:
        fixed_share: time of a step of few images, as a share of a complete step.
        idle: share of the time of training in which the GPU was idle.
        wait: share of the time that training waited for data.
    """
    facts, found = [], []
    if fixed_share is not None:
        facts.append(f"a step of {FEW_IMAGES} images takes {fixed_share:.0%} of the time of a complete one")
        found.append(fixed_share > MOST_FIXED)
    if idle is not None and wait is not None:
        facts.append(f"the GPU is idle {idle:.0%} of the time while training waits {wait:.0%} of it for data")
        found.append(idle > MOST_IDLE and wait < MOST_WAIT)
    if not facts:
        return None
    says = " and ".join(facts)
    if any(found) and has_gpu:
        says += (
            ": launching its work takes the CPU too long. Not measured here: --speed.compile reduce-overhead "
            "(CUDA graphs), --speed.compile default, or more images per step"
        )
    elif any(found):
        says += ": most of its time does not depend on the number of images. More images per step help"
    share = max(fixed_share or 0.0, idle if found[-1] and idle is not None else 0.0)
    figures = {"fixed_share": fixed_share, "idle_share": idle, "wait_share": wait}
    return Sign(LAUNCHING, any(found), share, f"{says[0].upper()}{says[1:]}.", figures)


def judge_engines(load: float, times: Mapping[float, Times], busy: float | None = None) -> Sign | None:
    """Return the sign; None if the present load was not measured.

    The share of the images that the engines get (hw_decoder_load) should be chosen by p99 as well as by the mean:
    training waits for the slowest batches (DALI's pull request 6366: p99 rises from 24.5 to 34.3 ms at a load of 0.90).

    Args:
        load: the present one.
        times: by load.
        busy: share of the time that the engines work at the present load.
    """
    if load not in times:
        return None

    # The load with the lowest p99 among those that are about as fast as the fastest.
    means = {each: statistics.mean(times[each]) for each in times}
    p50, p99 = ({each: percentile(times[each], share) for each in times} for share in (0.5, 0.99))
    fast = [each for each in times if means[each] * AS_FAST <= min(means.values())]
    best = min(fast, key=lambda each: p99[each])
    is_uneven = p99[load] > MOST_UNEVEN * p50[load]
    working = "" if busy is None else f", and its JPEG engines work {busy:.0%} of the time"
    says = (
        f"At hw_decoder_load {load:g} the GPU decodes a batch in {1000 * p50[load]:,.1f} ms (p50), "
        f"{1000 * p99[load]:,.1f} ms (p99){working}"
    )
    if best != load:
        says += (
            f": --loader.hw-decoder-load {best:g} takes {1000 * means[best]:,.1f} ms on average instead of "
            f"{1000 * means[load]:,.1f}, with a p99 of {1000 * p99[best]:,.1f} ms"
        )
    elif is_uneven:
        says += ": more --loader.batches-ahead evens out slow batches"
    figures = {"load": load, "best": best, "p50": p50, "p99": p99, "mean": means, "busy": busy}
    return Sign(ENGINES, best != load or is_uneven, 1 - p50[load] / p99[load], f"{says}.", figures)


def percentile(times: Times, share: float) -> float:
    """Return the smallest time that at least `share` of all times do not exceed."""
    ordered = sorted(times)
    return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)]


def judge_distance(sys: Path, address: str, cores: set[int]) -> Sign | None:
    """Return the sign; None if the machine has one node, or the kernel does not know the GPU's.

    Args:
        sys: the folder /sys.
        address: the GPU's PCI address, such as 0000:17:00.0.
        cores: numbers of the cores that the process may use.
    """
    file = sys / "bus" / "pci" / "devices" / address / "numa_node"
    nodes = {
        int(path.parent.name.removeprefix("node")): parse_cores(path.read_text())
        for path in (sys / "devices" / "system" / "node").glob("node[0-9]*/cpulist")
    }
    node = int(file.read_text()) if file.is_file() else -1
    if len(nodes) < 2 or node not in nodes:
        return None
    near = len(cores & nodes[node])
    says = f"The GPU belongs to NUMA node {node}, as do {near} of the {len(cores)} cores that this process may use"
    if near < len(cores):
        says += f". Not measured here: numactl --cpunodebind={node} --membind={node} for each process"
    share = 1 - near / len(cores)
    return Sign(DISTANCE, near < len(cores), share, f"{says}.", {"node": node, "near": near, "cores": len(cores)})


def parse_cores(text: str) -> set[int]:
    """Return the numbers in a list of the kernel, such as 0-3,8."""
    ranges = [part.partition("-") for part in text.strip().split(",") if part]
    return {core for low, _, high in ranges for core in range(int(low), int(high or low) + 1)}


def judge_clocks(samples: list[Sample]) -> Sign | None:
    """Return the sign; None without samples."""
    if not samples:
        return None
    found = [{reason for bit, reason in REASONS.items() if sample.reasons & bit} for sample in samples]
    shares = {
        reason: sum(reason in each for each in found) / len(samples) for reason in dict.fromkeys(REASONS.values())
    }
    share = sum(map(bool, found)) / len(samples)
    megahertz, most = statistics.median(each.megahertz for each in samples), samples[0].most_megahertz
    says = f"The GPU ran at {megahertz:,.0f} of at most {most:,} MHz"
    if share:
        named = ", ".join(f"{reason} {each:.0%}" for reason, each in shares.items() if each)
        says += f", and lowered its clocks in {share:.0%} of {len(samples)} samples ({named})"
    if share > MOST_SLOWED:
        says += ": check cooling and power limit (nvidia-smi -q -d PERFORMANCE,POWER)"
    figures = {"megahertz": megahertz, "most_megahertz": most, "shares": shares, "num_samples": len(samples)}
    return Sign(CLOCKS, share > MOST_SLOWED, share, f"{says}.", figures)
