"""What passes from the loader to the trainer: a typed batch, for one process of the world."""

from collections import deque
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
import torch

from loaders.stats import Counters
from prep.errors import InputError

MOST_AHEAD = 4  # batches whose use is queued on a GPU before the training thread waits for the oldest


@dataclass(frozen=True)
class World:
    """This process among those that train together. It is made once, by `loaders/ranks.py`, and passed in."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def share(self, batch_size: int) -> range:
        """This rank's slots of a global batch.

        Raises:
            InputError: the batch is empty or does not divide by the number of processes.
        """
        if batch_size < 1 or batch_size % self.size:
            lower = max(1, batch_size // self.size) * self.size
            raise InputError(
                f"a batch of {batch_size} does not divide by {self.size} processes: "
                f"the nearest that do are {lower} and {lower + self.size}"
            )
        return self.share_evenly(batch_size)

    def share_evenly(self, num_images: int) -> range:
        """Return this rank's part of some images: all parts in a row, no two of them more than one image apart."""
        return range(self.rank * num_images // self.size, (self.rank + 1) * num_images // self.size)


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch, on the device. B images of H x W pixels."""

    images_BCHW: torch.Tensor  # uint8 RGB, channels_last in memory
    labels_B: torch.Tensor  # int64
    valid_B: torch.Tensor  # bool: False for padding, which evaluation must not count
    damaged_B: torch.Tensor  # bool: a black image instead of one that cannot be decoded, to be counted as wrong
    position: int  # of the global batch's first image in the stream
    rows_B: np.ndarray  # int64: rows of the sample index, to name images by


@dataclass(frozen=True)
class Ready:
    """A batch on its way to the consumer; on a GPU usable once `made` has happened on the loader's stream."""

    batch: Batch
    made: torch.cuda.Event | None  # with timing; None on the CPU

    def take(self) -> Batch:
        """Return the batch for use on the current stream, without waiting on the host."""
        if self.made is not None:
            stream = torch.cuda.current_stream(self.batch.images_BCHW.device)
            stream.wait_event(self.made)
            # torch must not reuse the memory while this stream reads it. Pixels that DALI made are not torch's
            # memory: for those this does nothing, and `InUse` keeps them.
            for tensor in (self.batch.images_BCHW, self.batch.labels_B):  # the masks share the labels' memory
                tensor.record_stream(stream)
        return self.batch


class InUse:
    """Keeps batches until the GPU is past them: DALI reuses their memory as soon as torch lets go of it.

    The training thread queues work much faster than a GPU does it. Two things follow, and both are settled here:

    1. Run-ahead is bounded. Beyond MOST_AHEAD batches `add` waits for the oldest one, so that DALI's memory does not
       grow with the number of queued steps. Nothing is lost: the GPU still has that many steps to do.
    2. Waiting for data is measured on the GPU, as the time between the end of the previous batch's use and the moment
       at which this batch was ready. In the training thread it cannot be seen: the thread waits although the GPU
       works, and takes batches that the GPU has not decoded yet.
    """

    def __init__(self, device: torch.device, counters: Counters) -> None:
        self.device, self.counters = device, counters
        self.kept: deque[tuple[Ready, torch.cuda.Event]] = deque()
        self.last_used: torch.cuda.Event | None = None

    def __enter__(self) -> "InUse":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        while self.kept:
            self._release_oldest()

    def add(self, ready: Ready) -> None:
        """Keep a batch whose last use has been queued on the current stream."""
        if ready.made is None:
            return
        used = torch.cuda.Event(enable_timing=True, blocking=True)  # blocking: who waits does not take a core
        used.record(torch.cuda.current_stream(self.device))
        self.kept.append((ready, used))
        while len(self.kept) > 1 and (len(self.kept) > MOST_AHEAD or self.kept[0][1].query()):
            self._release_oldest()

    def _release_oldest(self) -> None:
        """Wait until the oldest batch is used, and count how long the GPU had waited for it."""
        ready, used = self.kept.popleft()
        used.synchronize()
        if self.last_used is not None and ready.made is not None:
            self.counters.wait_seconds += max(0.0, self.last_used.elapsed_time(ready.made)) / 1000
        self.last_used = used
