"""The loader of one process: plan -> read -> decode -> queue -> batch.

    loader = build_loader(Split("data/imagenet", "train"), TrainTransform(), batch_size=256, world=world)
    for batch in loader: ...

Training is one endless stream. Its state is the number of images seen, and the images that cannot be decoded.
Evaluation is one pass in the index's order, with the last batch padded.
"""

import math
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, closing, nullcontext
from itertools import count
from typing import Any

import numpy as np
import torch

from loaders.augment import AugmentConfig
from loaders.backends import BackendSpec, Pixels, find_backend
from loaders.batch import Batch, InUse, Ready, upload_facts
from loaders.compiled import splicing_pays
from loaders.config import (
    LoaderConfig,
    check_ops_supported,
    check_request,
    check_state,
    default_num_threads,
    share_cores,
)
from loaders.order import Sampling, locate
from loaders.placement import Choice, choose_placement
from loaders.plan import EvalTransform, Images, Plan, TrainTransform, eval_plan, train_plan
from loaders.prefetch import Prefetcher
from loaders.quarantine import DecodeError, Quarantine
from loaders.reader import EMPTY, Encoded, Reader
from loaders.splice_reader import WholeImages
from loaders.stats import Counters, Stats
from loaders.through import find_bucket_split, open_reader, warn_of_requests
from loaders.world import World, log_once
from prep.dataset import Split
from prep.errors import InputError

Transform = TrainTransform | EvalTransform
SIZE_HINT_SHARE = 0.999  # share of images that are at most as large as `find_size_hint` returns


class Loader:
    """The batches of one split for one process. Build it with `build_loader`.

    Training starts at `position`; evaluation always starts at 0.

        Step (1) plan     `plan(position)` decides the rows, crop windows, flips and operations of this rank's images.
           |              Pure numpy; no file is touched. loaders/plan.py
           |  Plan
        Step (2) read     `Reader` reads the encoded images into pooled buffers, `batches_ahead` batches ahead, in
           |              its own `num_threads` threads. loaders/reader.py
           |  (Plan, Encoded)
        Step (3) decode   The backend decodes the windows, resizes, crops, flips and augments them, in its own threads
           |              or on a GPU. loaders/reference.py, loaders/dali.py
           |  Pixels
        Step (4) complete `_complete` adds labels and masks, and records a CUDA event after the work on the batch.
           |  Ready
        Step (5) queue    `Prefetcher` holds up to `batches_ahead` batches. loaders/prefetch.py
           |  Ready
        Step (6) consume  `__iter__` makes the trainer's CUDA stream wait for the event, and moves `position` past
           |              the batch. On a GPU `InUse` keeps the batch until the GPU has finished the trainer's
           |              work on it. loaders/batch.py
           v  Batch

    Steps (2), (3) and (5) each work up to `batches_ahead` batches ahead of the step after them. If the CPU decodes, one
    more batch is resized in step (3) in the background.

    Steps (1) to (4) are generators chained in `_produce`, which runs in the prefetcher's thread; each step requests
    the next item of the step before it. Step (6) runs in the consumer's thread. With a GPU, the producer
    queues the GPU's work on the loader's own CUDA stream and does not wait for it. The consumer's thread waits for the
    GPU only in `InUse`, if more than MAX_IN_USE batches are in use.

    In training from a split with segments, step (2) reads only those that the windows need, and passes smaller JPEGs
    and the windows within them to step (3). loaders/splice_reader.py

    An image that cannot be decoded ends step (3) with a DecodeError. `_produce` puts it into the quarantine (if it was
    spliced, it is first tried as a complete image) and starts steps (1) to (3) again, after the last batch that it
    yielded. Batches in the queue stay valid. Training then shows another image in its place; evaluation shows a black
    one, which counts as wrong.

    The saved state is `position` and the quarantine. `position` is the end of the last batch given to the consumer; it
    is set before the consumer uses the batch.
    """

    def __init__(
        self,
        split: Split,
        transform: Transform,
        batch_size: int,
        world: World,
        sampling: Sampling,
        config: LoaderConfig | Choice,
    ) -> None:
        # Resolve the settings for this machine, and check everything that was passed.
        self.placement = config if isinstance(config, Choice) else choose_placement(config, world)
        self.config = config = self.placement.config
        check_request(split, transform, sampling)
        self.split, self.transform, self.batch_size = split, transform, batch_size
        self.world, self.sampling = world, sampling
        self.slots = world.share(batch_size)  # this rank's indices within a global batch

        # Find the backend, and check that it supports the augmentation.
        self.backend = find_backend(config.backend)
        self.decodes_on_gpu = self.placement.side == "gpu"
        self.augment = transform.augment if isinstance(transform, TrainTransform) else AugmentConfig()
        check_ops_supported(config.backend, self.backend.supported_ops(self.decodes_on_gpu), self.augment)
        if self.placement.warning and world.rank == 0:
            log_once(self.placement.warning)

        # The state: where the stream is, and which images are damaged.
        self.trains = isinstance(transform, TrainTransform)
        outcome = "another image takes its place" if self.trains else "it counts as wrong"
        self.quarantine = Quarantine(split, config.most_damaged, outcome)
        # The images that are not spliced. Evaluation needs complete images: nothing is spliced.
        splices = self.trains and config.splice == "auto" and split.manifest.has_segments and self.backend.reads
        self.whole = WholeImages() if splices and splicing_pays(self.decodes_on_gpu, world) else None
        self.retried: set[int] = set()  # rows that failed to decode spliced, and are now decoded whole
        self.widths, self.heights, self.labels = (split.column(name) for name in ("width", "height", "label"))
        self.position = self.planned = 0
        self.counters, self.prefetcher = Counters(), None
        self.reader: Reader | None = None

    def __len__(self) -> int:
        """Return the batches per pass; the last one is padded (evaluation) or filled from the next pass (training)."""
        return math.ceil(len(self.split) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches: training from `position` on, without end; evaluation from 0 to the end of the split."""
        in_use = InUse(self.world.device, self.counters)
        position = self.position if self.trains else 0
        self._fill_cache(position)
        prefetcher = Prefetcher(self._produce(position), self.config.batches_ahead, self.counters, self._interrupt)
        with prefetcher as self.prefetcher, in_use:
            for ready in self.prefetcher:
                started = time.perf_counter()
                batch = ready.use_on_current_stream()
                self.position = batch.position + self.batch_size
                self.counters.take_seconds += time.perf_counter() - started
                try:
                    yield batch
                finally:  # also if the consumer closes the stream here: the GPU may still use this batch
                    in_use.add(ready)
        if not self.trains:
            self.position = 0

    # Step (1): plan.

    def plan(self, position: int) -> Plan:
        """Return the plan of this rank's part of the global batch at `position`."""
        images = Images(self.widths, self.heights, self.quarantine.rows)
        if isinstance(self.transform, TrainTransform):
            return train_plan(self.sampling, position, self.slots, images, self.transform)
        slots = self.slots_at(position)
        return eval_plan(position, slots, images, self.transform, len(self.slots) - len(slots))

    def slots_at(self, position: int) -> range:
        """Return this rank's slots of the global batch at `position` that hold images.

        The last batch of evaluation may be smaller. Its images are divided evenly, so every rank gets one if there are
        enough. The usual slots would leave the last ranks empty if, for example, the batch is half full.
        """
        num_left = len(self.split) - position
        return self.slots if self.trains or num_left >= self.batch_size else self.world.share_evenly(num_left)

    def _plans(self, position: int) -> Iterator[Plan]:
        """Yield the plans from `position` on: endlessly for training, to the end of the split for evaluation."""
        one_pass = range(position, len(self.split), self.batch_size)
        for start in count(position, self.batch_size) if self.trains else one_pass:
            self.planned = start + self.batch_size
            yield self.plan(start)

    # Steps (2) to (4): read, decode, complete. They run in the prefetcher's thread.

    def _produce(self, position: int) -> Generator[Ready, None, None]:
        """Yield batches from `position` on. After damage, continue at the first batch that was not yielded."""
        spec = self.make_spec()
        with torch.cuda.stream(spec.stream) if spec.stream else nullcontext():
            while True:
                try:
                    with closing(self._decode(spec, position)) as pixels:
                        for item in pixels:
                            self._warn_of_segments(item.plan)
                            yield self._complete(item, spec)
                            position = item.plan.position + self.batch_size
                    return
                except DecodeError as error:
                    # A backend may be unusable after an error (DALI's pipeline is). Start all steps again; the new
                    # plans avoid these rows.
                    if not error.rows:
                        raise
                    if rows := self._find_blamed(error.rows):
                        self.quarantine.add(rows, str(error))

    def _decode(self, spec: BackendSpec, position: int) -> Generator[Pixels, None, None]:
        """Yield the pixels of the plans from `position` on."""
        # A backend that reads no files, such as synthetic, needs the plans alone.
        if not self.backend.reads:
            backend = self.backend(spec, _ignore, self.counters)
            yield from backend.decode((plan, EMPTY) for plan in self._plans(position))
            return

        # Chain the steps: plans -> (read ahead ->) read -> decode. The stack closes threads and files in the end.
        with ExitStack() as stack:
            self.reader = reader = self.open_reader(spec.num_threads, self.config.batches_ahead, self.counters)
            stack.enter_context(reader)
            stack.callback(setattr, self, "reader", None)  # its buffers are free then
            plans = self._plans(position)
            if self.trains and self.sampling.order == "blocks":
                # It passes the plans through, and starts to read the window of each and the next window.
                plans = stack.enter_context(reader.read_ahead(self.sampling, self.batch_size, self.world)).follow(plans)
            yield from self.backend(spec, reader.release, self.counters).decode(reader.read(plans))

    def _find_blamed(self, rows: list[int]) -> list[int]:
        """Return those of some rows that failed to decode as complete images; the others are tried so from now on."""
        if self.whole is None:
            return rows
        tried = self.whole.add(rows)
        self.retried |= set(tried)
        blamed = [row for row in rows if row not in tried]
        self.retried -= set(blamed)
        return blamed

    def _warn_of_segments(self, plan: Plan) -> None:
        """Warn of images in a decoded batch that had failed to decode spliced."""
        if self.whole is None or not self.retried:
            return
        for row in sorted(self.retried & set(plan.rows_B.tolist())):
            self.whole.warn(self.split, row, "lists segments that the decoder refused, of the image")
            self.retried.remove(row)

    def open_reader(self, num_threads: int, batches_ahead: int, counters: Counters) -> Reader:
        """Return a reader of the split, which splices images if this loader does. Use it as a context manager."""
        return open_reader(self.split, num_threads, batches_ahead, counters, self.whole)

    def _complete(self, item: Pixels, spec: BackendSpec) -> Ready:
        """Return the batch with its labels and masks, on the device."""
        started, plan = time.perf_counter(), item.plan
        labels_B, valid_B, damaged_B = upload_facts(self.labels[plan.rows_B], plan, self.world.device)
        ready_event = None
        if spec.stream is not None:
            ready_event = torch.cuda.Event(enable_timing=True)
            ready_event.record(spec.stream)
        self.counters.copy_seconds += time.perf_counter() - started
        batch = Batch(item.images_BCHW, labels_B, valid_B, damaged_B, plan.position, plan.rows_B)
        return Ready(batch, ready_event)

    def make_spec(self) -> BackendSpec:
        """Return the options for the backend; on a GPU with a new CUDA stream."""
        stream = torch.cuda.Stream(self.world.device) if self.world.device.type == "cuda" else None
        # Sorting a million sizes takes 0.1 s, and only a GPU's decoder needs the result.
        width_hint, height_hint = find_size_hint(self.widths, self.heights) if self.decodes_on_gpu else (0, 0)
        return BackendSpec(
            batch_size=len(self.slots),
            size=self.transform.size,
            crops_after_resize=not self.trains,
            num_layers=self.augment.num_layers,
            device=self.world.device,
            decodes_on_gpu=self.decodes_on_gpu,
            stream=stream,
            num_threads=self.config.num_threads or default_num_threads(self.world),
            cores=share_cores(self.world) if self.config.pin_threads else (),
            batches_ahead=self.config.batches_ahead,
            roi=self.config.decode == "roi",
            hw_decoder_load=self.config.hw_decoder_load,
            width_hint=width_hint,
            height_hint=height_hint,
        )

    # A split in a bucket (loaders/through.py).

    def _fill_cache(self, position: int) -> None:
        """Start to fetch the shards into the cache, in the order in which this epoch needs them."""
        bucket = find_bucket_split(self.split)
        if bucket is None or not self.backend.reads:
            return
        if self.trains and not bucket.has_cache and self.world.rank == 0:
            warn_of_requests(len(self.split), self.sampling, self.world)
        num_images = len(self.split)
        rows_N = np.arange(num_images)
        if self.trains:
            end = (position // num_images + 1) * num_images
            _, rows_N = locate(self.sampling, np.arange(position, end), num_images)
        bucket.fill(self.split.column("shard")[rows_N])

    def _interrupt(self) -> None:
        """End the reader's waiting for a bucket that does not answer."""
        reader = self.reader  # another thread may remove it
        if reader is not None:
            reader.interrupt()

    def describe_wait(self) -> str:
        """Return what the loader waits for and since when, if a bucket does not answer; else an empty text."""
        reader = self.reader  # another thread may remove it
        return reader.describe_wait() if reader is not None else ""

    # The state and the statistics.

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch consumed, and the damaged images to avoid."""
        return {**self._identity(), "position": self.position, "damaged": self.quarantine.keys()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was saved, on any number of processes.

        Raises:
            InputError: it is not a loader's state, or it belongs to another dataset, seed, order or number of repeats.
        """
        check_state(state)
        saved = {"repeats": 1, **state}  # older states have no repeats
        for name, ours in self._identity().items():
            if saved[name] != ours:
                raise InputError(
                    f"the saved position belongs to {name} {saved[name]}, but {self.split.place} is read with "
                    f"{name} {ours}"
                )
        self.quarantine.add_keys(state["damaged"])
        self.position = state["position"]

    def _identity(self) -> dict[str, Any]:
        """Return the fields that a saved position depends on."""
        return {"dataset": self.split.digest, **vars(self.sampling)}

    def stats(self) -> Stats:
        """Return the sums since the loader was made, and the current lengths of its queues."""
        sums = self.counters.sums()
        if self.world.device.type == "cpu":
            # On the CPU, waiting for the queue is the only waiting.
            sums["wait_seconds"] = sums["queue_seconds"]
        return Stats(
            seconds=time.perf_counter() - self.counters.started,
            queue_depth=self.prefetcher.num_ready if self.prefetcher else 0,
            batches_ahead=max(0, self.planned - self.position) // self.batch_size,
            num_damaged=len(self.quarantine),
            **sums,
        )


def find_size_hint(widths_N: np.ndarray, heights_N: np.ndarray) -> tuple[int, int]:
    """Return width and height of the image at the 99.9th percentile of size in pixels.

    A GPU's decoder allocates memory in advance for a batch of such images. The maximum would be too much: ImageNet's
    largest images have 30 megapixels, 150 times the usual size. Separate maxima of width and height would give a size
    that no image has.
    """
    order_N = np.argsort(widths_N.astype(np.int64) * heights_N, kind="stable")
    row = order_N[math.ceil(SIZE_HINT_SHARE * len(order_N)) - 1]
    return int(widths_N[row]), int(heights_N[row])


def _ignore(_: Encoded) -> None:
    """Release nothing: for backends that read no files."""


def build_loader(
    split: Split,
    transform: Transform,
    batch_size: int,
    world: World | None = None,
    sampling: Sampling | None = None,
    config: LoaderConfig | Choice | None = None,
) -> Loader:
    """Build a loader of `batch_size` images per step over all processes of `world`.

    Args:
        transform: a TrainTransform for an endless training stream, an EvalTransform for passes over the split.
        world: this process's rank and device; by default a single process on the CPU.
        sampling: the order of training and its seed.
        config: how batches are produced. A `Choice` holds settings that are already resolved, for example by
            rank 0 for all processes; it is used unchanged.
    """
    return Loader(split, transform, batch_size, world or World(), sampling or Sampling(), config or LoaderConfig())
