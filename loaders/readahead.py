"""Reading ahead for the order `blocks`: what is to come goes into the page cache in long runs, before it is planned.

The reader then finds its images there. The processes of a machine share the runs out among them.
"""

import os
import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from types import TracebackType

import numpy as np

from loaders.batch import World
from loaders.order import BLOCK_IMAGES, GROUP_BLOCKS, Sampling, locate
from loaders.plan import Plan
from prep.dataset import Split

WINDOW_IMAGES = BLOCK_IMAGES * GROUP_BLOCKS  # as many as are shuffled into each other
LARGEST_GAP_BYTES = 1 << 20  # read over, rather than begin a new run: tar headers, images of another window
CHUNK_BYTES = 1 << 20  # of one read


class ReadAhead:
    """Touches a window of the stream while the one before it is consumed. Use as a context manager."""

    def __init__(self, split: Split, sampling: Sampling, world: World) -> None:
        self.split, self.sampling, self.world = split, sampling, world
        self.shards, self.offsets, self.sizes = (split.column(name) for name in ("shard", "offset", "size"))
        self.wanted: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._touch_windows, name="penstock-ahead", daemon=True)

    def __enter__(self) -> "ReadAhead":
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.stopped.set()
        self.wanted.put(None)
        self.thread.join()

    def follow(self, plans: Iterable[Plan]) -> Iterator[Plan]:
        """The same plans; each time they enter a window, the one after it is wanted."""
        done = -1
        for plan in plans:
            first = plan.position // WINDOW_IMAGES
            for window in range(max(first, done + 1), first + 2):
                self.wanted.put(window)
                done = window
            yield plan

    def find_runs(self, window: int) -> np.ndarray:
        """This process's share of what a window of the stream is read by: int64 [runs, 3], shard, start, stop."""
        positions_W = np.arange(window * WINDOW_IMAGES, (window + 1) * WINDOW_IMAGES)
        _, rows_W = locate(self.sampling, positions_W, len(self.split))
        runs = merge_runs(self.shards[rows_W], self.offsets[rows_W], self.sizes[rows_W])
        return runs[self.world.local_rank :: self.world.local_size]

    def _touch_windows(self) -> None:
        chunk = memoryview(bytearray(CHUNK_BYTES))
        while (window := self.wanted.get()) is not None:
            for shard, start, stop in self.find_runs(window).tolist():
                with suppress(OSError):  # the reader meets it again, and names it
                    self._touch(shard, start, stop, chunk)

    def _touch(self, shard: int, start: int, stop: int, chunk: memoryview) -> None:
        with self.split.shard_paths[shard].open("rb", buffering=0) as file:
            while start < stop and not self.stopped.is_set():
                num_bytes = os.preadv(file.fileno(), [chunk[: stop - start]], start)
                if not num_bytes:
                    return
                start += num_bytes


def merge_runs(shards_B: np.ndarray, offsets_B: np.ndarray, sizes_B: np.ndarray) -> np.ndarray:
    """The fewest long reads that hold all of some images: int64 [runs, 3], shard, start, stop."""
    order_B = np.lexsort((offsets_B, shards_B))
    shards_B, starts_B = shards_B[order_B].astype(np.int64), offsets_B[order_B].astype(np.int64)
    stops_B = starts_B + sizes_B[order_B]
    breaks = (np.diff(shards_B) != 0) | (starts_B[1:] - stops_B[:-1] > LARGEST_GAP_BYTES)
    firsts, lasts = np.r_[0, np.flatnonzero(breaks) + 1], np.r_[np.flatnonzero(breaks), len(shards_B) - 1]
    return np.stack([shards_B[firsts], starts_B[firsts], stops_B[lasts]], axis=1)
