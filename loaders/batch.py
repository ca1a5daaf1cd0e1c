"""The typed batch that the loader passes to the trainer, and its way to the model's device.

In the order of use: `allocate_host` and `upload` copy pixels and labels to the device; `Ready` passes a batch from the
loader's CUDA stream to the trainer's; `InUse` keeps it until the GPU has used it; `Normalize` turns bytes into the
network's input. Without a GPU nothing is copied and nothing waits.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch
from torch import nn

from loaders.plan import Plan
from loaders.stats import Counters
from prep.preprocess import IMAGENET_MEAN, IMAGENET_STD, Channels

MAX_IN_USE = 4  # batches queued for use on a GPU before the training thread waits for the oldest


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch, on the device: B images of H x W pixels."""

    images_BCHW: torch.Tensor  # uint8 RGB, channels_last in memory
    labels_B: torch.Tensor  # int64
    valid_B: torch.Tensor  # bool: False for padding, which evaluation must not count
    damaged_B: torch.Tensor  # bool: True for a black image in place of one that cannot be decoded; counts as wrong
    position: int  # position of the global batch's first image in the stream
    rows_B: np.ndarray  # int64: rows of the sample index, from which the images' names follow


# From host memory to the device.
#
# A copy is asynchronous only from pinned memory. torch's pinned allocator reuses a block only after the copies queued
# from it have run, so a host tensor may be deleted as soon as its upload is queued. Both functions must be called with
# the loader's stream as the current one, since that stream orders the work on a batch.


def allocate_host(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return uninitialised host memory; for a GPU it is pinned, so that its upload is asynchronous."""
    return _allocate_pinned(shape, dtype) if device.type == "cuda" else torch.empty(tuple(shape), dtype=dtype)


def upload(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Queue a copy to `device` on the current stream, and return it; on the CPU return the tensor itself."""
    return _copy_to_gpu(host, device) if device.type == "cuda" else host


def upload_facts(labels_B: np.ndarray, plan: Plan, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Copy a plan's labels (int64), valid mask and damaged mask (bool) to the device, all [B], in one transfer."""
    num_images = len(labels_B)
    host = allocate_host((10 * num_images,), torch.uint8, device)  # per image: 8 bytes of label, 1 byte of each mask
    for part, array_B in zip(_split_facts(host), (labels_B, plan.valid_B, plan.damaged_B), strict=True):
        np.copyto(part.numpy(), array_B)
    return _split_facts(upload(host, device))


def _split_facts(facts: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the views of labels, valid mask and damaged mask in the buffer of `upload_facts`."""
    labels, masks = facts[: len(facts) * 8 // 10], facts[len(facts) * 8 // 10 :]
    return labels.view(torch.int64), *masks.view(torch.bool).chunk(2)


def _allocate_pinned(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Allocate pinned memory. Needs a GPU; tests without one replace it."""
    return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)


def _copy_to_gpu(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Queue the copy. Needs a GPU; tests without one replace it."""
    return host.to(device, non_blocking=True)


# From the loader's stream to the trainer's.


@dataclass(frozen=True)
class Ready:
    """A batch in the queue to the consumer. On a GPU it is usable after `ready_event` of the loader's stream."""

    batch: Batch
    ready_event: torch.cuda.Event | None  # with timing; None on the CPU

    def use_on_current_stream(self) -> Batch:
        """Return the batch, and make the current stream wait for `ready_event`. The host does not wait."""
        if self.ready_event is not None:
            stream = torch.cuda.current_stream(self.batch.images_BCHW.device)
            stream.wait_event(self.ready_event)
            # torch must not reuse the memory while this stream reads it. Pixels made by DALI are not in torch's
            # memory: for them this does nothing, and `InUse` keeps them.
            for tensor in (self.batch.images_BCHW, self.batch.labels_B):  # the masks share the labels' memory
                tensor.record_stream(stream)
        return self.batch


class InUse:
    """Keeps batches until the GPU has used them: DALI reuses their memory as soon as torch releases it.

    The training thread queues work much faster than the GPU executes it. This class handles two consequences:

    1. Run-ahead is bounded. With more than MAX_IN_USE batches, `add` waits for the oldest one, so that DALI's memory
       does not grow with the number of queued steps. No time is lost: the GPU still has that many steps to execute.
    2. The time that training waits for data is measured on the GPU, as the time between the end of the previous
       batch's use and the moment at which this batch was ready. The training thread cannot measure it: it waits even
       though the GPU works, and it receives batches that the GPU has not decoded yet.
    """

    def __init__(self, device: torch.device, counters: Counters) -> None:
        self.device, self.counters = device, counters
        self.kept: deque[tuple[Ready, torch.cuda.Event]] = deque()  # each with the event after its last use
        self.last_used: torch.cuda.Event | None = None

    def __enter__(self) -> "InUse":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        while self.kept:
            self._release_oldest()

    def add(self, ready: Ready) -> None:
        """Keep a batch whose last use is queued on the current stream."""
        if ready.ready_event is None:
            return
        used = torch.cuda.Event(enable_timing=True, blocking=True)  # blocking: waiting for it occupies no core
        used.record(torch.cuda.current_stream(self.device))
        self.kept.append((ready, used))
        while len(self.kept) > 1 and (len(self.kept) > MAX_IN_USE or self.kept[0][1].query()):
            self._release_oldest()

    def _release_oldest(self) -> None:
        """Wait until the oldest batch is used, and add the time for which the GPU had waited for it."""
        ready, used = self.kept.popleft()
        used.synchronize()
        if self.last_used is not None and ready.ready_event is not None:
            # Negative if the batch was ready before the previous one was used: then the GPU did not wait.
            self.counters.wait_seconds += max(0.0, self.last_used.elapsed_time(ready.ready_event)) / 1000
        self.last_used = used


# From bytes to the network's input.


class Normalize(nn.Module):
    """uint8 RGB [B, 3, H, W] -> float32 (x / 255 - mean) / std, as one multiplication and one addition.

    Runs on the device, so that bytes are copied to it instead of floats: a quarter of the size.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, mean: Channels = IMAGENET_MEAN, std: Channels = IMAGENET_STD) -> None:
        super().__init__()
        mean_C, std_C = torch.tensor(mean), torch.tensor(std)
        self.register_buffer("scale", (1 / (255 * std_C)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean_C / std_C).view(1, 3, 1, 1), persistent=False)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(self.shift, images_BCHW.float(), self.scale)

    def inverse(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Return normalised images as uint8 RGB to look at: rounded, and clamped to 0 and 255."""
        return ((images_BCHW - self.shift) / self.scale).round().clamp(0, 255).to(torch.uint8)
