"""Search the loader's fastest settings on this machine: `benchmarks/throughput.py --tune`.

The search moves one setting after the other to its next value, as long as that is faster than the best so far. Two
settings are compared with loaders that are open at the same time, in alternating windows: other load affects both. A
loader whose batches are not taken stops when its queues are full, and the next window starts only then. Both loaders
are at the same position of the same stream, so the windows of a pair contain the same images.

The result is the content of a file that `train/main.py --loader.tuned FILE` reads.
"""

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from machine import has_busy_threads
from options import check_minutes
from record import describe_dali, describe_dataset, describe_origin, describe_placement, print_progress, summarize
from stages import Feed, Feeding
from timing import (
    FAILURES,
    WINS,
    Comparison,
    HasTime,
    Pair,
    all_gather_values,
    describe_comparison,
    describe_step,
    measure_pairs,
    measure_window,
    shorten_error,
)

from loaders import LoaderConfig, Split, TrainTransform, World, build_loader
from loaders.config import default_num_threads, share_cores
from loaders.placement import DEFAULT_DECODE, DecoderSide
from loaders.tuned import FORMAT, KIND, SETTINGS, find_machine
from prep.errors import InputError
from train.dist import broadcast_from_rank0
from train.loader_settings import agree_on_placement

WINDOWS_PER_BUDGET, SHORTEST_WINDOW, LONGEST_WINDOW = 150, 0.05, 2.0  # a number, and seconds
# Pairs of windows whose time is reserved for the last comparison, and for the measurement of other batch sizes.
LAST_PAIRS, SIZES_PAIRS = WINS + 1, 4
SIZES_ROUNDS = 5
FIRST_BATCHES = 4  # untimed batches of a newly opened loader, during which its buffers grow
# Number of checks in a row that must find no busy thread: a thread that hands over work sleeps for a moment too.
LOOKS, LOOK_SECONDS = 4, 0.004
LONGEST_REST = 30.0  # seconds

# The values to try of settings that have many.
THREADS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
BATCHES_AHEAD = (1, 2, 3, 4, 6, 8)
HW_DECODER_LOADS = (0.0, 0.3, 0.65, 0.9, 0.99)  # 0.65 is nvImageCodec's default, 0.99 MLPerf's on H100
# The order in which a search moves the settings: those with the largest effect first.
ORDER = ("placement", "hw_decoder_load", "num_threads", "decode", "batches_ahead", "pin_threads")

Values = dict[str, tuple[Any, ...]]  # of each setting, in order
T = TypeVar("T")


@dataclass(frozen=True)
class Workload:
    """The batches that the loaders have to deliver."""

    split: Split
    world: World
    batch_size: int  # images per step and process
    size: int  # pixels


@dataclass(frozen=True)
class Found:
    """The result of a search; `config` is the start unless the last comparison showed a faster one."""

    config: LoaderConfig
    steps: tuple[Comparison, ...]
    last: Comparison  # the best settings that were found, or the start itself, compared with the start


# The settings that are tried: those that change the loader's speed.


@dataclass(frozen=True)
class Space:
    """The values to try, by placement. Every neighbour of a configuration of the space is in the space too.

    A placement is where images are decoded: "cpu", or "gpu" on a CUDA device with the backend `dali`. Some settings
    have an effect under one placement only (the share of the GPU's hardware JPEG decoder), so each placement has its
    own table.
    """

    tables: dict[DecoderSide, Values]
    start: LoaderConfig  # its values are in every table, except its decode

    @property
    def names(self) -> tuple[str, ...]:
        """The settings that have several values, in the order in which a search moves them."""
        known = {name for table in self.tables.values() for name in table}
        known |= {"placement"} if len(self.tables) > 1 else set()
        return tuple(name for name in ORDER if name in known)

    def find_values(self, name: str, placement: DecoderSide) -> tuple[Any, ...]:
        """Return the values of a setting under a placement; none for a setting that has no effect there."""
        return tuple(self.tables) if name == "placement" else self.tables[placement].get(name, ())

    def find_neighbour(self, config: LoaderConfig, name: str, step: int) -> LoaderConfig | None:
        """Return `config` with one setting moved by `step` values in its list; None beyond the list's ends."""
        assert config.placement != "auto", "a search moves between explicit settings"
        values = self.find_values(name, config.placement)
        place = values.index(getattr(config, name)) + step if values else -1
        if not 0 <= place < len(values):
            return None
        if name != "placement":
            return replace(config, **{name: values[place]})

        # Under another placement decode becomes its default, and a value that is not tried there the start's value.
        placement = values[place]
        moved = replace(config, placement=placement, decode=DEFAULT_DECODE[placement])
        others = [name for name in self.names if name not in ("placement", "decode")]
        strange = [name for name in others if getattr(moved, name) not in self.find_values(name, placement)]
        return replace(moved, **{name: getattr(self.start, name) for name in strange})


def find_space(start: LoaderConfig, world: World) -> Space:
    """Return the values that a search from `start` tries, with the start's own values among them.

    Args:
        start: placement and decode are resolved: neither is "auto".

    Raises:
        InputError: the backend has nothing to tune.
    """
    if start.backend == "synthetic":
        raise InputError("the backend synthetic returns the same batch endlessly: tune dali or reference")
    is_dali = start.backend == "dali"
    placements: tuple[DecoderSide, ...] = ("cpu", "gpu") if is_dali and world.device.type == "cuda" else ("cpu",)
    tables = {}
    for placement in placements:
        table: Values = {"num_threads": find_threads(world, placement), "batches_ahead": BATCHES_AHEAD}
        if is_dali:
            table["pin_threads"] = (False, True)
        if placement == "gpu":
            table["hw_decoder_load"] = HW_DECODER_LOADS
        tables[placement] = {name: _insert_own(values, name, start, world) for name, values in table.items()}
        # On a GPU, "roi" is tried only if the search starts with it: it is reported to end the process by a
        # segmentation fault (nvImageCodec issue 55, on H100), and a search that crashes loses all its results.
        if is_dali:
            starts_with_roi = (start.placement, start.decode) == ("gpu", "roi")
            tables[placement]["decode"] = ("roi", "full") if placement == "cpu" or starts_with_roi else ("full",)
    return Space(tables, start)


def find_threads(world: World, placement: DecoderSide) -> tuple[int, ...]:
    """Return the numbers of threads to try; 0 replaces the default number.

    If the CPU decodes, at most the cores of this process: more threads may look as fast when the loader runs alone, but
    training needs those cores. If a GPU decodes, up to twice as many, since the threads sometimes wait for it.
    """
    cores, usual = len(share_cores(world)), default_num_threads(world)
    most = 2 * cores if placement == "gpu" else cores
    return tuple(0 if number == usual else number for number in sorted({*THREADS, usual}) if number <= most)


def _insert_own(values: tuple[Any, ...], name: str, start: LoaderConfig, world: World) -> tuple[Any, ...]:
    """Return the values with the start's value inserted in order, or in place of the value that means the same."""
    own, usual = getattr(start, name), default_num_threads(world) if name == "num_threads" else 0
    if own in values:
        return values
    others = [value for value in values if (value or usual) != own]
    return tuple(sorted([*others, own], key=lambda value: value or usual))


# The search.

Compare = Callable[[LoaderConfig, LoaderConfig, int, HasTime], Comparison]  # candidate, other, least number of pairs


def search(start: LoaderConfig, space: Space, compare: Compare, has_time: HasTime, may_prolong: HasTime) -> Found:
    """Return the fastest settings that were found if they beat `start` in new pairs of windows, else `start`.

    A coordinate search: one setting after the other moves up as long as that is faster, then down. It ends when a pass
    over all settings changed nothing, or when the time is over.

    Args:
        has_time: returns True if there is time for another pair, and afterwards for the last comparison.
        may_prolong: returns True if the last comparison may measure more pairs than required.
    """
    best, steps, known = start, [], set()  # `known`: pairs of settings that were compared already
    is_new = True
    while is_new:
        is_new = False
        for name, step in ((name, step) for name in space.names for step in (1, -1)):
            # Move this setting in this direction as long as each move is faster.
            while (candidate := space.find_neighbour(best, name, step)) is not None:
                pair = frozenset((candidate, best))
                if pair in known or not has_time():
                    break
                known.add(pair)
                steps.append(compare(candidate, best, 0, has_time))
                if not steps[-1].is_better:
                    break
                best, is_new = candidate, True

    # The winner of many comparisons may have won by luck: only new pairs decide.
    last = compare(best, start, WINS, may_prolong)
    return Found(best if last.is_better else start, tuple(steps), last)


# Comparisons by measurement.


class CandidateError(RuntimeError):
    """The candidate's settings cannot run on this machine."""


class Runner(Feeding):
    """An open loader that works only while batches are taken; `close` ends its threads."""

    def __init__(self, work: Workload, config: LoaderConfig, num_taken: int) -> None:
        images = work.batch_size * work.world.size
        loader = build_loader(work.split, TrainTransform(work.size), images, work.world, config=config)
        # Start a few batches early, so that after FIRST_BATCHES the position is that of the other loader.
        loader.position = max(0, num_taken - FIRST_BATCHES) * images
        super().__init__(Feed(loader))
        self.config, self.loader = config, loader
        self.num_untimed = self.num_ready
        for _ in range(FIRST_BATCHES):
            self.take()
        self.wait_until_idle()

    @property
    def num_taken(self) -> int:
        """Number of batches since the start of the stream."""
        return self.loader.position // self.loader.batch_size

    def window(self, num_untimed: int, num_steps: int) -> float:
        """Measure one window, then wait until the loader is idle.

        Args:
            num_untimed: batches before it, at least those that are ready.

        Returns:
            Images/s per process at the rate of the slowest one, the same on every rank.
        """
        self.num_untimed, self.num_steps = num_untimed, num_steps
        window = measure_window(self)
        everyones = all_gather_values([window.seconds], self.world)
        self.wait_until_idle()
        return window.num_images / max(seconds for (seconds,) in everyones)

    def rest(self) -> None:
        """Take the untimed batches of a window."""
        for _ in range(self.num_untimed):
            self.take()

    def wait_until_idle(self) -> None:
        """Wait until the queue is full and no other thread of this process works, at most LONGEST_REST seconds."""
        deadline, looks = time.monotonic() + LONGEST_REST, 0
        while looks < LOOKS and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
            is_full = self.loader.stats().queue_depth >= self.config.batches_ahead
            looks = looks + 1 if is_full and not has_busy_threads() else 0

    def close(self) -> None:
        """Stop reading ahead."""
        self.feed.__exit__()


class PairedWindows(AbstractContextManager["PairedWindows"]):
    """Compare settings; the winner's loader stays open for the next comparison. Use as a context manager."""

    def __init__(self, work: Workload, start: LoaderConfig, window_seconds: float) -> None:
        self.work = work
        self.kept = Runner(work, start, 0)  # the loader with the best settings so far
        try:
            # Find the number of steps of a window, and measure one to know how long a pair takes.
            self.kept.calibrate(window_seconds)
            self.num_steps = self.kept.num_steps
            self.kept.wait_until_idle()
            started = time.perf_counter()
            self.first_rate = self.kept.window(self.kept.num_ready, self.num_steps)
            self.spent = [2 * (time.perf_counter() - started)]  # seconds of each pair; the first is an estimate
        except BaseException:
            self.kept.close()
            raise

    def __exit__(self, *error: object) -> None:
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
        if self.kept.config != other:
            self.kept.close()
            self.kept = Runner(self.work, other, self.kept.num_taken)
        runner = None
        try:
            runner = self._try(partial(Runner, self.work, candidate, self.kept.num_taken))

            # Measure pairs of windows until the rule decides or the time is over. Then the faster loader stays open.
            pairs = measure_pairs(partial(self._measure_pair, runner), least, has_time)
            comparison = Comparison(candidate, other, tuple(pairs))
            if comparison.is_better:
                self.kept, runner = runner, self.kept
            return comparison
        except CandidateError as error:
            return Comparison(candidate, other, (), str(error))
        finally:
            if runner is not None:
                runner.close()

    def _measure_pair(self, runner: Runner) -> Pair:
        """Measure one window of each loader on the same images."""
        started = time.perf_counter()
        # Both skip the same number of batches, so that both windows contain the same images.
        num_untimed = max(runner.num_ready, self.kept.num_ready)
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


def measure_sizes(work: Workload, config: LoaderConfig, num_images: int, has_time: HasTime) -> dict[int, list[float]]:
    """Return images/s per process at half the batch size, at the batch size and at twice it; each once per round.

    For information: a recipe sets the batch size, not the loader's settings.

    Args:
        num_images: approximate images of a window.
        has_time: returns True if there is time for another round; the first one is always measured.
    """
    sizes = sorted({max(1, work.batch_size // 2), work.batch_size, 2 * work.batch_size})
    rates: dict[int, list[float]] = {size: [] for size in sizes}
    with ExitStack() as stack:
        runners = {
            size: stack.enter_context(closing(Runner(replace(work, batch_size=size), config, 0))) for size in sizes
        }
        for repetition in range(SIZES_ROUNDS):
            if repetition and not has_time():
                break
            first = repetition % len(sizes)  # rotate the order, so that no size always comes first
            for size in sizes[first:] + sizes[:first]:
                num_steps = max(1, round(num_images / size))
                rates[size].append(runners[size].window(runners[size].num_ready, num_steps))
    return rates


# The command.


class Tuner:
    """A search that reports its steps and keeps to its time.

    Args:
        minutes: time limit, from `started` on, which `clock` returned.
    """

    def __init__(
        self, windows: PairedWindows, minutes: float, started: float, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.windows, self.seconds, self.started, self.clock = windows, 60 * minutes, started, clock

    def find(self, start: LoaderConfig, space: Space) -> Found:
        """Return the fastest settings that were found within the time."""
        may_try = partial(self.has_time, 1 + LAST_PAIRS + SIZES_PAIRS)  # another pair and the steps after the search
        return search(start, space, self._compare, may_try, partial(self.has_time, 1 + SIZES_PAIRS))

    def has_time(self, num_pairs: int) -> bool:
        """Return True if there is time for so many pairs of windows."""
        return self._spent() + num_pairs * self.windows.pair_seconds <= self.seconds

    def report(self, text: str) -> None:
        """Print a line on rank 0, with the time spent and the time left."""
        spent = self._spent()
        if self.windows.work.world.rank == 0:
            print_progress(f"{spent:.0f} s, at most {max(0, self.seconds - spent):.0f} s left: {text}")

    def _compare(self, candidate: LoaderConfig, other: LoaderConfig, least: int, has_time: HasTime) -> Comparison:
        """Compare two settings and report the result."""
        comparison = self.windows.compare(candidate, other, least, has_time)
        self.report(describe_step(comparison))
        return comparison

    def _spent(self) -> float:
        """Return the seconds since the start, as rank 0 measured them."""
        return broadcast_from_rank0(self.clock() - self.started, self.windows.work.world)


def run_search(
    work: Workload, start: LoaderConfig, minutes: float, script: str = "benchmarks/throughput.py"
) -> dict[str, Any]:
    """Search the fastest settings and report each step.

    Args:
        start: the settings that the search starts with, and that its result must beat.
        script: the command, for the record.

    Returns:
        The file's content, on every rank: what `loaders/tuned.py` reads, and every figure behind the settings.

    Raises:
        InputError: the settings cannot be measured.
    """
    check_minutes(minutes)

    # Resolve "auto" once: the search moves between explicit settings, and the file holds explicit ones.
    world, started = work.world, time.perf_counter()
    choice = agree_on_placement(start, world)
    space = find_space(choice.config, world)

    # Find the fastest settings. Windows get longer with the limit, so that it suffices for about 150 of them.
    window_seconds = min(LONGEST_WINDOW, max(SHORTEST_WINDOW, 60 * minutes / WINDOWS_PER_BUDGET))
    with PairedWindows(work, choice.config, window_seconds) as windows:
        tuner = Tuner(windows, minutes, started)
        tuner.report(f"starting at about {windows.first_rate:,.0f} images/s per process; {choice}")
        found = tuner.find(choice.config, space)

    # Measure other batch sizes with the settings that were found; a round of them takes as long as two pairs.
    try:
        sizes = measure_sizes(work, found.config, windows.num_steps * work.batch_size // 2, partial(tuner.has_time, 2))
    except FAILURES as error:
        # For example too little memory. With several processes the others would wait for this one, so all must end.
        if world.size > 1:
            raise
        sizes = {}
        tuner.report(f"other batch sizes cannot be measured ({shorten_error(error)})")

    return {
        "what": KIND,
        "format": FORMAT,
        "settings": {name: getattr(found.config, name) for name in SETTINGS},
        "is_changed": found.config != found.last.other,
        "backend": found.config.backend,
        "best": describe_comparison(found.last),
        "comparisons": [describe_comparison(step) for step in found.steps],
        "batch_sizes": [{"batch_size": size, "images_per_second": summarize(rates)} for size, rates in sizes.items()],
        "dataset": describe_dataset(work.split) | {"digest": work.split.digest},
        "batch_size": work.batch_size,
        "size": work.size,
        "num_processes": world.size,
        "local_processes": world.local_size,
        "device": world.device.type,
        "gpu": find_machine(world).gpu,
        "minutes": minutes,
        **describe_origin(script, world, **describe_dali(found.config.backend)),
        "starts_with": describe_placement(choice),
    }
