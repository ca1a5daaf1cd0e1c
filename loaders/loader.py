"""The loader: plans -> reader -> backend -> a queue of batches, for one process of the world.

    loader = build_loader(Split("data/imagenet", "train"), TrainTransform(), batch_size=256, world=world)
    for batch in loader: ...

Training is one endless stream whose whole state is one integer, the number of images seen; evaluation is one
pass in the index's order, the last batch padded.
"""

import logging
import math
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, closing, nullcontext
from functools import cache
from itertools import count
from typing import Any

import numpy as np
import torch

from loaders.augment import AugmentConfig
from loaders.backend import BackendSpec, Pixels
from loaders.backends import find_backend
from loaders.batch import Batch, InUse, Ready, World
from loaders.blame import DecodeError
from loaders.checks import check_lowered, check_request, check_state
from loaders.config import LoaderConfig, default_num_threads, share_cores
from loaders.order import Sampling
from loaders.placement import Choice, choose_placement
from loaders.plan import EvalTransform, Images, Plan, TrainTransform, eval_plan, train_plan
from loaders.pump import Pump
from loaders.quarantine import Quarantine
from loaders.readahead import ReadAhead
from loaders.reader import NOTHING, Encoded, Reader
from loaders.stats import Counters, Stats
from loaders.upload import allocate_host, upload
from prep.dataset import Split
from prep.errors import InputError

Transform = TrainTransform | EvalTransform
USUAL_SHARE = 0.999  # of the images, which a decoder's memory is made for
log = logging.getLogger("penstock")


class Loader:
    """Batches of one split for one process. Iterating starts at `position`; build it with `build_loader`."""

    def __init__(
        self,
        split: Split,
        transform: Transform,
        batch_size: int,
        world: World,
        sampling: Sampling,
        config: LoaderConfig | Choice,
    ) -> None:
        self.placement = config if isinstance(config, Choice) else choose_placement(config, world)
        self.config = config = self.placement.config
        check_request(split, transform, sampling)
        self.split, self.transform, self.batch_size = split, transform, batch_size
        self.world, self.sampling = world, sampling
        self.slots = world.share(batch_size)
        self.backend = find_backend(config.backend)
        self.decodes_on_gpu = self.placement.side == "gpu"
        self.augment = transform.augment if isinstance(transform, TrainTransform) else AugmentConfig()
        check_lowered(config.backend, self.backend.lowered(self.decodes_on_gpu), self.augment)
        if self.placement.warning and world.rank == 0:
            log_once(self.placement.warning)
        self.trains = isinstance(transform, TrainTransform)
        outcome = "another image takes its place" if self.trains else "it counts as wrong"
        self.quarantine = Quarantine(split, config.most_damaged, outcome)
        self.widths, self.heights, self.labels = (split.column(name) for name in ("width", "height", "label"))
        self.position = self.planned = 0
        self.counters, self.pump = Counters(), None

    def __len__(self) -> int:
        """Batches in one pass over the split, the last one padded (evaluation) or filled from the next (training)."""
        return math.ceil(len(self.split) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Batches from `position` on; training never ends by itself."""
        in_use = InUse(self.world.device, self.counters)
        position = self.position if self.trains else 0
        with Pump(self._produce(position), self.config.batches_ahead, self.counters) as self.pump, in_use:
            for ready in self.pump:
                started = time.perf_counter()
                batch = ready.take()
                self.position = batch.position + self.batch_size
                self.counters.take_seconds += time.perf_counter() - started
                try:
                    yield batch
                finally:  # the last batch of a stream that is closed here is still in use on a GPU
                    in_use.add(ready)
        if not self.trains:
            self.position = 0

    def plan(self, position: int) -> Plan:
        """This rank's part of the global batch at `position`."""
        images = Images(self.widths, self.heights, self.quarantine.rows)
        if isinstance(self.transform, TrainTransform):
            return train_plan(self.sampling, position, self.slots, images, self.transform)
        slots = self.slots_at(position)
        return eval_plan(position, slots, images, self.transform, len(self.slots) - len(slots))

    def slots_at(self, position: int) -> range:
        """Return this rank's slots of the global batch at `position` that hold images.

        What is left for evaluation's last batch is shared out evenly. A rank is then left without an image only if
        there are fewer images than ranks, and not, as by its usual slots, for any batch that is half empty.
        """
        num_left = len(self.split) - position
        return self.slots if self.trains or num_left >= self.batch_size else self.world.share_evenly(num_left)

    def stats(self) -> Stats:
        """What it has done since it was made, and where it stands."""
        sums = self.counters.sums()
        if self.world.device.type == "cpu":
            sums["wait_seconds"] = sums["queue_seconds"]
        return Stats(
            seconds=time.perf_counter() - self.counters.started,
            queue_depth=self.pump.num_ready if self.pump else 0,
            batches_ahead=max(0, self.planned - self.position) // self.batch_size,
            num_damaged=len(self.quarantine),
            **sums,
        )

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands after the batch last taken, and what it must not meet again."""
        return {**self._identity(), "position": self.position, "damaged": self.quarantine.keys()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, on any number of processes.

        Raises:
            InputError: it is not a loader's state, or belongs to another dataset, seed, order or number of repeats.
        """
        check_state(state)
        theirs = {"repeats": 1, **state}  # states of before there were any
        for name, ours in self._identity().items():
            if theirs[name] != ours:
                raise InputError(
                    f"the saved position is of {name} {theirs[name]}, not of {self.split.folder} with {name} {ours}"
                )
        self.quarantine.add_keys(state["damaged"])
        self.position = state["position"]

    def _identity(self) -> dict[str, Any]:
        """What a position means nothing without."""
        return {"dataset": self.split.digest, **vars(self.sampling)}

    def _produce(self, position: int) -> Generator[Ready, None, None]:
        """Batches from `position` on; what cannot be decoded is quarantined, and the stream taken up where it was."""
        spec = self.spec()
        with torch.cuda.stream(spec.stream) if spec.stream else nullcontext():
            while True:
                try:
                    with closing(self._decode(spec, position)) as pixels:
                        for item in pixels:
                            yield self._make_ready(item, spec)
                            position = item.plan.position + self.batch_size
                    return
                except DecodeError as error:
                    if not error.rows:
                        raise
                    self.quarantine.add(error.rows, str(error))

    def _decode(self, spec: BackendSpec, position: int) -> Generator[Pixels, None, None]:
        if not self.backend.reads:
            backend = self.backend(spec, _ignore, self.counters)
            yield from backend.decode((plan, NOTHING) for plan in self._plans(position))
            return
        with ExitStack() as stack:
            reader = Reader(self.split, spec.num_threads, self.config.batches_ahead, self.counters)
            stack.enter_context(reader)
            plans = self._plans(position)
            if self.trains and self.sampling.order == "blocks":
                plans = stack.enter_context(ReadAhead(self.split, self.sampling, self.world)).follow(plans)
            yield from self.backend(spec, reader.release, self.counters).decode(reader.read(plans))

    def _plans(self, position: int) -> Iterator[Plan]:
        ends = range(position, len(self.split), self.batch_size)
        for start in count(position, self.batch_size) if self.trains else ends:
            self.planned = start + self.batch_size
            yield self.plan(start)

    def spec(self) -> BackendSpec:
        """What its backend is built for; on a GPU with a stream of its own."""
        stream = torch.cuda.Stream(self.world.device) if self.world.device.type == "cuda" else None
        # Sorting a million sizes takes a tenth of a second, and only a GPU's decoder asks for the result.
        width_hint, height_hint = large_image(self.widths, self.heights) if self.decodes_on_gpu else (0, 0)
        return BackendSpec(
            batch_size=len(self.slots),
            size=self.transform.size,
            crops=not self.trains,
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

    def _make_ready(self, item: Pixels, spec: BackendSpec) -> Ready:
        """Return the batch with its labels and masks, on the device."""
        started, plan = time.perf_counter(), item.plan
        labels_B, valid_B, damaged_B = upload_facts(self.labels[plan.rows_B], plan, self.world.device)
        made = None
        if spec.stream is not None:
            made = torch.cuda.Event(enable_timing=True)
            made.record(spec.stream)
        self.counters.copy_seconds += time.perf_counter() - started
        batch = Batch(item.images_BCHW, labels_B, valid_B, damaged_B, plan.position, plan.rows_B)
        return Ready(batch, made)


def upload_facts(labels_B: np.ndarray, plan: Plan, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Send a plan's labels (int64), valid and damaged masks (bool) to the device, all three [B], in one copy."""
    num_images = len(labels_B)
    host = allocate_host((10 * num_images,), torch.uint8, device)  # per image 8 bytes of label, 1 of each mask
    for part, array_B in zip(_split_facts(host), (labels_B, plan.valid_B, plan.damaged_B), strict=True):
        np.copyto(part.numpy(), array_B)
    return _split_facts(upload(host, device))


def _split_facts(facts: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the views of a buffer that `upload_facts` fills."""
    labels, masks = facts[: len(facts) * 8 // 10], facts[len(facts) * 8 // 10 :]
    return labels.view(torch.int64), *masks.view(torch.bool).chunk(2)


def large_image(widths_N: np.ndarray, heights_N: np.ndarray) -> tuple[int, int]:
    """Return width and height of the image that 99.9% of all do not exceed in pixels.

    A GPU's decoder sets memory aside for a batch of such images. ImageNet's largest have 30 megapixels, a hundred and
    fifty times the usual; and the widest one and the highest one, taken apart, make a size that no image has.
    """
    order_N = np.argsort(widths_N.astype(np.int64) * heights_N, kind="stable")
    row = order_N[math.ceil(USUAL_SHARE * len(order_N)) - 1]
    return int(widths_N[row]), int(heights_N[row])


@cache
def log_once(line: str) -> None:
    """Log a warning; the loaders of one process that would say the same say it once."""
    log.warning(line)


def _ignore(_: Encoded) -> None:
    """What a backend that reads nothing gives back."""


def build_loader(
    split: Split,
    transform: Transform,
    batch_size: int,
    world: World | None = None,
    sampling: Sampling | None = None,
    config: LoaderConfig | Choice | None = None,
) -> Loader:
    """Build a loader of `batch_size` images per step over all processes of `world`; the transform says train or eval.

    Args:
        config: a `Choice` is taken as it is: what rank 0 has resolved then holds for all processes.
    """
    return Loader(split, transform, batch_size, world or World(), sampling or Sampling(), config or LoaderConfig())
