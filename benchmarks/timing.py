"""Time what runs in steps: a loop, a window of a stage, two stages in alternating windows; decide which is faster.

A window: untimed batches until the stage runs at its steady rate (`rest`), then `num_steps` timed ones. Windows of two
stages alternate, so that other load on the machine slows both and leaves their ratio as it is.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from record import summarize

from loaders import LoaderConfig, Stats, World
from loaders.tuned import SETTINGS
from prep.errors import InputError
from train.dist import all_reduce_sum, barrier, broadcast_from_rank0

WARMUP_STEPS = 3  # untimed: the first ones load kernels and fill queues
SPENT = ("wait", "take", "read", "decode", "copy")  # the parts that `loader.stats()` has seconds of
PAIRS = 3  # of windows, to measure the effect of a change

# The sign rule's limits; `is_faster` explains them.
LEAST_GAIN = 0.01  # in the median ratio; a smaller gain does not justify another setting
WINS, WINS_AFTER_LOSS, MOST_LOSSES = 5, 7, 1

# What measuring settings raises if they cannot run on this machine, for example for lack of memory.
FAILURES = (RuntimeError, InputError)
MOST_CHARACTERS = 300  # of a recorded failure

HasTime = Callable[[], bool]  # another pair can be measured
Take = Callable[[], None]  # sends one batch through what is measured
Pair = tuple[float, float]  # images/s of the candidate, and of the settings that it would replace


# One loop.


def read_clock(world: World) -> float:
    """Return the time in seconds, after the device has finished all queued work."""
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)
    return time.perf_counter()


def warm_up(take: Take, seconds: float, world: World) -> int:
    """Run until the rate is steady; return the number of steps that take about `seconds`, the same on every rank."""
    for _ in range(WARMUP_STEPS):
        take()
    # Double the number of steps until a measurement is long enough to compute the step time from it.
    num_steps, spent = 1, 0.0
    while spent < seconds / 2:
        num_steps, started = num_steps * 2, read_clock(world)
        for _ in range(num_steps):
            take()
        # Rank 0 decides, so that all ranks run the same number of steps.
        spent = broadcast_from_rank0(read_clock(world) - started, world)
    return max(1, round(num_steps * seconds / spent))


def time_repetitions(take: Take, num_steps: int, repetitions: int, world: World) -> list[float]:
    """Return the seconds of each repetition. They follow without a pause, so that a loader cannot fill its queue."""
    marks = [read_clock(world)]
    for _ in range(repetitions):
        for _ in range(num_steps):
            take()
        marks.append(read_clock(world))
    return [end - start for start, end in pairwise(marks)]


def all_gather_values(values: Sequence[float], world: World) -> list[list[float]]:
    """Return the values of every rank, one row per rank."""
    table = torch.zeros(world.size, len(values), dtype=torch.float64, device=world.device)
    table[world.rank] = torch.tensor(values, dtype=torch.float64)
    return all_reduce_sum(table, world).tolist()


def shorten_error(error: Exception) -> str:
    """Return an error's message in one line of at most MOST_CHARACTERS characters."""
    return " ".join(str(error).split())[:MOST_CHARACTERS]


# A window of a stage.


@dataclass(frozen=True)
class Window:
    """One measurement of a stage, in this process."""

    seconds: float
    num_images: int
    cpu_seconds: float  # user and system time of all threads of the process
    num_bytes: int = 0  # of the encoded images, read
    image_bytes: int = 0  # size of these images in the shards; from restart shards only a part of it is read
    decode_bytes: int = 0  # of the JPEGs that were passed to the decoder
    spent: dict[str, float] = field(default_factory=dict)  # milliseconds per batch, by kind of work
    batch_seconds: tuple[float, ...] = ()  # from batch to batch, as the consumer sees it

    @property
    def images_per_second(self) -> float:
        """The rate of this process."""
        return self.num_images / self.seconds


class Stage:
    """One part of the pipeline, in this process. Use as a context manager: it holds threads, files and memory."""

    has_step = False  # it runs a training step on each batch

    def __init__(self, name: str, batch_size: int, world: World) -> None:
        self.name, self.batch_size, self.world = name, batch_size, world
        self.num_steps = 0  # batches of a window

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *error: object) -> None:
        """Release all threads, files and memory."""

    def take(self) -> None:
        """Send one batch through the stage."""
        raise NotImplementedError

    def calibrate(self, seconds: float) -> None:
        """Run until the rate is steady, and set the number of batches of a window of about `seconds`."""
        self.num_steps = warm_up(self.take, seconds, self.world)

    def rest(self) -> None:
        """Do what comes before a window and is not timed."""

    def stats(self) -> Stats | None:
        """Return the loader's counters so far; None for a stage without a loader."""
        return None


def measure_window(stage: Stage, is_steady: bool = False) -> Window:
    """Measure one window of a stage; all processes start together, with what comes before the clock.

    Args:
        is_steady: the stage runs at its steady rate already, because the window follows another one without a pause.
    """
    # Bring the stage to its steady rate, then start the clock at once: a process that waited for others in between
    # would fill its queues again, and these batches would make its window too fast.
    barrier(stage.world)
    if not is_steady:
        stage.rest()
    before, cpu_seconds, started = stage.stats(), time.process_time(), read_clock(stage.world)
    marks = [time.perf_counter()]
    for _ in range(stage.num_steps):
        stage.take()
        marks.append(time.perf_counter())
    seconds = read_clock(stage.world) - started
    cpu_seconds, after = time.process_time() - cpu_seconds, stage.stats()

    # The difference of the loader's counters is what happened in the window. `wait`, `take` and `step` are the
    # consumer's time; `read`, `decode` and `copy` happen at the same time in threads.
    spent, num_bytes = {}, (0, 0, 0)
    if before is not None and after is not None:
        interval, each = after.since(before), 1000 / stage.num_steps
        spent = {name: each * getattr(interval, f"{name}_seconds") for name in SPENT}
        if stage.has_step:  # what is left of the wall time
            spent["step"] = max(0.0, each * seconds - spent["wait"] - spent["take"])
        num_bytes = (interval.read_bytes, interval.image_bytes, interval.decode_bytes)
    batch_seconds = tuple(end - start for start, end in pairwise(marks))
    return Window(seconds, stage.num_steps * stage.batch_size, cpu_seconds, *num_bytes, spent, batch_seconds)


# Two stages in alternating windows.


def measure_ratios(pair: Sequence[Stage], seconds: float) -> tuple[float, float]:
    """Measure two stages in alternating windows of about `seconds`; every process must call it.

    Returns:
        Ratios of the second stage to the first one: of images/s, and of CPU time per image. Each is the median over
        the windows, then over the processes.
    """
    for stage in pair:
        stage.calibrate(seconds)
    rates, costs = [], []
    for _ in range(PAIRS):
        before, after = (measure_window(stage) for stage in pair)
        rates.append(after.images_per_second / before.images_per_second)
        cost = before.cpu_seconds / before.num_images
        costs.append(after.cpu_seconds / after.num_images / cost if cost else 1.0)
    everyones = all_gather_values([statistics.median(rates), statistics.median(costs)], pair[0].world)
    rate, cost = (statistics.median(column) for column in zip(*everyones, strict=True))
    return rate, cost


def is_faster(pairs: Sequence[Pair]) -> bool | None:
    """Return True if the candidate is faster, False if it is not, and None if more pairs are needed.

    Each pair of windows is won or lost, so that the rule does not depend on the distribution of a machine's noise (a
    sign test). The candidate must win five pairs and lose none, or win seven and lose one. If both were equally fast
    and windows independent, this would happen in 5 of 100 cases (1/32 + 5/256). The median gain must also be large
    enough to justify a setting that differs from the current one.
    """
    ratios = find_ratios(pairs)
    wins = sum(ratio > 1 for ratio in ratios)
    losses = len(ratios) - wins
    if losses > MOST_LOSSES:
        return False
    if wins < (WINS_AFTER_LOSS if losses else WINS):
        return None
    return statistics.median(ratios) >= 1 + LEAST_GAIN


def find_ratios(pairs: Sequence[Pair]) -> list[float]:
    """Return the candidate's rate divided by the other's, for each pair."""
    return [candidate / other for candidate, other in pairs]


def measure_pairs(measure_one: Callable[[], Pair], least: int, has_time: HasTime) -> list[Pair]:
    """Measure as many pairs as the rule needs, at least `least`; above `least` none after the time is over."""
    pairs: list[Pair] = []
    while len(pairs) < least or (is_faster(pairs) is None and has_time()):
        pairs.append(measure_one())
    return pairs


# Two settings of the loader, compared in pairs of windows.


@dataclass(frozen=True)
class Comparison:
    """A candidate compared with the settings that it would replace."""

    candidate: LoaderConfig
    other: LoaderConfig
    pairs: tuple[Pair, ...]
    failure: str | None = None  # why the candidate cannot run

    @property
    def is_better(self) -> bool:
        """True if the candidate is faster by more than the noise."""
        return self.failure is None and is_faster(self.pairs) is True

    @property
    def changes(self) -> dict[str, list[Any]]:
        """The settings in which the candidate differs, each as [before, after]."""
        both = {name: [getattr(self.other, name), getattr(self.candidate, name)] for name in SETTINGS}
        return {name: values for name, values in both.items() if values[0] != values[1]}


def describe_comparison(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison for the record, with every pair; rates are images/s per process."""
    if comparison.failure is not None:
        return {"changes": comparison.changes, "is_better": False, "failure": comparison.failure}
    candidate, other = (list(rates) for rates in zip(*comparison.pairs, strict=True)) if comparison.pairs else ([], [])
    figures = {"candidate": candidate, "other": other, "ratio": find_ratios(comparison.pairs)}
    return {
        "changes": comparison.changes,
        "is_better": comparison.is_better,
        **{name: summarize(values) if values else None for name, values in figures.items()},
    }


def describe_step(comparison: Comparison) -> str:
    """Return a comparison in one line."""
    changes, pairs = comparison.changes, comparison.pairs
    named = ", ".join(f"{name} {after} instead of {before}" for name, (before, after) in changes.items())
    if comparison.failure is not None:
        return f"{named}: cannot run here ({comparison.failure})"

    # Both rates, and the median and the range of their difference.
    gain = "not measured"
    if pairs:
        candidate, other = (statistics.median(rates) for rates in zip(*pairs, strict=True))
        ratios = find_ratios(pairs)
        median, low, high = (
            f"{100 * (ratio - 1):+.1f}%" for ratio in (statistics.median(ratios), min(ratios), max(ratios))
        )
        gain = f"{candidate:,.0f} instead of {other:,.0f} images/s, {median} ({low} to {high}, pairs: {len(ratios)})"
    if not changes:
        return f"the same settings twice: {gain}"
    outcomes = {True: "faster", False: "not faster by more than the noise", None: "undecided, no time for more"}
    return f"{named}: {gain}; {outcomes[is_faster(pairs)]}"
