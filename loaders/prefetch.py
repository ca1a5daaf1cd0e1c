"""A producer thread and a bounded queue, so that the consumer finds its next item ready."""

import atexit
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from types import TracebackType
from typing import Generic, TypeVar

from loaders.stats import Counters

T = TypeVar("T")
SECONDS_BETWEEN_CHECKS = 0.1  # of a producer with a full queue, whether it should stop; of `_stop`, whether it has


class Prefetcher(Generic[T]):
    """Runs a generator in its own thread, ahead of the consumer. Use as a context manager.

    It holds up to `depth` finished items in a queue, and one more while the queue is full.

    Exceptions of the generator are raised in the consumer. The generator is closed in the producer's thread: the
    threads and CUDA streams that it holds belong to that thread.
    """

    def __init__(
        self,
        items: Generator[T, None, None],
        depth: int,
        counters: Counters,
        interrupt: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare the thread.

        Args:
            interrupt: is called when the consumer stops, and again until the thread has ended, so that the generator
                does not wait any longer, whatever it begins meanwhile.
        """
        self.items, self.counters, self.interrupt = items, counters, interrupt
        # Each entry is an item; or an error that ends the stream; or (None, None), the normal end.
        self.queue: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._produce, name="penstock-prefetch", daemon=True)

    def __enter__(self) -> "Prefetcher[T]":
        # A process that ends while a loader is open must stop the thread first: DALI aborts the process if threads
        # still run its pipelines.
        atexit.register(self._stop)
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if not self.stopped.is_set():  # it is set while Python exits, which has called `_stop` and unloads modules
            atexit.unregister(self._stop)
            self._stop()

    def _stop(self) -> None:
        self.stopped.set()
        while self.thread.is_alive():
            self.interrupt()
            self.thread.join(SECONDS_BETWEEN_CHECKS)

    @property
    def num_ready(self) -> int:
        """The number of items in the queue."""
        return self.queue.qsize()

    def __iter__(self) -> Iterator[T]:
        """Yield the items in order; the time spent waiting for them is counted in `queue_seconds`."""
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
        """Run the generator and fill the queue: the body of the producer's thread."""
        try:
            with closing(self.items):
                for item in self.items:
                    self._put(item, None)
                    if self.stopped.is_set():
                        return
            self._put(None, None)
        except BaseException as error:  # of any kind: otherwise the consumer would wait forever
            self._put(None, error)

    def _put(self, item: T | None, error: BaseException | None) -> None:
        """Put an entry into the queue; give up when the consumer has stopped, since it takes nothing any more."""
        while not self.stopped.is_set():
            try:
                self.queue.put((item, error), timeout=SECONDS_BETWEEN_CHECKS)
                return
            except queue.Full:
                continue
