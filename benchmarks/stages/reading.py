"""The stage `read`: the plan's images in training's order, as fast as the reader delivers them; nothing decodes them.

Cold: the shards are dropped from the page cache before each window, and this is verified. A window is a single pass
over a number of images, since a second pass would find them in memory. Warm: the same images again and again.
"""

from collections.abc import Iterator
from itertools import cycle, islice
from time import perf_counter
from types import TracebackType

from stages.page_cache import drop_from_cache, share_resident
from stages.stage import READ_COLD, READ_WARM, Stage

from loaders import Loader, Stats
from loaders.plan import Plan
from loaders.reader import Encoded
from loaders.stats import Counters
from train.dist import barrier, broadcast_from_rank0

MOST_RESIDENT = 0.05  # share of the shards' pages in memory after dropping them, up to which reading is cold
MOST_BATCHES = 2000  # of a cold window: planning more would take longer than seconds


class Reading(Stage):
    """Read with the loader's reader, with its threads and its number of batches ahead."""

    def __init__(self, name: str, loader: Loader) -> None:
        super().__init__(name, len(loader.slots), loader.world)
        self.loader, self.counters = loader, Counters()
        # The files that it reads: the shards, and their segments if the loader splices.
        split = loader.split
        self.files = list(split.shard_paths)
        if loader.whole is not None:
            self.files += [split.segments_path(shard) for shard in range(len(split.shard_paths))]
        spec = loader.make_spec()
        self.reader = loader.open_reader(spec.num_threads, spec.batches_ahead, self.counters)
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
        """Return the plans of the first batches of the stream."""
        return [self.loader.plan(i * self.loader.batch_size) for i in range(num_batches)]


class ColdReading(Reading):
    """Read from storage."""

    def __init__(self, loader: Loader, most_bytes: float) -> None:
        super().__init__(READ_COLD, loader)
        # A window may read at most one epoch, and no more bytes than the page cache can hold next to other data.
        bytes_per_batch = float(loader.split.column("size").mean()) * loader.batch_size
        complete = max(1, len(loader.split) // loader.batch_size)
        self.most_steps = max(1, min(complete, MOST_BATCHES, int(most_bytes / bytes_per_batch)))
        self.resident = 0.0  # largest share of the shards' pages found in memory after dropping them

    def calibrate(self, seconds: float) -> None:
        """Set the number of batches of a window to what is read in `seconds`, without reading an image twice."""
        self.plans = self.plan_some(self.most_steps)
        self.rest()  # drops the shards, so that this first pass is cold too
        started, num_steps = perf_counter(), 0
        while num_steps < self.most_steps and perf_counter() - started < seconds:
            self.take()
            num_steps += 1
        self.num_steps = broadcast_from_rank0(num_steps, self.world)
        self.plans = self.plans[: self.num_steps]

    def rest(self) -> None:
        """Drop the shards from the page cache of every machine, then start the next pass."""
        barrier(self.world)
        # One process per machine drops the shards, while no other process reads.
        if self.world.local_rank == 0:
            drop_from_cache(self.files)
            self.resident = max(self.resident, share_resident(self.files))
        barrier(self.world)
        self.pairs = self.reader.read(self.plans)

    @property
    def is_cold(self) -> bool:
        """True if the shards were out of memory before each window, as rank 0 found on its machine."""
        return broadcast_from_rank0(self.resident, self.world) <= MOST_RESIDENT


class WarmReading(Reading):
    """Read from the page cache, which a cold window has filled."""

    def __init__(self, loader: Loader, num_batches: int) -> None:
        super().__init__(READ_WARM, loader)
        self.plans = self.plan_some(num_batches)

    def calibrate(self, seconds: float) -> None:
        """Read all images once, so that they are in memory, then calibrate."""
        self.pairs = self.reader.read(self.plans)
        for _ in self.plans:
            self.take()
        self.pairs = self.reader.read(cycle(self.plans))
        super().calibrate(seconds)

    def rest(self) -> None:
        self.pairs = self.reader.read(islice(cycle(self.plans), self.num_steps))
