"""How everything here is timed: warm-up, a clock that waits for the device, repetitions without a pause between."""

import time
from collections.abc import Callable
from itertools import pairwise

import torch

from loaders import LoaderConfig, World
from train.dist import add_up, from_rank_0

WARMUP_STEPS = 3  # untimed: the first ones load kernels and fill queues
SPENT = ("wait", "take", "read", "decode", "copy")  # what `loader.stats()` has seconds of

QUEUES = 3  # of a loader: read, decoded, ready

Take = Callable[[], None]  # one batch through what is measured


def warm_up(take: Take, seconds: float, world: World) -> int:
    """Run until rates are steady; the steps that take about `seconds`, the same number on every rank."""
    for _ in range(WARMUP_STEPS):
        take()
    num_steps, spent = 1, 0.0
    while spent < seconds / 2:
        num_steps, started = num_steps * 2, read_clock(world)
        for _ in range(num_steps):
            take()
        spent = from_rank_0(read_clock(world) - started, world)
    return max(1, round(num_steps * seconds / spent))


def most_ready(config: LoaderConfig) -> int:
    """Batches that may stand ready when nobody has taken any for a while, and two that were begun."""
    return QUEUES * config.batches_ahead + 2


def repeat(take: Take, num_steps: int, repetitions: int, world: World) -> list[float]:
    """Seconds of each repetition; they follow one another without a pause in which a loader could get ahead."""
    marks = [read_clock(world)]
    for _ in range(repetitions):
        for _ in range(num_steps):
            take()
        marks.append(read_clock(world))
    return [end - start for start, end in pairwise(marks)]


def read_clock(world: World) -> float:
    """The time once the device has done all that it was given."""
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)
    return time.perf_counter()


def gather(values: list[float], world: World) -> list[list[float]]:
    """Every rank's values, a row each."""
    table = torch.zeros(world.size, len(values), dtype=torch.float64, device=world.device)
    table[world.rank] = torch.tensor(values, dtype=torch.float64)
    return add_up(table, world).tolist()
