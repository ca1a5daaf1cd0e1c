"""Fetch shards from a bucket: ranges over many connections; a shard gets its name only when it is whole and verified.

1. The main thread opens `.NAME.tar.partial` for the next shard and queues its ranges.
2. Threads, one per connection, fetch ranges and write them to their places.
3. When a shard's last range is written, a process compares its digest, writes DALI's index, and renames it.
4. A shard that does not match is queued again, twice at most.

Shards are begun in order, and few are unfinished at any time.
"""

import multiprocessing
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prep.dataset import Shard
from prep.errors import InputError
from prep.files import NOT_SUPPORTED, PARTIAL
from prep.pools import die_with_parent
from prep.progress import ByteMeter
from prep.remote import MissingObjectError, Remote, ShortObjectError
from prep.staging import ATTEMPTS, RANGE_BYTES
from prep.tar_digest import name_if_whole

WRITE_BYTES = 1 << 15  # Linux then takes small pages for its cache: 0.3 CPU s/GB, with large ones up to 1.9
MAX_VERIFIERS = 16  # processes; each verifies 1.2 GB/s
SECONDS_BETWEEN_LOOKS = 1.0  # at the progress, while nothing arrives
SECONDS_TO_END = 2.0  # for threads that wait for S3, when the transfer is given up


@dataclass(eq=False)
class Fetch:
    """One shard to fetch, into the folder of its split; `wrong` says why the last attempt failed."""

    shard: Shard
    folder: Path
    attempt: int = 0
    num_missing: int = 0  # ranges of this attempt
    num_written: int = 0  # bytes of this attempt
    descriptor: int = -1
    wrong: str = ""
    is_absent: bool = False  # the bucket has no such object

    @property
    def split(self) -> str:
        return self.folder.name

    @property
    def name(self) -> str:
        """The object, relative to the dataset."""
        return f"{self.split}/{self.shard.name}"

    @property
    def partial(self) -> Path:
        return self.folder / f".{self.shard.name}{PARTIAL}"


@dataclass(frozen=True)
class Arrived:
    """A range of a shard was written; `error` if not."""

    fetch: Fetch
    size_bytes: int
    error: BaseException | None = None


@dataclass(frozen=True)
class Verified:
    """A process has verified a shard; the result is True if it is whole and named."""

    fetch: Fetch
    result: Future[bool]


class Transfer:
    """Fetches shards; leaves no unfinished file, however it ends.

    Args:
        remote: the dataset; it is stopped if the transfer ends too early.
        num_connections: threads; each holds one range in memory.
        meter: counts the bytes of ranges that were written.
    """

    def __init__(self, remote: Remote, num_connections: int, meter: ByteMeter) -> None:
        self.remote, self.meter, self.num_connections = remote, meter, num_connections
        self.num_verifiers = max(1, min(MAX_VERIFIERS, len(os.sched_getaffinity(0)) // 2))
        self.ranges: queue.SimpleQueue[tuple[Fetch, int, int] | None] = queue.SimpleQueue()
        self.events: queue.SimpleQueue[Arrived | Verified] = queue.SimpleQueue()
        self.opened: set[Fetch] = set()
        self.num_verifying = 0
        self.threads: list[threading.Thread] = []
        # A fork would inherit threads. Workers are started by `submit`, in this thread: they die with it.
        self.pool = ProcessPoolExecutor(
            self.num_verifiers, multiprocessing.get_context("spawn"), die_with_parent, (os.getpid(),)
        )

    def __enter__(self) -> "Transfer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fetch_all(self, fetches: Iterable[Fetch]) -> Iterator[Fetch]:
        """Fetch shards, in this order; yield each when it is done, or given up: then `wrong` says why.

        Raises:
            RemoteError: S3 cannot be read.
            InputError: a verifying process was killed.
            OSError: the disk failed.
        """
        waiting = deque(fetches)
        for _ in range(min(self.num_connections, sum(count_ranges(fetch.shard) for fetch in waiting))):
            self.threads.append(threading.Thread(target=self._fetch_ranges, daemon=True))
            self.threads[-1].start()
        while waiting or self.opened:
            # Open shards while there are fewer ranges than connections, and the verification keeps up.
            while waiting and self.ranges.qsize() < self.num_connections and self.num_verifying <= self.num_verifiers:
                self._open(waiting.popleft())

            # One event; without one, only show that nothing arrives.
            try:
                event = self.events.get(timeout=SECONDS_BETWEEN_LOOKS)
            except queue.Empty:
                self.meter.add(0, self.remote.patience.describe())
                continue
            done = self._note_arrival(event) if isinstance(event, Arrived) else self._note_verification(event)
            if done:
                self.opened.remove(event.fetch)
                yield event.fetch

    def close(self) -> None:
        """End the threads and processes; remove what is unfinished."""
        if self.opened:
            self.remote.stop()
        for _ in self.threads:
            self.ranges.put(None)
        self.pool.shutdown(cancel_futures=True)
        for thread in self.threads:
            thread.join(SECONDS_TO_END / len(self.threads))
        are_ended = not any(thread.is_alive() for thread in self.threads)
        for fetch in self.opened:
            if fetch.descriptor >= 0 and are_ended:  # a living thread could write to another file of this number
                os.close(fetch.descriptor)
            fetch.partial.unlink(missing_ok=True)

    def _open(self, fetch: Fetch) -> None:
        """Make room for a shard and queue its ranges."""
        size, fetch.wrong, fetch.num_written = fetch.shard.size_bytes, "", 0
        fetch.attempt += 1
        fetch.descriptor = os.open(fetch.partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        self.opened.add(fetch)
        try:
            os.posix_fallocate(fetch.descriptor, 0, size)
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise OSError(error.errno, error.strerror, str(fetch.partial)) from None
        fetch.num_missing = count_ranges(fetch.shard)
        for start in range(0, size, RANGE_BYTES):
            self.ranges.put((fetch, start, min(start + RANGE_BYTES, size)))

    def _fetch_ranges(self) -> None:
        """Fetch and write the queued ranges, until None comes; the work of one thread."""
        while item := self.ranges.get():
            fetch, start, stop = item
            try:
                self.remote.read_pieces(fetch.name, start, stop, partial(write_at, fetch))
                self.events.put(Arrived(fetch, stop - start))
            except BaseException as error:
                self.events.put(Arrived(fetch, 0, error))

    def _note_arrival(self, event: Arrived) -> bool:
        """Count a range; verify its shard if it was the last one. Return True if the shard is given up."""
        fetch, error = event.fetch, event.error
        if isinstance(error, MissingObjectError | ShortObjectError):
            fetch.wrong, fetch.is_absent = str(error), isinstance(error, MissingObjectError)
        elif error is not None:
            raise error
        self.meter.add(event.size_bytes, self.remote.patience.describe())
        fetch.num_written += event.size_bytes
        fetch.num_missing -= 1
        if fetch.num_missing:
            return False
        os.close(fetch.descriptor)
        fetch.descriptor = -1
        if fetch.wrong:
            return self._give_up_or_repeat(fetch)
        self.num_verifying += 1
        tar, sha256 = fetch.folder / fetch.shard.name, fetch.shard.composite_sha256
        future = self._submit(name_if_whole, fetch.partial, tar, sha256)
        future.add_done_callback(lambda result: self.events.put(Verified(fetch, result)))
        return False

    def _submit(self, function: Callable[[Path, Path, str], bool], *arguments: Any) -> "Future[bool]":
        """Give a process something to do; one that is started here never sees Ctrl-C, not even while it starts."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return self.pool.submit(function, *arguments)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def _note_verification(self, event: Verified) -> bool:
        """Return True if a shard is done; repeat one that does not match."""
        self.num_verifying -= 1
        try:
            if event.result.result():
                return True
        except BrokenProcessPool as error:
            raise InputError("a worker process was killed (out of memory?): run the same command again") from error
        event.fetch.wrong = f"{self.remote}/{event.fetch.name} does not match its manifest"
        return self._give_up_or_repeat(event.fetch)

    def _give_up_or_repeat(self, fetch: Fetch) -> bool:
        """Return True if a shard is given up; else queue it again."""
        self.meter.add(-fetch.num_written)
        if fetch.is_absent or fetch.attempt >= ATTEMPTS:
            fetch.wrong += "" if fetch.is_absent else f", fetched {fetch.attempt} times"
            fetch.partial.unlink(missing_ok=True)
            return True
        self._open(fetch)
        return False


def count_ranges(shard: Shard) -> int:
    """Return the number of requests that fetch a shard."""
    return -(-shard.size_bytes // RANGE_BYTES)


def write_at(fetch: Fetch, content: memoryview, position: int) -> None:
    """Write bytes at a position of a shard's unfinished file.

    Raises:
        OSError: the disk failed; `filename` is the file.
    """
    try:
        while len(content):
            written = os.pwrite(fetch.descriptor, content[:WRITE_BYTES], position)
            content, position = content[written:], position + written
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(fetch.partial)) from None
