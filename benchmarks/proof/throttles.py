"""Slow down one stage of the real code on purpose, so that the bottleneck a verdict must name is known."""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

QUEUE_SECONDS = 0.05  # storage works ahead for this long, so a reader that wakes up late loses no bandwidth


class SlowStorage:
    """`os.preadv` at a limited bandwidth: a thread that reads sleeps until such storage would have delivered the bytes.

    All threads share the bandwidth. Unused bandwidth is lost, except that of the last QUEUE_SECONDS.
    """

    def __init__(self, megabytes_per_second: float) -> None:
        self.bytes_per_second, self.real = 1e6 * megabytes_per_second, os.preadv
        self.lock, self.free_at = threading.Lock(), 0.0  # the time at which all requested bytes are delivered

    def preadv(self, descriptor: int, buffers: Sequence[Any], offset: int) -> int:
        """Read as `os.preadv` does, then sleep."""
        num_bytes = self.real(descriptor, buffers, offset)
        with self.lock:
            now = time.perf_counter()
            self.free_at = max(self.free_at, now - QUEUE_SECONDS) + num_bytes / self.bytes_per_second
            seconds = self.free_at - now
        time.sleep(max(0.0, seconds))
        return num_bytes


@contextmanager
def slow_storage(megabytes_per_second: float | None) -> Iterator[None]:
    """Limit the reads of this process to a bandwidth while the block runs; None: no limit."""
    if megabytes_per_second is None:
        yield
        return
    slow = SlowStorage(megabytes_per_second)
    os.preadv = slow.preadv
    try:
        yield
    finally:
        os.preadv = slow.real


@contextmanager
def few_cores(num_cores: int | None) -> Iterator[None]:
    """Run this thread and all that it starts on `num_cores` of its cores while the block runs; None: on all of them."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:num_cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def slow_communication(seconds: float) -> Iterator[None]:
    """Delay each exchange of gradients (of one of DDP's buckets) while the block runs."""
    import torch  # noqa: PLC0415  (few_cores has to come before torch counts the cores)
    import torch.distributed as dist  # noqa: PLC0415
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook  # noqa: PLC0415
    from torch.nn.parallel import DistributedDataParallel  # noqa: PLC0415

    from train import step  # noqa: PLC0415

    wrap_ddp = step.wrap_ddp

    def exchange(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        time.sleep(seconds)
        return allreduce_hook(group, bucket)

    def wrap(model: Any, world: Any) -> Any:
        wrapped = wrap_ddp(model, world)
        if isinstance(wrapped, DistributedDataParallel):
            wrapped.register_comm_hook(None, exchange)
        return wrapped

    with mock.patch.object(step, "wrap_ddp", wrap):
        yield


@contextmanager
def slow_launches(seconds: float) -> Iterator[None]:
    """Delay the start of each convolution's forward pass while the block runs, whatever its batch."""
    from torch.nn import Conv2d  # noqa: PLC0415

    forward = Conv2d.forward

    def wait(self: Conv2d, images: Any) -> Any:
        time.sleep(seconds)
        return forward(self, images)

    with mock.patch.object(Conv2d, "forward", wait):
        yield


@contextmanager
def slow_loader(size: int, seconds: float) -> Iterator[None]:
    """Delay each batch of the loaders with one resolution while the block runs."""
    from loaders import Loader  # noqa: PLC0415

    decode = Loader._decode

    def wait(self: Loader, *arguments: Any) -> Iterator[Any]:
        for pixels in decode(self, *arguments):
            if self.backend.reads and self.transform.size == size:
                time.sleep(seconds)
            yield pixels

    with mock.patch.object(Loader, "_decode", wait):
        yield
