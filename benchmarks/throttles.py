"""Slow down one stage of the real code on purpose, so that the bottleneck that a verdict must name is known.

prove.py starts `run_throttled` in workers, one for each process of a world.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from worker_main import Answers

SMALL_MODEL, LARGE_MODEL = "test_resnet", "resnet10t"
QUEUE_SECONDS = 0.05  # storage works ahead for this long, so a reader that wakes up late loses no bandwidth


@dataclass(frozen=True)
class Conditions:
    """The conditions that the real code runs under, and its command line; by default nothing is slowed down.

    The networks and the images are small, since a CPU trains them; the photographs are decoded as usual.
    """

    model: str = SMALL_MODEL
    size: int = 64  # pixels
    batch_size: int = 64
    num_threads: int = 0  # decoding threads; 0: one per core
    megabytes_per_second: float | None = None  # bandwidth of storage; None: not throttled
    num_cores: int | None = None  # cores of this machine to use; None: all
    is_smaller: bool = False  # the shards were prepared with --max-side 500 --quality 90
    num_processes: int = 1
    exchange_seconds: float = 0.0  # delay of each exchange of gradients
    launch_seconds: float = 0.0  # delay of each convolution
    recipe: str = ""  # measure its resolutions, scaled down
    scale: float = 1.0
    slow_size: int = 0  # resolution at which batches are delayed
    batch_seconds: float = 0.0  # delay of each of those batches


def run_throttled(job: dict[str, Any]) -> Answers:
    """Run the command benchmarks/throughput.py, with the flags `job["flags"]`, under the throttles `job["conditions"]`.

    The command writes its record itself, to the file that its flags name.
    """
    conditions = Conditions(**job["conditions"])
    # The cores come first: torch counts them when it is imported.
    with few_cores(conditions.num_cores), ExitStack() as stack:
        if conditions.megabytes_per_second:
            stack.enter_context(slow_storage(conditions.megabytes_per_second))
        if conditions.exchange_seconds:
            stack.enter_context(slow_communication(conditions.exchange_seconds))
        if conditions.launch_seconds:
            stack.enter_context(slow_launches(conditions.launch_seconds))
        if conditions.batch_seconds:
            stack.enter_context(slow_loader(conditions.slow_size, conditions.batch_seconds))

        import throughput  # noqa: PLC0415

        sys.argv[1:] = job["flags"]
        throughput.main()
    yield None


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
def slow_storage(megabytes_per_second: float) -> Iterator[None]:
    """Limit the reads of this process to a bandwidth: `os.preadv` sleeps until such storage would have delivered.

    The loader's extension in C, which has reads of its own, is not used. All threads share the bandwidth. Unused
    bandwidth is lost, except that of the last QUEUE_SECONDS.
    """
    from loaders import reader  # noqa: PLC0415

    read, lock = os.preadv, threading.Lock()
    free_at = 0.0  # the time at which all requested bytes are delivered

    def read_slowly(descriptor: int, buffers: Sequence[Any], offset: int) -> int:
        nonlocal free_at
        num_bytes = read(descriptor, buffers, offset)
        with lock:
            now = time.perf_counter()
            free_at = max(free_at, now - QUEUE_SECONDS) + num_bytes / (1e6 * megabytes_per_second)
            seconds = free_at - now
        time.sleep(max(0.0, seconds))
        return num_bytes

    with mock.patch.object(os, "preadv", read_slowly), mock.patch.object(reader, "find_extension", lambda: None):
        yield


def slow_communication(seconds: float) -> AbstractContextManager[Any]:
    """Delay each exchange of gradients (of one of DDP's buckets)."""
    import torch  # noqa: PLC0415
    import torch.distributed as dist  # noqa: PLC0415
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook  # noqa: PLC0415
    from torch.nn.parallel import DistributedDataParallel  # noqa: PLC0415

    from train import step  # noqa: PLC0415

    wrap_ddp = step.wrap_ddp

    def exchange_slowly(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        time.sleep(seconds)
        return allreduce_hook(group, bucket)

    def wrap(model: Any, world: Any) -> Any:
        wrapped = wrap_ddp(model, world)
        if isinstance(wrapped, DistributedDataParallel):
            wrapped.register_comm_hook(None, exchange_slowly)
        return wrapped

    return mock.patch.object(step, "wrap_ddp", wrap)


def slow_launches(seconds: float) -> AbstractContextManager[Any]:
    """Delay the start of each convolution's forward pass, whatever its batch."""
    from torch.nn import Conv2d  # noqa: PLC0415

    forward = Conv2d.forward

    def start_late(self: Conv2d, images: Any) -> Any:
        time.sleep(seconds)
        return forward(self, images)

    return mock.patch.object(Conv2d, "forward", start_late)


def slow_loader(size: int, seconds: float) -> AbstractContextManager[Any]:
    """Delay each batch of the loaders with one resolution."""
    from loaders import Loader  # noqa: PLC0415

    decode = Loader._decode

    def decode_late(self: Loader, *arguments: Any) -> Iterator[Any]:
        for pixels in decode(self, *arguments):
            if self.backend.reads and self.transform.size == size:
                time.sleep(seconds)
            yield pixels

    return mock.patch.object(Loader, "_decode", decode_late)
