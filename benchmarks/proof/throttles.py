"""Slow down one stage of the real code on purpose, so that the bottleneck a verdict must name is known."""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

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
