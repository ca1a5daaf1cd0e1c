"""A producer thread and a bounded queue: the consumer only takes what is ready."""

import atexit
import queue
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from types import TracebackType
from typing import Generic, TypeVar

from loaders.stats import Counters

T = TypeVar("T")
SECONDS_BETWEEN_CHECKS = 0.1  # how soon a producer with a full queue notices that it should stop


class Pump(Generic[T]):
    """Runs a generator in a thread of its own, at most `depth` items ahead; its exceptions reach the consumer."""

    def __init__(self, items: Generator[T, None, None], depth: int, counters: Counters) -> None:
        self.items, self.counters = items, counters
        self.queue: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._produce, name="penstock-pump", daemon=True)

    def __enter__(self) -> "Pump[T]":
        # A process that ends with a loader open must stop it first: DALI aborts where threads still run its pipelines.
        atexit.register(self._stop)
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        atexit.unregister(self._stop)
        self._stop()

    def _stop(self) -> None:
        self.stopped.set()
        self.thread.join()

    @property
    def num_ready(self) -> int:
        """Items that wait to be taken."""
        return self.queue.qsize()

    def __iter__(self) -> Iterator[T]:
        while True:
            started = time.perf_counter()
            item, error = self.queue.get()
            self.counters.queue_seconds += time.perf_counter() - started
            if error is not None:
                raise error
            if item is None:
                return
            self.counters.num_batches += 1
            yield item

    def _produce(self) -> None:
        try:
            with closing(self.items):  # here, since what it holds (threads, streams) belongs to this thread
                for item in self.items:
                    self._put(item, None)
                    if self.stopped.is_set():
                        return
            self._put(None, None)
        except BaseException as error:  # whatever it is, the consumer must hear of it
            self._put(None, error)

    def _put(self, item: T | None, error: BaseException | None) -> None:
        while not self.stopped.is_set():
            try:
                self.queue.put((item, error), timeout=SECONDS_BETWEEN_CHECKS)
                return
            except queue.Full:
                continue
