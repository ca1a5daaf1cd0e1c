"""What passes from the loader to the trainer: a typed batch, for one process of the world."""

from collections import deque
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
import torch

from prep.dataset import InputError


@dataclass(frozen=True)
class World:
    """This process among those that train together; made once and passed in, never asked of torch.distributed."""

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
        each = batch_size // self.size
        return range(self.rank * each, (self.rank + 1) * each)


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
    made: torch.cuda.Event | None

    def take(self) -> Batch:
        """The batch, for use on the current stream, without waiting on the host."""
        if self.made is not None:
            stream = torch.cuda.current_stream(self.batch.images_BCHW.device)
            stream.wait_event(self.made)
            for tensor in (self.batch.labels_B, self.batch.valid_B, self.batch.damaged_B):
                tensor.record_stream(stream)
        return self.batch


class InUse:
    """Keeps batches until the GPU is past them: DALI reuses their memory as soon as torch lets go of it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.batches: deque[tuple[Batch, torch.cuda.Event]] = deque()

    def __enter__(self) -> "InUse":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        while self.batches:
            self.batches.popleft()[1].synchronize()

    def add(self, batch: Batch) -> None:
        """Keep a batch whose last use has been queued on the current stream."""
        if self.device.type != "cuda":
            return
        used = torch.cuda.Event()
        used.record(torch.cuda.current_stream(self.device))
        self.batches.append((batch, used))
        while self.batches[0][1].query() and len(self.batches) > 1:
            self.batches.popleft()
