"""The loader: plans -> reader -> backend -> a queue of batches, for one process of the world.

    loader = build_loader(Split("data/imagenet", "train"), TrainTransform(), batch_size=256, world=world)
    for batch in loader: ...

Training is one endless stream whose whole state is one integer, the number of images seen; evaluation is one
pass in the index's order, the last batch padded.
"""

import math
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch

from loaders.backend import BackendSpec, Pixels
from loaders.backends import find_backend
from loaders.batch import Batch, InUse, World
from loaders.blame import DecodeError
from loaders.plan import EvalTransform, Plan, TrainTransform, eval_plan, train_plan
from loaders.pump import Pump
from loaders.reader import NOTHING, Encoded, Reader
from loaders.stats import Stats
from prep.dataset import InputError, Split

MOST_THREADS = 16


@dataclass(frozen=True)
class LoaderConfig:
    """How batches are produced; nothing here changes which pixels they hold."""

    backend: str = "dali"  # dali, reference (Pillow) or synthetic (one batch for ever)
    num_threads: int = 0  # decoding threads a process; 0: an equal share of the cores, at most 16
    batches_ahead: int = 2  # prepared before they are asked for, at each of the stages read, decode and queue
    hw_decoder_load: float = 0.65  # share of the JPEGs for the GPU's own decoder, where it has one


class Loader:
    """Batches of one split for one process. Iterating starts at `position`; build it with `build_loader`."""

    def __init__(
        self,
        split: Split,
        transform: TrainTransform | EvalTransform,
        batch_size: int,
        world: World,
        seed: int,
        config: LoaderConfig,
    ) -> None:
        _check(transform, seed, config)
        self.split, self.transform, self.batch_size = split, transform, batch_size
        self.world, self.seed, self.config = world, seed, config
        self.slots = world.share(batch_size)
        self.stats = Stats()
        self.position = 0
        self.widths, self.heights, self.labels = (split.column(name) for name in ("width", "height", "label"))

    def __len__(self) -> int:
        """Batches in one pass over the split, the last one padded (evaluation) or filled from the next (training)."""
        return math.ceil(len(self.split) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Batches from `position` on; training never ends by itself."""
        in_use = InUse(self.world.device)
        with Pump(self._pixels(), self.config.batches_ahead, self.stats) as pump, in_use:
            for item in pump:
                batch = self._batch(item)
                self.position = item.plan.position + self.batch_size
                yield batch
                in_use.add(batch)
        if isinstance(self.transform, EvalTransform):
            self.position = 0

    def plan(self, position: int) -> Plan:
        """This rank's part of the global batch at `position`."""
        if isinstance(self.transform, TrainTransform):
            return train_plan(self.seed, position, self.slots, self.widths, self.heights, self.transform)
        return eval_plan(position, self.slots, self.widths, self.heights, self.transform)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands after the batch last taken."""
        return {"position": self.position, "seed": self.seed, "dataset": self.split.digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, on any number of processes.

        Raises:
            InputError: it belongs to another dataset or seed.
        """
        if state["dataset"] != self.split.digest:
            raise InputError(f"{self.split.folder} is not the dataset that the saved position belongs to")
        if state["seed"] != self.seed:
            raise InputError(f"the saved position belongs to seed {state['seed']}, not {self.seed}")
        self.position = int(state["position"])

    def _plans(self) -> Iterator[Plan]:
        endless = isinstance(self.transform, TrainTransform)
        positions = count(self.position, self.batch_size) if endless else range(0, len(self.split), self.batch_size)
        return map(self.plan, positions)

    def _pixels(self) -> Generator[Pixels, None, None]:
        spec, backend_class = self._spec(), find_backend(self.config.backend)
        if not backend_class.reads:
            yield from backend_class(spec, _ignore, self.stats).decode((plan, NOTHING) for plan in self._plans())
            return
        with Reader(self.split, spec.num_threads, self.config.batches_ahead, self.stats) as reader:
            try:
                yield from backend_class(spec, reader.release, self.stats).decode(reader.read(self._plans()))
            except DecodeError as error:
                raise self._name_images(error) from error

    def _spec(self) -> BackendSpec:
        return BackendSpec(
            batch_size=len(self.slots),
            size=self.transform.size,
            crops=isinstance(self.transform, EvalTransform),
            device=self.world.device,
            num_threads=self.config.num_threads or default_num_threads(self.world),
            batches_ahead=self.config.batches_ahead,
            hw_decoder_load=self.config.hw_decoder_load,
            max_width=int(self.widths.max()),
            max_height=int(self.heights.max()),
        )

    def _batch(self, item: Pixels) -> Batch:
        plan, device = item.plan, self.world.device
        if item.ready is not None:
            torch.cuda.current_stream(device).wait_event(item.ready)
        labels_B = torch.from_numpy(self.labels[plan.rows_B]).long().to(device, non_blocking=True)
        valid_B = torch.from_numpy(plan.valid_B).to(device, non_blocking=True)
        return Batch(item.images_BCHW, labels_B, valid_B, plan.position, plan.rows_B)

    def _name_images(self, error: DecodeError) -> DecodeError:
        if not error.rows:
            return error
        shards = self.split.column("shard")
        named = zip(error.rows, self.split.keys(error.rows), strict=True)
        listed = "; ".join(f"{key} in {self.split.shard_paths[shards[row]]}" for row, key in named)
        return DecodeError(error.rows, f"cannot decode {listed}: damaged on disk; delete that shard and run prep again")


def _check(transform: TrainTransform | EvalTransform, seed: int, config: LoaderConfig) -> None:
    if isinstance(transform, EvalTransform) and transform.resize < transform.size:
        raise InputError(f"cannot crop {transform.size} pixels from a short side of {transform.resize}: resize to more")
    if seed < 0:
        raise InputError(f"seed {seed} is negative: take 0 or more")
    if config.num_threads < 0:
        raise InputError(f"num_threads {config.num_threads} is negative: take 1 or more, or 0 for a share of the cores")
    if config.batches_ahead < 1:
        raise InputError(f"batches_ahead {config.batches_ahead} is too few: take 1 or more")


def _ignore(_: Encoded) -> None:
    """What a backend that reads nothing gives back."""


def build_loader(
    split: Split,
    transform: TrainTransform | EvalTransform,
    batch_size: int,
    world: World | None = None,
    seed: int = 0,
    config: LoaderConfig | None = None,
) -> Loader:
    """A loader of `batch_size` images a step over all processes of `world`; the transform says train or eval."""
    return Loader(split, transform, batch_size, world or World(), seed, config or LoaderConfig())


def default_num_threads(world: World) -> int:
    """This process's share of the cores that it may run on, at most 16."""
    return max(1, min(MOST_THREADS, len(os.sched_getaffinity(0)) // world.local_size))
