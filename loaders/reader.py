"""The reader: encoded bytes of planned batches, some batches ahead, by `preadv` into pooled buffers.

The plan is known ahead, so a slow disk only empties a queue; a shard that shrinks is a short read with a name.
"""

import io
import os
import resource
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image

from loaders.plan import DAMAGED_SIDE, Plan
from loaders.stats import Counters
from prep.dataset import Split
from prep.errors import InputError, RankError

SPARE_DESCRIPTORS = 256  # for everything else that this process opens


@dataclass(frozen=True)
class Encoded:
    """The encoded images of one batch: uint8 views into one pooled buffer, valid until it is released."""

    images: list[np.ndarray]
    buffer: np.ndarray


class ShardError(RankError):
    """A shard that one process finds unreadable, and the others may not."""


NOTHING = Encoded([], np.empty(0, np.uint8))


class Reader:
    """Reads the images of plans from a split's shards. Use as a context manager: it holds threads and files."""

    def __init__(self, split: Split, num_threads: int, batches_ahead: int, counters: Counters) -> None:
        self.split, self.counters = split, counters
        self.num_threads, self.batches_ahead = num_threads, batches_ahead
        self.shards, self.offsets, self.sizes = (split.column(name) for name in ("shard", "offset", "size"))
        _allow_open_files(len(split.shard_paths))
        self.descriptors = _open(split.shard_paths)
        self.threads = ThreadPoolExecutor(num_threads, thread_name_prefix="penstock-read")
        self.free: list[np.ndarray] = []

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.threads.shutdown(wait=True, cancel_futures=True)
        for descriptor in self.descriptors:
            os.close(descriptor)

    def read(self, plans: Iterable[Plan]) -> Iterator[tuple[Plan, Encoded]]:
        """Each plan with its encoded images, in order. The consumer gives every `Encoded` back to `release`."""
        pending: deque[tuple[Plan, Encoded, list[Future[None]]]] = deque()
        for plan in plans:
            pending.append(self._start(plan))
            if len(pending) > self.batches_ahead:
                yield self._finish(*pending.popleft())
        while pending:
            yield self._finish(*pending.popleft())

    def release(self, encoded: Encoded) -> None:
        """Give a batch's buffer back for another batch."""
        self.free.append(encoded.buffer)

    def _start(self, plan: Plan) -> tuple[Plan, Encoded, list[Future[None]]]:
        rows_B = plan.rows_B
        sizes_B = np.where(plan.damaged_B, 0, self.sizes[rows_B])
        ends_B = np.cumsum(sizes_B)
        buffer = self._take_buffer(int(ends_B[-1]))
        images = [buffer[end - size : end] for end, size in zip(ends_B, sizes_B, strict=True)]
        for i in np.flatnonzero(plan.damaged_B):
            images[i] = black_jpeg()
        in_disk_order = np.lexsort((self.offsets[rows_B], self.shards[rows_B]))
        parts = np.array_split(in_disk_order[sizes_B[in_disk_order] > 0], self.num_threads)
        futures = [self.threads.submit(self._read_some, rows_B[part], [images[i] for i in part]) for part in parts]
        return plan, Encoded(images, buffer), futures

    def _take_buffer(self, size_bytes: int) -> np.ndarray:
        """A free buffer that is large enough, or a new one with some room to be so for later batches too."""
        for i, buffer in enumerate(self.free):
            if len(buffer) >= size_bytes:
                return self.free.pop(i)
        if self.free:
            self.free.pop()
        return np.empty(size_bytes + size_bytes // 4, np.uint8)

    def _finish(self, plan: Plan, encoded: Encoded, futures: list[Future[None]]) -> tuple[Plan, Encoded]:
        started = time.perf_counter()
        for future in futures:
            future.result()
        self.counters.read_seconds += time.perf_counter() - started
        self.counters.read_bytes += sum(image.nbytes for image in encoded.images)
        return plan, encoded

    def _read_some(self, rows: np.ndarray, images: list[np.ndarray]) -> None:
        for row, image in zip(rows, images, strict=True):
            self._read_image(int(row), image)

    def _read_image(self, row: int, image: np.ndarray) -> None:
        done, shard = 0, int(self.shards[row])
        while done < len(image):
            try:
                num_bytes = os.preadv(self.descriptors[shard], [image.data[done:]], int(self.offsets[row]) + done)
            except OSError as error:
                raise self._fault(row, f"cannot be read ({error.strerror}) at") from error
            if not num_bytes:
                raise self._fault(row, "ends before")
            done += num_bytes

    def _fault(self, row: int, what: str) -> ShardError:
        path, key = self.split.shard_paths[int(self.shards[row])], self.split.keys(np.array([row]))[0]
        return ShardError(
            f"{path} {what} its image {key}: `python prep/verify.py {self.split.folder}` says how to mend it"
        )


@cache
def black_jpeg() -> np.ndarray:
    """What is decoded instead of a damaged image that is counted as wrong: uint8, encoded."""
    encoded = io.BytesIO()
    Image.new("RGB", (DAMAGED_SIDE, DAMAGED_SIDE)).save(encoded, "JPEG")
    return np.frombuffer(encoded.getvalue(), np.uint8)


def _open(paths: list[Path]) -> list[int]:
    descriptors: list[int] = []
    try:
        for path in paths:
            descriptors.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        for descriptor in descriptors:
            os.close(descriptor)
        raise InputError(
            f"{error.filename} cannot be opened ({error.strerror}): "
            f"`python prep/verify.py {paths[0].parent}` says how to mend it"
        ) from error
    return descriptors


def _allow_open_files(num_files: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = num_files + SPARE_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and wanted > soft:
        if hard != resource.RLIM_INFINITY and wanted > hard:
            raise InputError(f"{num_files} shards need {wanted} open files, the limit is {hard}: raise `ulimit -Hn`")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
