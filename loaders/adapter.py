"""Penstock's loader in anyone's training loop: an iterable of (images, labels), an epoch at a time.

from loaders import build
loader = build("data/imagenet", "train", batch_size=256)
for images, labels in loader: ...
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from threading import RLock
from typing import Any, NoReturn

import torch
from torch.utils.data import IterableDataset, get_worker_info

from loaders.batch import Batch
from loaders.checks import check_arguments
from loaders.config import LoaderConfig
from loaders.device import join_environment
from loaders.loader import Loader, build_loader
from loaders.normalize import Normalize
from loaders.order import Sampling
from loaders.plan import EvalTransform, TrainTransform
from loaders.ranks import check_group
from prep.dataset import Split
from prep.errors import InputError

DTYPES = {"uint8": torch.uint8, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Accelerate's wrappers that take one rank's batches, or each rank's own, and give every rank a part of them.
SPLITTERS = ("DataLoaderDispatcher", "IterableDatasetShard")
Pair = tuple[torch.Tensor, torch.Tensor]


class Epochs(IterableDataset[Pair]):
    """A loader's batches as (images, labels). Each `iter` gives one epoch and goes on where the last one stopped.

    images: [B, 3, size, size], channels_last, on the loader's device; uint8, or normalised with ImageNet's mean and
    standard deviation in the dtype asked for. labels: int64 [B]. An epoch of training has as many whole batches as
    fit into the split; what is left over opens the next epoch, so no image is lost. Evaluation's last batch is short:
    the processes share out evenly what is left, and give the same number of batches. Where fewer images than processes
    are left it is empty in some, and its mean loss not a number: add up sums and numbers of images, not means.
    """

    def __init__(self, loader: Loader, dtype: str | torch.dtype = "fp32", *, follows_group: bool = False) -> None:
        """Wrap a loader.

        Args:
            follows_group: the loader's rank was worked out, not given: an epoch begins only if torch.distributed, once
                it is initialised, says the same.
        """
        self.loader, self.dtype, self.follows_group = loader, find_dtype(dtype), follows_group
        self.normalize = Normalize().to(loader.world.device)
        self.batches: Iterator[Batch] | None = None
        self.lock, self.process = RLock(), os.getpid()

    def __len__(self) -> int:
        """Batches in an epoch."""
        num_whole = len(self.loader.split) // self.loader.batch_size
        return max(1, num_whole) if self.loader.trains else len(self.loader)

    def __iter__(self) -> Iterator[Pair]:
        self._check_consumer()
        return self._epoch() if self.loader.trains else self._pass()

    def __reduce__(self) -> NoReturn:
        raise InputError(
            "a loader cannot be sent to another process: build it there (inside of the function that mp.spawn starts), "
            "and give a DataLoader num_workers=0, since Penstock reads and decodes in threads of its own"
        )

    def _check_consumer(self) -> None:
        """Check that this process may iterate, and that no wrapper would give its images to other ranks.

        Raises:
            InputError: images would be lost or seen twice.
        """
        if get_worker_info() is not None:
            raise InputError("Penstock reads and decodes in threads of its own: give the DataLoader num_workers=0")
        if os.getpid() != self.process:
            raise InputError(
                "this loader was built before its process was forked: build it in the process that uses it"
            )
        if self.follows_group:
            check_group(self.loader.world)
        if self.loader.world.size > 1 and (splitter := find_splitter()):
            raise InputError(
                f"Accelerate's {splitter} would hand out one rank's batches and lose those of the others: "
                "give `prepare` the loader itself, not DataLoader(loader)"
            )

    def _epoch(self) -> Iterator[Pair]:
        """The stream stays open between epochs, so that the next one's first batch is ready when this one ends."""
        for _ in range(len(self)):
            yield self._to_pair(self._take())

    def _take(self) -> Batch:
        """Return the stream's next batch. Threads that iterate at the same time get different ones."""
        with self.lock:
            self.batches = self.batches or iter(self.loader)
            try:
                return next(self.batches)
            except BaseException:
                self.batches = None  # it has ended; who tries again goes on at the batch that failed
                raise

    def _pass(self) -> Iterator[Pair]:
        for batch in self.loader:
            yield self._to_pair(batch)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands after the batch last taken."""
        return self.loader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on there, on any number of processes.

        Raises:
            InputError: the state belongs to another dataset, seed, order or number of repeats.
        """
        self.close()
        self.loader.load_state_dict(state)

    def close(self) -> None:
        """Stop reading ahead, and give back threads, files and memory."""
        with self.lock:
            if self.batches is not None:
                with closing(self.batches):  # pyright: ignore[reportArgumentType]  (a generator)
                    self.batches = None

    def _to_pair(self, batch: Batch) -> Pair:
        images_BCHW, labels_B = batch.images_BCHW, batch.labels_B
        if not self.loader.trains:
            num_valid = len(self.loader.slots_at(batch.position))
            images_BCHW, labels_B = images_BCHW[:num_valid], labels_B[:num_valid]
        if self.dtype is torch.uint8:
            return images_BCHW, labels_B
        return self.normalize(images_BCHW).to(self.dtype), labels_B


def find_dtype(dtype: object) -> torch.dtype:
    """Return torch's dtype for one of DTYPES' names, or for itself.

    Raises:
        InputError: images cannot be had in it.
    """
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or found not in DTYPES.values():
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype}")
    return found


def find_splitter() -> str | None:
    """Return Accelerate's class that is iterating over us, and would split what one rank yields.

    `prepare(DataLoader(loader))` makes one, and neither the DataLoader nor its dataset is told: so look at who calls.
    """
    frame = sys._getframe() if "accelerate" in sys.modules else None
    while frame is not None:
        if frame.f_globals.get("__name__") == "accelerate.data_loader":
            name = type(frame.f_locals.get("self")).__name__
            if name in SPLITTERS:
                return name
        frame = frame.f_back
    return None


def build(
    root: str | os.PathLike[str],
    split: str,
    batch_size: int,
    transform: TrainTransform | EvalTransform | None = None,
    dtype: str | torch.dtype = "fp32",
    **options: Any,
) -> Epochs:
    """Build an iterable over a split's batches for any training loop. Every process of a run must build its own.

    Args:
        root: a dataset as `prep/shard.py` writes it; `split` is one of its folders.
        batch_size: of this process, as PyTorch's loaders count it.
        transform: by default training's for the split `train`, evaluation's for any other.
        dtype: of the images: fp32, fp16 or bf16, normalised; or uint8. Also torch's own.
        options: rank and world_size, which are otherwise those of torch.distributed or torchrun; seed, order and
            repeats of training (`Sampling`); device (auto, cpu, cuda, cuda:N); and what `LoaderConfig` takes.

    Raises:
        InputError: an argument cannot be used, the data are not there, or this process cannot tell its rank.
    """
    options = check_arguments(root, split, batch_size, options)
    find_dtype(dtype)
    rank, size = options.pop("rank", None), options.pop("world_size", None)
    world = join_environment(options.pop("device", "auto"), rank, size)
    sampling = Sampling(**{name: options.pop(name) for name in ("seed", "order", "repeats") if name in options})
    transform = choose_transform(split) if transform is None else transform
    config = LoaderConfig(**options)
    loader = build_loader(Split(Path(root), split), transform, int(batch_size) * world.size, world, sampling, config)
    return Epochs(loader, dtype, follows_group=rank is None)


def choose_transform(split: str) -> TrainTransform | EvalTransform:
    """Return the default transform of a split.

    Raises:
        InputError: its name could mean training, and evaluation's transform would neither shuffle nor augment.
    """
    if split != "train" and split.lower().startswith("train"):
        raise InputError(
            f"the split {split} may be for training or not: pass transform=TrainTransform() or EvalTransform()"
        )
    return TrainTransform() if split == "train" else EvalTransform()
