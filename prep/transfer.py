"""Fetch shards from a bucket: ranges over many connections; a shard gets its name only when it is whole and verified.

1. The main thread opens `.NAME.tar.partial` for the next shard and queues its ranges, and `NAME.seg` if it has one.
2. Threads, one per connection, fetch ranges and write them to their places. A `NAME.seg` is compared with its digest.
3. When all of that is written, a process compares its digest, writes DALI's index, and renames it.
4. A shard that does not match is queued again, twice at most.

Shards are begun in order, and few are unfinished at any time.
"""

import multiprocessing
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prep.dataset import Shard
from prep.errors import InputError
from prep.files import NOT_SUPPORTED, PARTIAL, sha256_of, write_whole
from prep.pools import die_with_parent
from prep.progress import ByteMeter
from prep.remote import MissingObjectError, Remote, ShortObjectError
from prep.segments import segments_name
from prep.staging import ATTEMPTS, RANGE_BYTES, matches
from prep.tar_digest import name_if_whole

WRITE_BYTES = 1 << 15  # Linux then takes small pages for its cache: 0.3 CPU s/GB, with large ones up to 1.9
MAX_VERIFIERS = 16  # processes; each verifies 1.2 GB/s
SECONDS_BETWEEN_LOOKS = 1.0  # at the progress, while nothing arrives
SECONDS_TO_END = 2.0  # for threads that wait for S3, when the transfer is given up


class WrongObjectError(ValueError):
    """An object does not match its digest, whenever it is fetched."""


@dataclass(eq=False)
class Fetch:
    """One shard to fetch, into the folder of its split; `wrong` says why the last attempt failed."""

    shard: Shard
    folder: Path
    segments_bytes: int = 0  # of its SHARD.seg in the bucket
    attempt: int = 0
    num_missing: int = 0  # ranges of this attempt, and its SHARD.seg
    num_written: int = 0  # bytes of this attempt
    descriptor: int = -1
    wrong: str = ""
    is_hopeless: bool = False  # no other attempt is to be made

    @property
    def split(self) -> str:
        return self.folder.name

    @property
    def name(self) -> str:
        """The object, relative to the dataset."""
        return f"{self.split}/{self.shard.name}"

    @property
    def segments(self) -> Path:
        """The file with its segments, if the split has them."""
        return self.folder / segments_name(self.shard.name)

    @property
    def size_bytes(self) -> int:
        """Bytes to fetch."""
        return self.shard.size_bytes + self.segments_bytes

    @property
    def partial(self) -> Path:
        return self.folder / f".{self.shard.name}{PARTIAL}"


def make_fetch(shard: Shard, folder: Path, there: Mapping[str, int]) -> Fetch:
    """Return a shard to fetch into the folder of its split; `there` has the sizes of the bucket's objects, by name."""
    segments = there.get(f"{folder.name}/{segments_name(shard.name)}", 0) if shard.segments_sha256 else 0
    return Fetch(shard, folder, segments)


@dataclass(frozen=True)
class Arrived:
    """A range of a shard, or its SHARD.seg, was written; `error` if not."""

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
        self.parts: queue.SimpleQueue[tuple[Fetch, Callable[[], int]] | None] = queue.SimpleQueue()
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
            self.threads.append(threading.Thread(target=self._fetch_parts, daemon=True))
            self.threads[-1].start()
        while waiting or self.opened:
            # Open shards while there are fewer parts than connections, and the verification keeps up.
            while waiting and self.parts.qsize() < self.num_connections and self.num_verifying <= self.num_verifiers:
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
            self.parts.put(None)
        self.pool.shutdown(cancel_futures=True)
        for thread in self.threads:
            thread.join(SECONDS_TO_END / len(self.threads))
        are_ended = not any(thread.is_alive() for thread in self.threads)
        for fetch in self.opened:
            if fetch.descriptor >= 0 and are_ended:  # a living thread could write to another file of this number
                os.close(fetch.descriptor)
            fetch.partial.unlink(missing_ok=True)

    def _open(self, fetch: Fetch) -> None:
        """Make room for a shard; queue its SHARD.seg and its ranges."""
        size, fetch.wrong, fetch.num_written = fetch.shard.size_bytes, "", 0
        fetch.attempt += 1
        fetch.descriptor = os.open(fetch.partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        self.opened.add(fetch)
        try:
            os.posix_fallocate(fetch.descriptor, 0, size)
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise OSError(error.errno, error.strerror, str(fetch.partial)) from None
        has_segments = bool(fetch.shard.segments_sha256)
        fetch.num_missing = count_ranges(fetch.shard) + has_segments
        if has_segments:
            self.parts.put((fetch, partial(self._fetch_segments, fetch)))
        for start in range(0, size, RANGE_BYTES):
            self.parts.put((fetch, partial(self._fetch_range, fetch, start, min(start + RANGE_BYTES, size))))

    def _fetch_parts(self) -> None:
        """Fetch and write what is queued, until None comes; the work of one thread."""
        while item := self.parts.get():
            fetch, fetch_part = item
            try:
                self.events.put(Arrived(fetch, fetch_part()))
            except BaseException as error:
                self.events.put(Arrived(fetch, 0, error))

    def _fetch_range(self, fetch: Fetch, start: int, stop: int) -> int:
        if fetch.is_hopeless:  # its SHARD.seg cannot be fetched: save the rest
            return 0
        self.remote.read_pieces(fetch.name, start, stop, partial(write_at, fetch))
        return stop - start

    def _fetch_segments(self, fetch: Fetch) -> int:
        """Fetch and write a shard's SHARD.seg, unless it is here.

        Raises:
            MissingObjectError: the bucket does not have it.
            WrongObjectError: it does not match its manifest, three times.
        """
        name, digest = f"{fetch.split}/{fetch.segments.name}", fetch.shard.segments_sha256
        if matches(fetch.segments, digest):  # in another attempt, or before this process was started
            return fetch.segments_bytes
        for _ in range(ATTEMPTS):
            content = self.remote.read(name)
            if content is None:
                raise MissingObjectError(f"{self.remote}/{name} does not exist")
            if sha256_of(content) == digest:
                write_whole(fetch.segments, content, unique=True)
                return fetch.segments_bytes
        raise WrongObjectError(f"{self.remote}/{name} does not match its manifest, fetched {ATTEMPTS} times")

    def _note_arrival(self, event: Arrived) -> bool:
        """Count a part; verify its shard if it was the last one. Return True if the shard is given up."""
        fetch, error = event.fetch, event.error
        if isinstance(error, MissingObjectError | WrongObjectError):
            fetch.wrong, fetch.is_hopeless = str(error), True
        elif isinstance(error, ShortObjectError):
            fetch.wrong = fetch.wrong or str(error)
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
        if fetch.is_hopeless or fetch.attempt >= ATTEMPTS:
            fetch.wrong += "" if fetch.is_hopeless else f", fetched {fetch.attempt} times"
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
