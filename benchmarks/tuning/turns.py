"""Compare settings with loaders that are open at the same time, in alternating windows: other load affects all alike.

A loader whose batches are not taken stops when its queues are full, and the next window starts only then. A window
begins with batches that do not count: those that were ready. All loaders are at the same position of the same stream,
so the windows of a pair contain the same images.
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

from pace import all_gather_values, max_batches_ready, read_clock, warm_up
from tuning.rule import Pair, measure_pairs
from tuning.search import Comparison, HasTime

from loaders import LoaderConfig, Split, TrainTransform, World, build_loader
from prep.errors import InputError
from train.dist import barrier, broadcast_from_rank0

FIRST_BATCHES = 4  # untimed batches of a newly opened loader, during which its buffers grow
# Number of checks in a row that must find no busy thread: a thread that hands over work sleeps for a moment too.
LOOKS, LOOK_SECONDS = 4, 0.004
LONGEST_REST = 30.0  # seconds
FAILURES = (RuntimeError, InputError)
MOST_CHARACTERS = 300
T = TypeVar("T")


class CandidateError(RuntimeError):
    """The candidate's settings cannot run on this machine."""


@dataclass(frozen=True)
class Workload:
    """The batches that the loaders have to deliver."""

    split: Split
    world: World
    batch_size: int  # images per step and process
    size: int  # pixels


class Runner:
    """An open loader that works only while batches are taken; `close` ends its threads."""

    def __init__(self, work: Workload, config: LoaderConfig, num_taken: int) -> None:
        self.config, self.world = config, work.world
        images = work.batch_size * work.world.size
        self.loader = build_loader(work.split, TrainTransform(work.size), images, work.world, config=config)
        # Start a few batches early, so that after FIRST_BATCHES the position is that of the other loader.
        self.loader.position = max(0, num_taken - FIRST_BATCHES) * images
        self.batches = iter(self.loader)
        self.take(FIRST_BATCHES)
        self.rest()

    @property
    def num_taken(self) -> int:
        """Number of batches since the start of the stream."""
        return self.loader.position // self.loader.batch_size

    @property
    def num_untimed(self) -> int:
        """Number of batches at the beginning of a window that do not count."""
        return max_batches_ready(self.config)

    def take(self, num_batches: int = 1) -> None:
        """Take batches and drop them, to measure the loader alone."""
        for _ in range(num_batches):
            next(self.batches)

    def window(self, num_untimed: int, num_steps: int) -> float:
        """Measure one window, then wait until the loader is idle.

        Returns:
            Images/s per process at the rate of the slowest one, the same on every rank.
        """
        barrier(self.world)
        self.take(num_untimed)  # those that were ready before the window
        started = read_clock(self.world)
        self.take(num_steps)
        everyones = all_gather_values([read_clock(self.world) - started], self.world)
        self.rest()
        return num_steps * len(self.loader.slots) / max(seconds for (seconds,) in everyones)

    def rest(self) -> None:
        """Wait until the queue is full and no other thread of this process works, at most LONGEST_REST seconds."""
        deadline, looks = time.monotonic() + LONGEST_REST, 0
        while looks < LOOKS and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
            is_full = self.loader.stats().queue_depth >= self.config.batches_ahead
            looks = looks + 1 if is_full and not has_busy_threads() else 0

    def close(self) -> None:
        """Stop reading ahead."""
        self.batches.close()  # pyright: ignore[reportAttributeAccessIssue]  (a generator)


def has_busy_threads() -> bool:
    """Return True if another thread of this process runs, waits for a core, or waits for the disk."""
    own, states = str(threading.get_native_id()), []
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has ended
            if task.name != own:
                states.append((task / "stat").read_text().rpartition(") ")[2][0])
    return "R" in states or "D" in states


def shorten_error(error: Exception) -> str:
    """Return an error's message in one line of at most MOST_CHARACTERS characters."""
    return " ".join(str(error).split())[:MOST_CHARACTERS]


class PairedWindows:
    """Compare settings; the winner's loader stays open for the next comparison. Use as a context manager."""

    def __init__(self, work: Workload, start: LoaderConfig, window_seconds: float) -> None:
        self.work = work
        self.kept = Runner(work, start, 0)  # the loader with the best settings so far
        try:
            # Find the number of steps of a window, and measure one to know how long a pair takes.
            self.num_steps = warm_up(self.kept.take, window_seconds, work.world)
            self.kept.rest()
            started = time.perf_counter()
            self.first_rate = self.kept.window(self.kept.num_untimed, self.num_steps)
            self.spent = [2 * (time.perf_counter() - started)]  # seconds of each pair; the first is an estimate
        except BaseException:
            self.kept.close()
            raise

    def __enter__(self) -> "PairedWindows":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.kept.close()

    @property
    def pair_seconds(self) -> float:
        """Approximate time of a pair of windows in seconds, the same on every rank."""
        return broadcast_from_rank0(statistics.median(self.spent), self.work.world)

    def compare(self, candidate: LoaderConfig, other: LoaderConfig, least: int, has_time: HasTime) -> Comparison:
        """Compare a candidate with the current settings in pairs of windows; a candidate that cannot run has lost.

        Args:
            least: number of pairs to measure in any case.
            has_time: returns True if there is time for another pair beyond `least`.
        """
        # Open both loaders at the same position of the stream.
        self._keep(other)
        try:
            runner = self._try(lambda: Runner(self.work, candidate, self.kept.num_taken))
        except CandidateError as error:
            return Comparison(candidate, other, (), str(error))

        # Measure pairs of windows until the rule decides or the time is over.
        try:
            pairs = measure_pairs(lambda: self._measure_pair(runner), least, has_time)
            comparison = Comparison(candidate, other, tuple(pairs))
        except CandidateError as error:
            comparison = Comparison(candidate, other, (), str(error))
        except BaseException:
            runner.close()
            raise

        # Keep the faster loader open, close the other one.
        if comparison.is_better:
            self.kept, runner = runner, self.kept
        runner.close()
        return comparison

    def _keep(self, config: LoaderConfig) -> None:
        """Make sure that the open loader has these settings."""
        if self.kept.config != config:
            self.kept.close()
            self.kept = Runner(self.work, config, self.kept.num_taken)

    def _measure_pair(self, runner: Runner) -> Pair:
        """Measure one window of each loader on the same images; which one comes first alternates."""
        started = time.perf_counter()
        # Both skip the same number of batches, so that both windows contain the same images.
        num_untimed = max(runner.num_untimed, self.kept.num_untimed)
        rates = {}
        # Alternate which loader comes first: the second window of a pair may find other conditions.
        for each in (self.kept, runner) if len(self.spent) % 2 else (runner, self.kept):
            measure_one = partial(each.window, num_untimed, self.num_steps)
            rates[each] = self._try(measure_one) if each is runner else measure_one()
        self.spent.append(time.perf_counter() - started)
        return rates[runner], rates[self.kept]

    def _try(self, work: Callable[[], T]) -> T:
        """Do some work of the candidate; raise CandidateError if it fails.

        With several processes one may fail alone, and the others wait for it forever: then the error ends all of them.
        """
        try:
            return work()
        except FAILURES as error:
            if self.work.world.size > 1:
                raise
            raise CandidateError(shorten_error(error)) from error
