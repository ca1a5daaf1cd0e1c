"""Read a bucket without a cache in the order `blocks`: whole windows in memory, by few long requests.

The order shuffles within windows of 4,096 images, which lie in the shards as runs of 64 neighbours. One process reads
each run by one request, 20,000 an epoch of ImageNet in place of 1.28 million. Two windows are in memory, 900 MB.
If several processes share the batches, each reads its own images only; then few are neighbours.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from loaders.order import BLOCK_IMAGES, GROUP_BLOCKS, Sampling, locate
from loaders.plan import Plan
from loaders.reader import LARGEST_GAP_BYTES, merge_runs
from prep.dataset import Split
from prep.remote import Remote

WINDOW_IMAGES = BLOCK_IMAGES * GROUP_BLOCKS
HEADERS_BYTES = 4096  # between two neighbours of a shard: a label, headers, padding
SHARD_FACTOR = 1 << 44  # more than the bytes of any shard: shard and offset as one number
REQUEST_BYTES = 16 << 20  # at most, of one request


@dataclass(frozen=True)
class Run:
    """A part of a shard that is being read."""

    start: int
    content: Future[np.ndarray]  # uint8


class Windows:
    """The windows of the stream around the current plan. Use as a context manager.

    Args:
        batch_size: of all processes.
        slots: this process's, within a batch.
        threads: make the requests, in the order in which they are asked to.
    """

    def __init__(
        self, split: Split, sampling: Sampling, batch_size: int, slots: range, remote: Remote, threads: Executor
    ) -> None:
        self.split, self.sampling, self.batch_size, self.slots = split, sampling, batch_size, slots
        self.remote, self.threads = remote, threads
        self.shards, self.offsets, self.sizes = (split.column(name) for name in ("shard", "offset", "size"))
        self.gap_bytes = LARGEST_GAP_BYTES if len(slots) == batch_size else HEADERS_BYTES
        self.span = WINDOW_IMAGES * sampling.repeats  # positions of a window; the last one of an epoch is shorter
        self.per_epoch = -(-len(split) // self.span)
        self.runs: dict[int, dict[int, Run]] = {}  # of each window in memory: the run of each row

    def __enter__(self) -> "Windows":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.runs.clear()

    def follow(self, plans: Iterable[Plan]) -> Iterator[Plan]:
        """Yield the same plans; before each, request its windows and the next one, and forget those before it."""
        first = requested = -1
        for plan in plans:
            first = plan.position if first < 0 else first
            now = self._find_window(plan.position)
            for window in range(max(now, requested + 1), self._find_window(plan.position + self.batch_size - 1) + 2):
                self.runs[window] = self._request(window, first)
                requested = window
            for window in [each for each in self.runs if each < now]:
                del self.runs[window]
            yield plan

    def find_run(self, row: int) -> Run | None:
        """Return the run that holds a row's image; None if no window does: for the substitute of a damaged image."""
        return next((runs[row] for runs in self.runs.values() if row in runs), None)

    def _find_window(self, position: int) -> int:
        epoch, place = divmod(position, len(self.split))
        return epoch * self.per_epoch + place // self.span

    def _request(self, window: int, first: int) -> dict[int, Run]:
        """Request this process's images of a window; return the run of each row.

        Args:
            first: a position at which a batch begins.
        """
        # The rows.
        epoch, number = divmod(window, self.per_epoch)
        places_W = np.arange(number * self.span, min((number + 1) * self.span, len(self.split)))
        positions_W = epoch * len(self.split) + places_W
        slots_W = (positions_W - first) % self.batch_size
        is_ours_W = (positions_W >= first) & (slots_W >= self.slots.start) & (slots_W < self.slots.stop)
        _, rows_B = locate(self.sampling, positions_W[is_ours_W], len(self.split))
        if not len(rows_B):
            return {}

        # The runs that hold them, in the order of shards and offsets.
        shards_B, offsets_B = self.shards[rows_B].astype(np.int64), self.offsets[rows_B]
        runs_R3 = merge_runs(shards_B, offsets_B, self.sizes[rows_B], self.gap_bytes)
        runs = [Run(run[1], self.threads.submit(self._read, *run)) for run in runs_R3.tolist()]
        starts_R = runs_R3[:, 0] * SHARD_FACTOR + runs_R3[:, 1]
        indices_B = np.searchsorted(starts_R, shards_B * SHARD_FACTOR + offsets_B, side="right") - 1
        return {row: runs[i] for row, i in zip(rows_B.tolist(), indices_B.tolist(), strict=True)}

    def _read(self, shard: int, start: int, stop: int) -> np.ndarray:
        """Return the bytes [start, stop) of a shard, uint8."""
        content = np.empty(stop - start, np.uint8)
        name = f"{self.split.folder.name}/{self.split.manifest.shards[shard].name}"
        for done in range(0, stop - start, REQUEST_BYTES):
            part = content[done : done + REQUEST_BYTES]
            self.remote.read_range(name, start + done, start + done + len(part), part)
        return content
