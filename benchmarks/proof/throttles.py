"""Ways of slowing one stage of the real code down on purpose, so that it is known what a verdict must name."""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

QUEUE_SECONDS = 0.05  # for which storage works on by itself: a reader that wakes up late has lost nothing


class SlowStorage:
    """`os.preadv` at a bandwidth: whoever reads sleeps until storage so slow would have delivered the bytes.

    All threads share the bandwidth. What was not used is lost, but for the last QUEUE_SECONDS.
    """

    def __init__(self, megabytes_per_second: float) -> None:
        self.bytes_per_second, self.real = 1e6 * megabytes_per_second, os.preadv
        self.lock, self.free_at = threading.Lock(), 0.0  # when all that was asked for will have been delivered

    def preadv(self, descriptor: int, buffers: Sequence[Any], offset: int) -> int:
        num_bytes = self.real(descriptor, buffers, offset)
        with self.lock:
            now = time.perf_counter()
            self.free_at = max(self.free_at, now - QUEUE_SECONDS) + num_bytes / self.bytes_per_second
            seconds = self.free_at - now
        time.sleep(max(0.0, seconds))
        return num_bytes


@contextmanager
def slow_storage(megabytes_per_second: float | None) -> Iterator[None]:
    """While it lasts this process reads no faster; None: as fast as it can."""
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
    """While it lasts this thread, and all that it starts, runs on so many of its cores; None: on all of them."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:num_cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
