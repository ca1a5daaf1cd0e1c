"""The loader: plans -> reader -> backend -> a queue of batches, for one process of the world.

    loader = build_loader(Split("data/imagenet", "train"), TrainTransform(), batch_size=256, world=world)
    for batch in loader: ...

Training is one endless stream whose whole state is one integer, the number of images seen; evaluation is one
pass in the index's order, the last batch padded.
"""

import math
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, nullcontext
from itertools import count
from typing import Any

import numpy as np
import torch

from loaders.augment import AugmentConfig
from loaders.backend import BackendSpec, Pixels
from loaders.backends import find_backend
from loaders.batch import Batch, InUse, Ready, World
from loaders.blame import DecodeError
from loaders.checks import check_lowered, check_request
from loaders.config import LoaderConfig, default_num_threads, share_cores
from loaders.order import Sampling
from loaders.plan import EvalTransform, Images, Plan, TrainTransform, eval_plan, train_plan
from loaders.pump import Pump
from loaders.quarantine import Quarantine
from loaders.readahead import ReadAhead
from loaders.reader import NOTHING, Encoded, Reader
from loaders.stats import Counters, Stats
from loaders.tuned import settle
from prep.dataset import InputError, Split

Transform = TrainTransform | EvalTransform


class Loader:
    """Batches of one split for one process. Iterating starts at `position`; build it with `build_loader`."""

    def __init__(
        self,
        split: Split,
        transform: Transform,
        batch_size: int,
        world: World,
        sampling: Sampling,
        config: LoaderConfig,
    ) -> None:
        config = settle(config, world)
        config.check()
        check_request(split, transform, sampling)
        self.split, self.transform, self.batch_size = split, transform, batch_size
        self.world, self.sampling, self.config = world, sampling, config
        self.slots = world.share(batch_size)
        self.backend = find_backend(config.backend)
        self.augment = transform.augment if isinstance(transform, TrainTransform) else AugmentConfig()
        check_lowered(config.backend, self.backend.lowered(world.device), self.augment)
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
        in_use = InUse(self.world.device)
        position = self.position if self.trains else 0
        with Pump(self._produce(position), self.config.batches_ahead, self.counters) as self.pump, in_use:
            for ready in self.pump:
                started = time.perf_counter()
                batch = ready.take()
                self.position = batch.position + self.batch_size
                self.counters.take_seconds += time.perf_counter() - started
                yield batch
                in_use.add(batch)
        if not self.trains:
            self.position = 0

    def plan(self, position: int) -> Plan:
        """This rank's part of the global batch at `position`."""
        images = Images(self.widths, self.heights, self.quarantine.rows)
        if isinstance(self.transform, TrainTransform):
            return train_plan(self.sampling, position, self.slots, images, self.transform)
        return eval_plan(position, self.slots, images, self.transform)

    def stats(self) -> Stats:
        """What it has done since it was made, and where it stands."""
        return Stats(
            seconds=time.perf_counter() - self.counters.started,
            queue_depth=self.pump.num_ready if self.pump else 0,
            batches_ahead=max(0, self.planned - self.position) // self.batch_size,
            num_damaged=len(self.quarantine),
            **self.counters.sums(),
        )

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands after the batch last taken, and what it must not meet again."""
        return {**self._identity(), "position": self.position, "damaged": self.quarantine.keys()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, on any number of processes.

        Raises:
            InputError: it belongs to another dataset, seed, order or number of repeats.
        """
        theirs = {"repeats": 1, **state}  # states of before there were any
        for name, ours in self._identity().items():
            if theirs[name] != ours:
                raise InputError(
                    f"the saved position is of {name} {theirs[name]}, not of {self.split.folder} with {name} {ours}"
                )
        self.quarantine.add_keys(state["damaged"])
        self.position = int(state["position"])

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
        on_gpu = self.world.device.type == "cuda"
        return BackendSpec(
            batch_size=len(self.slots),
            size=self.transform.size,
            crops=not self.trains,
            num_layers=self.augment.num_layers,
            device=self.world.device,
            stream=torch.cuda.Stream(self.world.device) if on_gpu else None,
            num_threads=self.config.num_threads or default_num_threads(self.world),
            cores=share_cores(self.world) if self.config.pin_threads else (),
            batches_ahead=self.config.batches_ahead,
            roi=self.config.decode == "roi",
            hw_decoder_load=self.config.hw_decoder_load,
            max_width=int(self.widths.max()),
            max_height=int(self.heights.max()),
        )

    def _make_ready(self, item: Pixels, spec: BackendSpec) -> Ready:
        """The batch with its labels and masks, on the device."""
        started, plan = time.perf_counter(), item.plan
        labels_B, valid_B, damaged_B = (
            torch.from_numpy(array_B).to(self.world.device, non_blocking=True)
            for array_B in (self.labels[plan.rows_B].astype(np.int64), plan.valid_B, plan.damaged_B)
        )
        made = None
        if spec.stream is not None:
            made = torch.cuda.Event()
            made.record(spec.stream)
        self.counters.copy_seconds += time.perf_counter() - started
        batch = Batch(item.images_BCHW, labels_B, valid_B, damaged_B, plan.position, plan.rows_B)
        return Ready(batch, made)


def _ignore(_: Encoded) -> None:
    """What a backend that reads nothing gives back."""


def build_loader(
    split: Split,
    transform: Transform,
    batch_size: int,
    world: World | None = None,
    sampling: Sampling | None = None,
    config: LoaderConfig | None = None,
) -> Loader:
    """A loader of `batch_size` images a step over all processes of `world`; the transform says train or eval."""
    return Loader(split, transform, batch_size, world or World(), sampling or Sampling(), config or LoaderConfig())
