"""Loaders that are all open and measured in turns, a window each: what disturbs the machine disturbs them alike.

A loader that nobody takes batches from stops once its queues are full, and the next window waits until that is so. It
begins with batches that do not count, the ones that stood ready. All loaders are at the same place of the same stream,
so that the windows of a pair are of the same images.
"""

import statistics
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from pace import gather, most_ready, read_clock, warm_up
from tuning.rule import Pair, take_pairs
from tuning.search import Comparison, HasTime

from loaders import LoaderConfig, Split, TrainTransform, World, build_loader
from prep.errors import InputError
from train.dist import from_rank_0, meet

FIRST_BATCHES = 4  # of a loader that was just opened; its pools grow
LOOKS, LOOK_SECONDS = 4, 0.004  # in a row at which nothing works: what passes work on is asleep for a moment
LONGEST_REST = 30.0  # seconds
FAILURES = (RuntimeError, InputError)
MOST_CHARACTERS = 300
T = TypeVar("T")


class CandidateError(RuntimeError):
    """Settings that this machine cannot run."""


@dataclass(frozen=True)
class Workload:
    """What the loaders are to deliver."""

    split: Split
    world: World
    batch_size: int  # images a step and process
    size: int  # pixels


class Runner:
    """An open loader. Goes on only as batches are taken; `close` ends its threads."""

    def __init__(self, work: Workload, config: LoaderConfig, num_taken: int) -> None:
        self.config, self.world = config, work.world
        images = work.batch_size * work.world.size
        self.loader = build_loader(work.split, TrainTransform(work.size), images, work.world, config=config)
        self.loader.position = max(0, num_taken - FIRST_BATCHES) * images
        self.batches = iter(self.loader)
        self.take(FIRST_BATCHES)
        self.rest()

    @property
    def num_taken(self) -> int:
        """Batches since the start of the stream."""
        return self.loader.position // self.loader.batch_size

    @property
    def num_untimed(self) -> int:
        """Batches of a window's beginning, which do not count."""
        return most_ready(self.config)

    def take(self, num_batches: int = 1) -> None:
        """The loader alone: nothing is done with a batch."""
        for _ in range(num_batches):
            next(self.batches)

    def window(self, num_untimed: int, num_steps: int) -> float:
        """Images/s of a process at the slowest one's pace; then waits until the loader is at rest."""
        meet(self.world)
        self.take(num_untimed)
        started = read_clock(self.world)
        self.take(num_steps)
        everyones = gather([read_clock(self.world) - started], self.world)
        self.rest()
        return num_steps * len(self.loader.slots) / max(seconds for (seconds,) in everyones)

    def rest(self) -> None:
        """Wait until the queue is full and nothing in this process works."""
        given_up, looks = time.monotonic() + LONGEST_REST, 0
        while looks < LOOKS and time.monotonic() < given_up:
            time.sleep(LOOK_SECONDS)
            is_full = self.loader.stats().queue_depth >= self.config.batches_ahead
            looks = looks + 1 if is_full and not is_working() else 0

    def close(self) -> None:
        """Stop reading ahead."""
        self.batches.close()  # pyright: ignore[reportAttributeAccessIssue]  (a generator)


def is_working() -> bool:
    """Whether a thread of this process beside the asking one runs, waits for a core or for the disk."""
    own, states = str(threading.get_native_id()), []
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has ended
            if task.name != own:
                states.append((task / "stat").read_text().rpartition(") ")[2][0])
    return "R" in states or "D" in states


def in_a_line(error: Exception) -> str:
    """What an error says, cut where it gets long."""
    return " ".join(str(error).split())[:MOST_CHARACTERS]


class Turns:
    """Compares settings. Keeps the faster ones' loader open for the next comparison. Use as a context manager."""

    def __init__(self, work: Workload, start: LoaderConfig, window_seconds: float) -> None:
        self.work = work
        self.kept = Runner(work, start, 0)
        try:
            self.num_steps = warm_up(self.kept.take, window_seconds, work.world)
            self.kept.rest()
            started = time.perf_counter()
            self.first_rate = self.kept.window(self.kept.num_untimed, self.num_steps)
            self.spent = [2 * (time.perf_counter() - started)]
        except BaseException:
            self.kept.close()
            raise

    def __enter__(self) -> "Turns":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.kept.close()

    @property
    def pair_seconds(self) -> float:
        """What a pair takes, about; the same on every rank."""
        return from_rank_0(statistics.median(self.spent), self.work.world)

    def compare(self, candidate: LoaderConfig, other: LoaderConfig, least: int, has_time: HasTime) -> Comparison:
        """A candidate against what is there, in pairs of windows; one that cannot run has lost."""
        self._keep(other)
        try:
            runner = self._try(lambda: Runner(self.work, candidate, self.kept.num_taken))
        except CandidateError as error:
            return Comparison(candidate, other, (), str(error))
        try:
            pairs = take_pairs(lambda: self._measure_pair(runner), least, has_time)
            comparison = Comparison(candidate, other, tuple(pairs))
        except CandidateError as error:
            comparison = Comparison(candidate, other, (), str(error))
        except BaseException:
            runner.close()
            raise
        if comparison.is_better:
            self.kept, runner = runner, self.kept
        runner.close()
        return comparison

    def _keep(self, config: LoaderConfig) -> None:
        if self.kept.config != config:
            self.kept.close()
            self.kept = Runner(self.work, config, self.kept.num_taken)

    def _measure_pair(self, runner: Runner) -> Pair:
        """A window of each, in turn the one and the other first, the same images in both."""
        started = time.perf_counter()
        num_untimed = max(runner.num_untimed, self.kept.num_untimed)
        rates = {}
        for each in (self.kept, runner) if len(self.spent) % 2 else (runner, self.kept):
            measure = partial(each.window, num_untimed, self.num_steps)
            rates[each] = self._try(measure) if each is runner else measure()
        self.spent.append(time.perf_counter() - started)
        return rates[runner], rates[self.kept]

    def _try(self, work: Callable[[], T]) -> T:
        """What a candidate does. Of several processes one may fail alone, and the others cannot go on: all end."""
        try:
            return work()
        except FAILURES as error:
            if self.work.world.size > 1:
                raise
            raise CandidateError(in_a_line(error)) from error
