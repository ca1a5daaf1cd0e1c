"""Time the steps of a loop: with a warm-up, a clock that waits for the device, and no pause between repetitions."""

import time
from collections.abc import Callable
from itertools import pairwise

import torch

from loaders import LoaderConfig, World
from train.dist import all_reduce_sum, broadcast_from_rank0

WARMUP_STEPS = 3  # untimed: the first ones load kernels and fill queues
SPENT = ("wait", "take", "read", "decode", "copy")  # the parts that `loader.stats()` has seconds of

QUEUES = 3  # in a loader: batches that are read, decoded, ready

Take = Callable[[], None]  # sends one batch through what is measured


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


def max_batches_ready(config: LoaderConfig) -> int:
    """Return how many batches can be ready after a pause: three full queues, and two batches in progress."""
    return QUEUES * config.batches_ahead + 2


def time_repetitions(take: Take, num_steps: int, repetitions: int, world: World) -> list[float]:
    """Return the seconds of each repetition. They follow without a pause, so that a loader cannot fill its queue."""
    marks = [read_clock(world)]
    for _ in range(repetitions):
        for _ in range(num_steps):
            take()
        marks.append(read_clock(world))
    return [end - start for start, end in pairwise(marks)]


def read_clock(world: World) -> float:
    """Return the time in seconds, after the device has finished all queued work."""
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)
    return time.perf_counter()


def all_gather_values(values: list[float], world: World) -> list[list[float]]:
    """Return the values of every rank, one row per rank."""
    table = torch.zeros(world.size, len(values), dtype=torch.float64, device=world.device)
    table[world.rank] = torch.tensor(values, dtype=torch.float64)
    return all_reduce_sum(table, world).tolist()
