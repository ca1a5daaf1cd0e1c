"""The stage `read`: the plan's images, in training's order, as fast as the reader gets them; nothing decodes them.

Cold: the shards are dropped from the page cache before each window, and that is verified. A window is then one pass
over so many images, for a second one would find them in memory. Warm: the same images again and again.
"""

from collections.abc import Iterator
from itertools import cycle, islice
from time import perf_counter
from types import TracebackType

from stages.page_cache import drop, share_resident
from stages.stage import READ_COLD, READ_WARM, Stage

from loaders import Loader, Stats
from loaders.plan import Plan
from loaders.reader import Encoded, Reader
from loaders.stats import Counters
from train.dist import from_rank_0, meet

MOST_RESIDENT = 0.05  # of the shards' pages after they were dropped, for reading to be called cold
MOST_BATCHES = 2000  # of a cold window, so that their plans are made in seconds


class Reading(Stage):
    """Reads with the loader's own reader, threads and batches ahead."""

    def __init__(self, name: str, loader: Loader) -> None:
        super().__init__(name, len(loader.slots), loader.world)
        self.loader, self.counters = loader, Counters()
        spec = loader.spec()
        self.reader = Reader(loader.split, spec.num_threads, spec.batches_ahead, self.counters)
        self.pairs: Iterator[tuple[Plan, Encoded]] = iter(())
        self.plans: list[Plan] = []

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.reader.__exit__(kind, error, trace)

    def take(self) -> None:
        _, encoded = next(self.pairs)
        self.reader.release(encoded)

    def stats(self) -> Stats:
        return Stats(seconds=0.0, queue_depth=0, batches_ahead=0, num_damaged=0, **self.counters.sums())

    def plan_some(self, num_batches: int) -> list[Plan]:
        """The first batches of the stream."""
        return [self.loader.plan(i * self.loader.batch_size) for i in range(num_batches)]


class ColdReading(Reading):
    """From storage."""

    def __init__(self, loader: Loader, most_bytes: float) -> None:
        super().__init__(READ_COLD, loader)
        each = float(loader.split.column("size").mean()) * loader.batch_size
        whole = max(1, len(loader.split) // loader.batch_size)
        self.most_steps = max(1, min(whole, MOST_BATCHES, int(most_bytes / each)))
        self.resident = 0.0  # share of the shards, the most that was found after they were dropped

    def calibrate(self, seconds: float) -> None:
        """As many batches as `seconds` last, no image twice."""
        self.plans = self.plan_some(self.most_steps)
        self.rest()
        started, num_steps = perf_counter(), 0
        while num_steps < self.most_steps and perf_counter() - started < seconds:
            self.take()
            num_steps += 1
        self.num_steps = from_rank_0(num_steps, self.world)
        self.plans = self.plans[: self.num_steps]

    def rest(self) -> None:
        meet(self.world)
        if self.world.local_rank == 0:
            drop(self.loader.split.shard_paths)
            self.resident = max(self.resident, share_resident(self.loader.split.shard_paths))
        meet(self.world)
        self.pairs = self.reader.read(self.plans)

    @property
    def is_cold(self) -> bool:
        """Whether the shards were out of memory, each time, as the first process of the first machine saw it."""
        return from_rank_0(self.resident, self.world) <= MOST_RESIDENT


class WarmReading(Reading):
    """From the page cache: what a cold window has read."""

    def __init__(self, loader: Loader, num_batches: int) -> None:
        super().__init__(READ_WARM, loader)
        self.plans = self.plan_some(num_batches)

    def calibrate(self, seconds: float) -> None:
        self.pairs = self.reader.read(self.plans)
        for _ in self.plans:
            self.take()
        self.pairs = self.reader.read(cycle(self.plans))
        super().calibrate(seconds)

    def rest(self) -> None:
        self.pairs = self.reader.read(islice(cycle(self.plans), self.num_steps))
