"""Use Penstock's loader in your own training loop: an iterable of (images, labels), one epoch per `iter`.

from loaders import build
loader = build("data/imagenet", "train", batch_size=256)
for images, labels in loader: ...
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from threading import RLock
from typing import Any, NoReturn

import torch
from torch.utils.data import IterableDataset, get_worker_info

from loaders.batch import Batch, Normalize
from loaders.config import LoaderConfig, check_arguments
from loaders.loader import Loader, build_loader
from loaders.opening import open_splits
from loaders.order import Sampling
from loaders.plan import EvalTransform, TrainTransform
from loaders.world import check_group, join_environment
from prep.errors import InputError

DTYPES = {"uint8": torch.uint8, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Accelerate's classes that divide each batch of one rank among all ranks.
SPLITTERS = ("DataLoaderDispatcher", "IterableDatasetShard")
Pair = tuple[torch.Tensor, torch.Tensor]


class Epochs(IterableDataset[Pair]):
    """The batches of a loader as (images, labels). Each `iter` gives one epoch, and continues where the last stopped.

    images: [B, 3, size, size], channels_last, on the loader's device; uint8, or normalised with ImageNet's mean and
    standard deviation, in the requested dtype. labels: int64 [B].

    Training: an epoch has as many full batches as fit into the split. The images left over start the next epoch, so
    that no image is lost.

    Evaluation: the last batch is smaller. Its images are divided evenly among the processes, and all processes yield
    the same number of batches. If fewer images than processes are left, the batch is empty in some processes, and its
    mean loss is NaN there: add sums and counts over all processes, not means.
    """

    def __init__(self, loader: Loader, dtype: str | torch.dtype = "fp32", *, follows_group: bool = False) -> None:
        """Wrap a loader.

        Args:
            follows_group: True if the loader's rank was worked out and not given. Each epoch then checks that
                torch.distributed, if it is initialised by now, has the same rank.
        """
        self.loader, self.dtype, self.follows_group = loader, find_dtype(dtype), follows_group
        self.normalize = Normalize().to(loader.world.device)
        self.batches: Iterator[Batch] | None = None
        self.lock, self.process = RLock(), os.getpid()

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        num_whole = len(self.loader.split) // self.loader.batch_size
        return max(1, num_whole) if self.loader.trains else len(self.loader)

    def __iter__(self) -> Iterator[Pair]:
        self._check_consumer()
        return self._epoch() if self.loader.trains else self._pass()

    def __reduce__(self) -> NoReturn:
        raise InputError(
            "a loader cannot be sent to another process: build it there (inside the function that mp.spawn starts), "
            "and set num_workers=0 for a DataLoader, since Penstock reads and decodes in its own threads"
        )

    def _check_consumer(self) -> None:
        """Check that this process may iterate, and that no wrapper divides its batches among other ranks.

        Raises:
            InputError: images would be lost or used twice.
        """
        if get_worker_info() is not None:
            raise InputError("Penstock reads and decodes in its own threads: set num_workers=0 for the DataLoader")
        if os.getpid() != self.process:
            raise InputError(
                "this loader was built before its process was forked: build it in the process that uses it"
            )
        if self.follows_group:
            check_group(self.loader.world)
        if self.loader.world.size > 1 and (splitter := find_splitter()):
            raise InputError(
                f"Accelerate's {splitter} would distribute one rank's batches and lose those of the others: "
                "pass the loader itself to `prepare`, not DataLoader(loader)"
            )

    def _epoch(self) -> Iterator[Pair]:
        """Yield one epoch. The stream stays open, so that the next epoch's first batch is ready when this one ends."""
        for _ in range(len(self)):
            yield self._to_pair(self._next_batch())

    def _next_batch(self) -> Batch:
        """Return the next batch of the stream. Threads that iterate at the same time get different batches."""
        with self.lock:
            self.batches = self.batches or iter(self.loader)
            try:
                return next(self.batches)
            except BaseException:
                self.batches = None  # the generator has ended: the next call starts again at the batch that failed
                raise

    def _pass(self) -> Iterator[Pair]:
        """Yield one pass over the split, for evaluation."""
        for batch in self.loader:
            yield self._to_pair(batch)

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch consumed; see `Loader.state_dict`."""
        return self.loader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a saved position, on any number of processes.

        Raises:
            InputError: the state belongs to another dataset, seed, order or number of repeats.
        """
        self.close()
        self.loader.load_state_dict(state)

    def close(self) -> None:
        """Stop reading ahead, and release threads, files and memory."""
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
    """Return torch's dtype for a name in DTYPES, or the dtype itself.

    Raises:
        InputError: it is not one of DTYPES.
    """
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or found not in DTYPES.values():
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype}")
    return found


def find_splitter() -> str | None:
    """Return the name of Accelerate's class that is iterating over this loader, if it would divide a rank's batches.

    `prepare(DataLoader(loader))` creates such a wrapper, but tells neither the DataLoader nor its dataset. So this
    looks for the wrapper among the callers on the stack.
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
    """Build an iterable over the batches of a split, for any training loop. Each process of a run builds its own.

    Args:
        root: the folder of a dataset written by `prep/shard.py`, or s3://BUCKET/PREFIX; `split` is the name of a
            folder in it.
        batch_size: images per batch of this process, as in PyTorch's loaders.
        transform: by default TrainTransform() for the split `train`, EvalTransform() for any other.
        dtype: of the images: fp32, fp16 or bf16, which are normalised, or uint8; also as a torch.dtype.
        options: rank and world_size, by default those of torch.distributed or torchrun; seed, order and repeats of
            training (`Sampling`); device (auto, cpu, cuda, cuda:N); cache, for a dataset in a bucket: the folder to
            which its shards are fetched, or none; and the fields of `LoaderConfig`.

    Raises:
        InputError: an argument is invalid, the dataset does not exist, or this process cannot find out its rank.
    """
    # Check the arguments, then divide the options among their owners.
    options = check_arguments(root, split, batch_size, options)
    find_dtype(dtype)
    cache = options.pop("cache", "")
    rank, size = options.pop("rank", None), options.pop("world_size", None)
    world = join_environment(options.pop("device", "auto"), rank, size)
    sampling = Sampling(**{name: options.pop(name) for name in ("seed", "order", "repeats") if name in options})
    transform = choose_transform(split) if transform is None else transform
    config = LoaderConfig(**options)
    (opened,) = open_splits(root, [split], cache, world)
    loader = build_loader(opened, transform, int(batch_size) * world.size, world, sampling, config)
    return Epochs(loader, dtype, follows_group=rank is None)


def choose_transform(split: str) -> TrainTransform | EvalTransform:
    """Return the default transform of a split.

    Raises:
        InputError: the name could mean training, for which EvalTransform would be wrong: no shuffling, no augmentation.
    """
    if split != "train" and split.lower().startswith("train"):
        raise InputError(
            f"the split {split} may be for training or evaluation: pass transform=TrainTransform() or EvalTransform()"
        )
    return TrainTransform() if split == "train" else EvalTransform()
