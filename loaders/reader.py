"""Read the encoded bytes of planned batches, several batches ahead.

`Reader` reads each image with `preadv` into a pooled buffer. If the disk is slow for a moment, batches that were
read ahead are used. Reads instead of a memory map mean that a shard that shrinks gives an error with its name; a map
would end the process with a bus error. `ReadAhead` is for the order `blocks`: it reads long runs of the shards into the
page cache before the reader needs them.
"""

import errno
import io
import os
import queue
import resource
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import numpy as np

from loaders.compiled import find_extension, read_whole, splice_part
from loaders.order import BLOCK_IMAGES, GROUP_BLOCKS, Sampling, locate
from loaders.plan import DAMAGED_SIDE, Plan
from loaders.splice_reader import Done, Slots, Splicer, WholeImages, spliced_size
from loaders.stats import Counters
from loaders.world import World
from prep.errors import InputError, RankError

if TYPE_CHECKING:
    from prep.dataset import Split

SPARE_DESCRIPTORS = 256  # open files that everything else in this process may need
WINDOW_IMAGES = BLOCK_IMAGES * GROUP_BLOCKS  # 4,096 images: the order `blocks` shuffles within such a window
LARGEST_GAP_BYTES = 1 << 20  # a gap up to this size is read too (tar headers, images of other windows): one long read
CHUNK_BYTES = 1 << 20  # size of one read of `ReadAhead`
NOT_OPEN = -1  # in place of a descriptor


@dataclass(frozen=True)
class Encoded:
    """The encoded images of one batch: uint8 views into one pooled buffer, valid until `Reader.release`."""

    images: list[np.ndarray]
    buffer: np.ndarray


EMPTY = Encoded([], np.empty(0, np.uint8))  # for backends that read no files


class ShardError(RankError):
    """A shard cannot be read by this process; other processes may not notice."""


class Reader:
    """Reads the images of plans from a split's shards. Use as a context manager: it holds threads and open files.

    A buffer belongs to one batch from `_start` until the backend calls `release`; then another batch may use it.
    `free` holds the unused buffers. Only the thread that iterates over `read` uses it, so it needs no lock.
    """

    def __init__(
        self,
        split: "Split",
        num_threads: int,
        batches_ahead: int,
        counters: Counters,
        whole: WholeImages | None = None,
    ) -> None:
        """Open the shards.

        Args:
            whole: to splice the images of a split with segments, except these; None: read complete images.
        """
        self.split, self.counters = split, counters
        self.num_threads, self.batches_ahead = num_threads, batches_ahead
        self.shards, self.offsets, self.sizes = (split.column(name) for name in ("shard", "offset", "size"))
        self.splicer = None if whole is None else Splicer(split, whole)
        _allow_open_files(len(split.shard_paths), files_per_shard=1 if whole is None else 2)
        self.descriptors = self._open_shards()
        self.threads = ThreadPoolExecutor(num_threads, thread_name_prefix="penstock-read")
        self.free: list[np.ndarray] = []

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.threads.shutdown(wait=True, cancel_futures=True)
        for descriptor in self.descriptors:
            if descriptor != NOT_OPEN:
                os.close(descriptor)
        if self.splicer is not None:
            self.splicer.close()

    def read_ahead(self, sampling: Sampling, batch_size: int, world: World) -> "Ahead":
        """Return what reads the windows of the order `blocks` ahead, for this reader's plans."""
        return ReadAhead(self.split, sampling, world, self.splicer)

    def interrupt(self) -> None:
        """End waiting for a storage that does not answer, from another thread; a disk always answers."""

    def describe_wait(self) -> str:
        """Return what the reader waits for and since when, if its storage does not answer; else an empty text."""
        return ""

    def read(self, plans: Iterable[Plan]) -> Iterator[tuple[Plan, Encoded]]:
        """Yield each plan with its encoded images, in order. The backend must pass every `Encoded` to `release`.

        If images are spliced, the plan's windows are those within the spliced images.
        """
        # The reads of `batches_ahead` more batches are running while one is consumed.
        pending: deque[tuple[Slots, list[Future[Done]]]] = deque()
        for plan in plans:
            pending.append(self._start(plan))
            if len(pending) > self.batches_ahead:
                yield self._finish(*pending.popleft())
        while pending:
            yield self._finish(*pending.popleft())

    def release(self, encoded: Encoded) -> None:
        """Return a batch's buffer to the pool."""
        self.free.append(encoded.buffer)

    def _start(self, plan: Plan) -> tuple[Slots, list[Future[Done]]]:
        """Start reading a batch in the threads; return its images, which are filled when all futures are done."""
        # Divide one buffer among the images. A damaged image is not read: a black JPEG takes its place.
        rows_B = plan.rows_B
        sizes_B = np.where(plan.damaged_B, 0, self.sizes[rows_B])
        spans, rooms_B = None, sizes_B
        if self.splicer is not None:
            spans, rooms_B = self.splicer.find_spans(plan), spliced_size(sizes_B)
        ends_B = np.cumsum(rooms_B)
        starts_B = ends_B - rooms_B
        buffer = self._find_buffer(int(ends_B[-1]))
        images = [buffer[start : start + size] for start, size in zip(starts_B, sizes_B, strict=True)]
        for i in np.flatnonzero(plan.damaged_B):
            images[i] = black_jpeg()

        slots = Slots(plan, spans, buffer, starts_B, images)
        return slots, self._submit(slots, np.flatnonzero(sizes_B > 0))

    def _submit(self, slots: Slots, chosen_C: np.ndarray) -> list[Future[Done]]:
        """Start reading some images of a batch in the threads."""
        # Read in the order of the disk, each thread a contiguous part of it.
        rows_C = slots.plan.rows_B[chosen_C]
        in_disk_order = chosen_C[np.lexsort((self.offsets[rows_C], self.shards[rows_C]))]
        parts = np.array_split(in_disk_order, self.num_threads)
        return [self.threads.submit(self._read_images, slots, part) for part in parts if len(part)]

    def _open_shards(self) -> list[int]:
        """Return a file descriptor for each shard. Open the files with their segments too."""
        if self.splicer is None:
            return open_files(self.split.shard_paths)
        try:
            for shard in range(len(self.split.shard_paths)):
                self.splicer.open_shard(shard)
            return open_files(self.split.shard_paths)
        except InputError:
            self.splicer.close()
            raise

    def _find_buffer(self, size_bytes: int) -> np.ndarray:
        """Return a free buffer that is large enough, or a new one."""
        for i, buffer in enumerate(self.free):
            if len(buffer) >= size_bytes:
                return self.free.pop(i)
        if self.free:  # all are too small: replace one, so that the pool does not grow
            self.free.pop()
        return np.empty(size_bytes + size_bytes // 4, np.uint8)  # 25% larger, so that later batches fit too

    def _finish(self, slots: Slots, futures: list[Future[Done]]) -> tuple[Plan, Encoded]:
        """Wait until a batch is read. Raises what a thread raised."""
        started = time.perf_counter()
        done = [future.result() for future in futures]
        self.counters.read_seconds += time.perf_counter() - started
        self.counters.read_bytes += sum(each.num_bytes for each in done)
        self.counters.image_bytes += int(self.sizes[slots.plan.rows_B[~slots.plan.damaged_B]].sum())
        self.counters.decode_bytes += sum(image.nbytes for image in slots.images)
        plan, encoded = slots.plan, Encoded(slots.images, slots.buffer)
        if self.splicer is None or slots.spans is None:
            return plan, encoded

        # The windows within the spliced images.
        contradictory = [i for each in done for i in each.contradictory]
        windows_B4 = slots.spans.windows_B4
        windows_B4[contradictory] = plan.windows_B4[contradictory]
        self.splicer.distrust(plan.rows_B[contradictory].tolist())
        return replace(plan, windows_B4=windows_B4), encoded

    def _read_images(self, slots: Slots, part_P: np.ndarray) -> Done:
        """Read some images of a batch, in the order of the disk."""
        done, whole_P = Done(0, []), part_P
        if self.splicer is not None and slots.spans is not None:
            # Spliced images. Those whose segments contradict the tar are read whole.
            is_spliced_P = slots.spans.is_spliced_B[part_P]
            done = self._read_spliced(self.splicer, slots, part_P[is_spliced_P])
            whole_P = np.concatenate([part_P[~is_spliced_P], np.array(done.contradictory, np.int64)])
        return Done(done.num_bytes + self._read_whole(slots, whole_P), done.contradictory)

    def _read_spliced(self, splicer: Splicer, slots: Slots, chosen_P: np.ndarray) -> Done:
        extension = find_extension()
        if extension is None:
            return splicer.read_part(slots, chosen_P, self._fill)
        tar_files = self._find_files(slots.plan.rows_B[chosen_P])
        return splice_part(extension, splicer, slots, chosen_P, tar_files, self._make_read_error)

    def _read_whole(self, slots: Slots, chosen_P: np.ndarray) -> int:
        """Read complete images of a batch; return their bytes."""
        if not len(chosen_P):
            return 0
        rows_P = slots.plan.rows_B[chosen_P]
        starts_P, sizes_P = slots.starts_B[chosen_P], self.sizes[rows_P].astype(np.int64)
        ends_P = starts_P + sizes_P
        if (extension := find_extension()) is not None:
            columns = (self._find_files(rows_P), self.offsets[rows_P], starts_P, ends_P)
            jobs_P4 = np.stack([np.asarray(each, np.int64) for each in columns], axis=1)
            read_whole(extension, slots.buffer, rows_P, jobs_P4, self._make_read_error)
        view = slots.buffer.data
        for i, row, start, end in zip(*(each.tolist() for each in (chosen_P, rows_P, starts_P, ends_P)), strict=True):
            if extension is None:
                self._fill(row, 0, view[start:end])
            slots.images[i] = slots.buffer[start:end]
        return int(sizes_P.sum())

    def _find_files(self, rows: np.ndarray) -> list[int]:
        """Return the descriptors of the shards that hold some rows."""
        return [self.descriptors[shard] for shard in self.shards[rows].tolist()]

    def _fill(self, row: int, offset: int, target: memoryview) -> None:
        """Fill `target` with a row's bytes from an offset in its image on."""
        shard, position = int(self.shards[row]), int(self.offsets[row]) + offset
        done = 0
        while done < len(target):
            # One `preadv` may return fewer bytes than requested.
            try:
                num_bytes = os.preadv(self.descriptors[shard], [target[done:] if done else target], position + done)
            except OSError as error:
                raise self._make_read_error(row, error.errno or errno.EIO) from error
            if not num_bytes:
                raise self._make_read_error(row, 0)
            done += num_bytes

    def _make_read_error(self, row: int, error: int) -> ShardError:
        """Return the error for a row that cannot be read, from an errno; 0: its file ends before."""
        what = f"cannot be read ({os.strerror(error)}) at" if error else "ends before"
        path, key = self.split.shard_paths[int(self.shards[row])], self.split.keys(np.array([row]))[0]
        return ShardError(
            f"{path} {what} its image {key}: `python prep/verify.py {self.split.folder}` says how to repair it"
        )


@cache
def black_jpeg() -> np.ndarray:
    """Return the encoded image that evaluation decodes instead of a damaged one, which counts as wrong: uint8."""
    from PIL import Image  # noqa: PLC0415  (only a run with damaged images needs it)

    encoded = io.BytesIO()
    Image.new("RGB", (DAMAGED_SIDE, DAMAGED_SIDE)).save(encoded, "JPEG")
    return np.frombuffer(encoded.getvalue(), np.uint8)


def open_files(paths: list[Path]) -> list[int]:
    """Return file descriptors; if one file cannot be opened, close the others and raise InputError."""
    descriptors: list[int] = []
    try:
        for path in paths:
            descriptors.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        for descriptor in descriptors:
            os.close(descriptor)
        raise InputError(
            f"{error.filename} cannot be opened ({error.strerror}): "
            f"`python prep/verify.py {paths[0].parent}` says how to repair it"
        ) from error
    return descriptors


def _allow_open_files(num_shards: int, files_per_shard: int) -> None:
    """Raise this process's soft limit of open files if the shards need more than it allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = num_shards * files_per_shard + SPARE_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and wanted > soft:
        if hard != resource.RLIM_INFINITY and wanted > hard:
            raise InputError(f"{num_shards} shards need {wanted} open files, the limit is {hard}: raise `ulimit -Hn`")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Ahead(Protocol):
    """Reads ahead of the plans that pass through `follow`; a context manager."""

    def __enter__(self) -> "Ahead": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def follow(self, plans: Iterable[Plan]) -> Iterator[Plan]:
        """Yield the same plans."""
        ...


class ReadAhead:
    """Reads the next window of the stream into the page cache while the current one is consumed.

    For the order `blocks` on storage with slow random reads: a window of 4,096 images is read in long runs, and the
    reader then finds its images in memory. The processes of a machine divide the runs among themselves. Use as a
    context manager.

    Args:
        splicer: if images are spliced; the lengths of their segments are read ahead too.
    """

    def __init__(self, split: "Split", sampling: Sampling, world: World, splicer: Splicer | None = None) -> None:
        self.split, self.sampling, self.world, self.splicer = split, sampling, world, splicer
        self.shards, self.offsets, self.sizes = (split.column(name) for name in ("shard", "offset", "size"))
        self.requests: queue.SimpleQueue[int | None] = queue.SimpleQueue()  # numbers of windows; None: stop
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._read_windows, name="penstock-ahead", daemon=True)

    def __enter__(self) -> "ReadAhead":
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.stopped.set()
        self.requests.put(None)
        self.thread.join()

    def follow(self, plans: Iterable[Plan]) -> Iterator[Plan]:
        """Yield the same plans; when they enter a window, request that window and the next one, each once."""
        done = -1
        for plan in plans:
            first = plan.position // WINDOW_IMAGES
            for window in range(max(first, done + 1), first + 2):
                self.requests.put(window)
                done = window
            yield plan

    def find_runs(self, window: int) -> np.ndarray:
        """Return the byte ranges of a window that this process reads: int64 [runs, 3], shard, start, stop."""
        rows_W = self._find_rows(window)
        return self._take_share(merge_runs(self.shards[rows_W], self.offsets[rows_W], self.sizes[rows_W]))

    def find_segment_runs(self, window: int) -> np.ndarray:
        """Return the same for the files with the shards' segments."""
        if self.splicer is None:
            return np.empty((0, 3), np.int64)
        rows_W = self._find_rows(window)
        starts_W, sizes_W = self.splicer.locate_lengths(rows_W)
        return self._take_share(merge_runs(self.shards[rows_W], starts_W, sizes_W))

    def _find_rows(self, window: int) -> np.ndarray:
        positions_W = np.arange(window * WINDOW_IMAGES, (window + 1) * WINDOW_IMAGES)
        _, rows_W = locate(self.sampling, positions_W, len(self.split))
        return rows_W

    def _take_share(self, runs: np.ndarray) -> np.ndarray:
        return runs[self.world.local_rank :: self.world.local_size]

    def _read_windows(self) -> None:
        """Read the requested windows, in a thread, until the request None."""
        chunk = memoryview(bytearray(CHUNK_BYTES))  # its content is never used: only the page cache matters
        while (window := self.requests.get()) is not None:
            segments = [
                (self.split.segments_path(shard), *run) for shard, *run in self.find_segment_runs(window).tolist()
            ]
            shards = [(self.split.shard_paths[shard], *run) for shard, *run in self.find_runs(window).tolist()]
            for path, start, stop in segments + shards:
                with suppress(OSError):  # the reader will fail at the same place, and reports the shard's name
                    self._read_run(path, start, stop, chunk)

    def _read_run(self, path: Path, start: int, stop: int, chunk: memoryview) -> None:
        with path.open("rb", buffering=0) as file:
            while start < stop and not self.stopped.is_set():
                num_bytes = os.preadv(file.fileno(), [chunk[: stop - start]], start)
                if not num_bytes:
                    return
                start += num_bytes


def merge_runs(
    shards_B: np.ndarray, offsets_B: np.ndarray, sizes_B: np.ndarray, gap_bytes: int = LARGEST_GAP_BYTES
) -> np.ndarray:
    """Return the fewest byte ranges that contain all B images: int64 [runs, 3], shard, start, stop, in this order.

    Two images belong to one range if they are at most `gap_bytes` apart in the same shard.
    """
    order_B = np.lexsort((offsets_B, shards_B))
    shards_B, starts_B = shards_B[order_B].astype(np.int64), offsets_B[order_B].astype(np.int64)
    stops_B = starts_B + sizes_B[order_B]
    breaks = (np.diff(shards_B) != 0) | (starts_B[1:] - stops_B[:-1] > gap_bytes)
    firsts, lasts = np.r_[0, np.flatnonzero(breaks) + 1], np.r_[np.flatnonzero(breaks), len(shards_B) - 1]
    return np.stack([shards_B[firsts], starts_B[firsts], stops_B[lasts]], axis=1)
