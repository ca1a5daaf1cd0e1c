"""Read a split that is in a bucket: from the cache what is there, the rest from S3.

A shard that has its name in the cache is whole and verified (`prep/staging.py`), and nothing else is assumed. An image
whose shard is not there yet is read by one range of the object, into the same buffer, and its SHA-256 is compared with
that of its row. So the batches do not depend on what is in the cache, and the order never does. When all shards are
there, `ThroughReader` reads as `Reader` does.

Without a cache, the order `blocks` is read by long requests: `loaders/windows.py`.
"""

import hashlib
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import numpy as np

from loaders.filler import Filler
from loaders.order import Sampling
from loaders.reader import NOT_OPEN, Ahead, Reader, ShardError, open_files
from loaders.splice_reader import Done, Slots, WholeImages
from loaders.stats import Counters
from loaders.subset import find_whole
from loaders.windows import Run, Windows
from loaders.world import World, log_once
from prep.dataset import Split, parse_samples
from prep.errors import InputError, warn
from prep.remote import Patience, Remote, RemoteError
from prep.staging import RemoteSplit, repair_command

CONNECTIONS = 128  # images read at once: an answer of S3 takes 20 to 60 ms
ATTEMPTS = 3  # to read an image whose bytes do not match
SECONDS_BETWEEN_LOOKS = 1.0  # for shards that have come into the cache
# Dollars for a GET request, S3 Standard in us-east-1, as known in 2026-11 (https://aws.amazon.com/s3/pricing/).
DOLLARS_PER_REQUEST = 0.0004 / 1000


class BucketSplit(Split):
    """A split in a bucket, of which some or all shards are not on this machine. Made by `open_splits`."""

    def __init__(
        self,
        url: str,
        cache: Path | None,
        found: RemoteSplit,
        content: bytes,
        filler: Filler | None = None,
        *,
        warns: bool,
    ) -> None:
        """Take what is known about the split.

        Args:
            url: of the dataset.
            cache: its folder on this machine; None if nothing is kept there.
            found: the split in the bucket.
            content: its sample index.
            filler: fetches the shards into the cache; None if another process does that, or without a cache.
            warns: print a line when S3 does not answer; one process of a machine does.
        """
        self.url, self.has_cache, self.manifest = url, cache is not None, found.manifest
        self.filler, self.warns = filler, warns
        self.folder = Path(cache or url, found.name)  # without a cache it does not exist, and only its name is used
        self.samples = parse_samples(content, found.manifest, self.folder)

    @property
    def place(self) -> str:
        return f"{self.url}/{self.folder.name}"

    def name_shard(self, shard: int) -> str:
        return f"{self.place}/{self.manifest.shards[shard].name}"

    def fill(self, shards_N: np.ndarray) -> None:
        """Start to fetch the shards into the cache, if that is this process's task and it has not begun.

        Args:
            shards_N: of each image, in the order in which they will be read.
        """
        if self.filler is not None and not self.filler.has_begun:
            shards, firsts = np.unique(shards_N, return_index=True)
            names = [self.manifest.shards[shard].name for shard in shards[np.argsort(firsts)]]
            self.filler.start(f"{self.folder.name}/{name}" for name in names)


def find_bucket_split(split: Split) -> BucketSplit | None:
    """Return the split in a bucket that a split is, or is a part of; None for one in a folder."""
    whole = find_whole(split)
    return whole if isinstance(whole, BucketSplit) else None


def open_reader(
    split: Split, num_threads: int, batches_ahead: int, counters: Counters, whole: WholeImages | None = None
) -> Reader:
    """Return the reader of a split: of its folder alone, or through the cache of its bucket.

    Args:
        whole: see `Reader`.
    """
    kind = ThroughReader if find_bucket_split(split) else Reader
    return kind(split, num_threads, batches_ahead, counters, whole)


class ThroughReader(Reader):
    """Reads images from the shards in the cache, and the others from the bucket. Use as a context manager."""

    def __init__(
        self, split: Split, num_threads: int, batches_ahead: int, counters: Counters, whole: WholeImages | None = None
    ) -> None:
        bucket = find_bucket_split(split)
        assert bucket is not None
        self.bucket = bucket

        # Its own patience: closing this reader ends the waiting of its own threads alone. The index came from S3.
        self.patience = Patience(report=warn if bucket.warns else _say_nothing)
        self.patience.was_reached = True
        self.remote = Remote(bucket.url, self.patience)
        self.connections = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="penstock-remote")

        # What is in the cache. Only the thread that reads plans changes it.
        self.has_cache, self.next_look = bucket.has_cache, 0.0
        self.is_absent_S = np.ones(len(bucket.manifest.shards), bool)
        self.windows: Windows | None = None
        counters.cached_share = 0.0
        super().__init__(split, num_threads, batches_ahead, counters, whole)
        try:
            self._look_for_shards()
        except InputError:
            self.__exit__(None, None, None)  # close what was opened
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.interrupt()
        self.connections.shutdown(wait=False, cancel_futures=True)
        super().__exit__(kind, error, trace)

    def read_ahead(self, sampling: Sampling, batch_size: int, world: World) -> Ahead:
        if self.has_cache:
            return super().read_ahead(sampling, batch_size, world)  # of the shards that are there
        slots = world.share(batch_size)
        self.windows = Windows(self.split, sampling, batch_size, slots, self.remote, self.connections)
        return self.windows

    def interrupt(self) -> None:
        self.patience.stopped.set()

    def describe_wait(self) -> str:
        return self.patience.describe()

    def _open_shards(self) -> list[int]:
        return [NOT_OPEN] * len(self.is_absent_S)

    def _look_for_shards(self) -> None:
        """Open the shards that have come into the cache since the last look, at most one look a second."""
        if not self.has_cache or time.monotonic() < self.next_look:
            return
        shards, names = self.bucket.manifest.shards, set(os.listdir(self.bucket.folder))
        for shard in np.flatnonzero(self.is_absent_S).tolist():
            # The file with its segments comes before the shard. If it was lost, both are fetched again.
            is_here = shards[shard].name in names
            if self.splicer is not None:
                has_segments = self.bucket.segments_path(shard).name in names
                is_here = is_here and has_segments
                if has_segments:
                    self.splicer.open_shard(shard)
            if is_here:
                self._open_shard(shard)
        self.next_look = time.monotonic() + SECONDS_BETWEEN_LOOKS

        # Say how much is there. When nothing is missing any more, the threads for S3 have nothing to do.
        sizes_S = np.array([each.size_bytes for each in shards])
        self.counters.cached_share = float(1 - sizes_S[self.is_absent_S].sum() / sizes_S.sum())
        if not self.is_absent_S.any():
            self.connections.shutdown(wait=False)

    def _open_shard(self, shard: int) -> None:
        (descriptor,) = open_files([self.bucket.folder / self.bucket.manifest.shards[shard].name])
        if os.fstat(descriptor).st_size != self.bucket.manifest.shards[shard].size_bytes:
            os.close(descriptor)  # it was cut, and will be fetched again
            return
        self.descriptors[shard], self.is_absent_S[shard] = descriptor, False

    def _submit(self, slots: Slots, chosen_C: np.ndarray) -> list[Future[Done]]:
        # The usual case: all shards are there.
        if not self.is_absent_S.any():
            return super()._submit(slots, chosen_C)

        # Divide the batch: what is in the cache, and what is not.
        self._look_for_shards()
        rows_C = slots.plan.rows_B[chosen_C]
        is_remote_C = self.is_absent_S[self.shards[rows_C]]
        local = super()._submit(slots, chosen_C[~is_remote_C])
        rows = rows_C[is_remote_C]
        self.counters.remote_images += len(rows)
        self.counters.remote_bytes += int(self.sizes[rows].sum())
        runs = [self.windows.find_run(row) if self.windows else None for row in rows.tolist()]
        digests = self.split.sha256_of_rows(rows)
        jobs = zip(chosen_C[is_remote_C].tolist(), digests, runs, strict=True)
        return local + [self.connections.submit(self._read_remote, slots, *job) for job in jobs]

    def _read_remote(self, slots: Slots, i: int, sha256: bytes, run: Run | None) -> Done:
        """Read an image of a batch from the bucket. Splice it in memory: only complete bytes can be verified."""
        image = slots.images[i]
        self._fetch(int(slots.plan.rows_B[i]), image, sha256, run)
        if self.splicer is None or slots.spans is None or not slots.spans.is_spliced_B[i]:
            return Done(len(image), [])
        content = image.copy()

        def copy(_: int, offset: int, target: memoryview) -> None:
            target[:] = content.data[offset : offset + len(target)]

        done = self.splicer.read_part(slots, np.array([i]), copy)
        if done.contradictory:
            image[:], slots.images[i] = content, image
        return Done(len(image), done.contradictory)

    def _fetch(self, row: int, image: np.ndarray, sha256: bytes, run: Run | None) -> None:
        """Fill `image` with a row's bytes from the bucket, or from the run that holds them.

        Raises:
            ShardError: the object cannot be read, or has other bytes there.
        """
        shard, offset = int(self.shards[row]), int(self.offsets[row])
        if run is not None:
            with suppress(RemoteError):  # below, the error names the image
                image[:] = run.content.result()[offset - run.start :][: len(image)]
                if hashlib.sha256(image.data).digest() == sha256:
                    return
        name = f"{self.bucket.folder.name}/{self.bucket.manifest.shards[shard].name}"
        for _ in range(ATTEMPTS):
            try:
                self.remote.read_range(name, offset, offset + len(image), image)
            except RemoteError as error:
                raise ShardError(f"image {self._name_image(row)}: {error}") from error
            if hashlib.sha256(image.data).digest() == sha256:
                return
        raise ShardError(
            f"{self.bucket.name_shard(shard)} has wrong bytes in its image {self._name_image(row)}, "
            f"read {ATTEMPTS} times: {repair_command(self.remote)}"
        )

    def _name_image(self, row: int) -> str:
        return self.split.keys(np.array([row]))[0]


def warn_of_requests(num_images: int, sampling: Sampling, world: World) -> None:
    """Say once what an epoch without a cache costs, if each image is one request."""
    if sampling.order == "blocks" and world.size == 1:
        return
    advice = "" if sampling.order == "blocks" else ", or the order blocks, in which one process makes few requests"
    log_once(
        f"without a cache each of {num_images:,} images of an epoch is one request to S3, together "
        f"{num_images * DOLLARS_PER_REQUEST:.2f} dollars (0.0004 dollars per 1,000 in us-east-1, 2026-11): "
        f"give a cache{advice}"
    )


def _say_nothing(_: str) -> None:
    pass
