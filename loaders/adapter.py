"""Penstock's loader in anyone's training loop: an iterable of (images, labels), an epoch at a time.

from loaders import build
loader = build("data/imagenet", "train", batch_size=256)
for images, labels in loader: ...
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from loaders.batch import Batch
from loaders.config import LoaderConfig
from loaders.device import join_environment
from loaders.loader import Loader, build_loader
from loaders.normalize import Normalize
from loaders.order import Sampling
from loaders.plan import EvalTransform, TrainTransform
from prep.dataset import InputError, Split

DTYPES = {"uint8": torch.uint8, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
Pair = tuple[torch.Tensor, torch.Tensor]


class Epochs(IterableDataset[Pair]):
    """A loader's batches as (images, labels). Each `iter` gives one epoch and goes on where the last one stopped.

    images: [B, 3, size, size], channels_last, on the loader's device; uint8, or normalised with ImageNet's mean and
    standard deviation in the dtype asked for. labels: int64 [B]. An epoch of training has as many whole batches as
    fit into the split; what is left over opens the next epoch, so no image is lost. Evaluation's last batch is short.
    """

    def __init__(self, loader: Loader, dtype: str = "fp32") -> None:
        if dtype not in DTYPES:
            raise InputError(f"there is no dtype {dtype}: choose from {', '.join(DTYPES)}")
        self.loader, self.dtype = loader, DTYPES[dtype]
        self.normalize = Normalize().to(loader.world.device)
        self.batches: Iterator[Batch] | None = None

    def __len__(self) -> int:
        """Batches in an epoch."""
        num_whole = len(self.loader.split) // self.loader.batch_size
        return max(1, num_whole) if self.loader.trains else len(self.loader)

    def __iter__(self) -> Iterator[Pair]:
        if get_worker_info() is not None:
            raise InputError("Penstock reads and decodes in threads of its own: give the DataLoader num_workers=0")
        return self._epoch() if self.loader.trains else self._pass()

    def _epoch(self) -> Iterator[Pair]:
        """The stream stays open between epochs, so that the next one's first batch is ready when this one ends."""
        self.batches = self.batches or iter(self.loader)
        for _ in range(len(self)):
            yield self._to_pair(next(self.batches))

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
        self.loader.load_state_dict(dict(state))

    def close(self) -> None:
        """Stop reading ahead, and give back threads, files and memory."""
        if self.batches is not None:
            with closing(self.batches):  # pyright: ignore[reportArgumentType]  (a generator)
                self.batches = None

    def _to_pair(self, batch: Batch) -> Pair:
        images_BCHW, labels_B = batch.images_BCHW, batch.labels_B
        if not self.loader.trains:
            num_valid = max(0, len(self.loader.split) - batch.position - self.loader.slots.start)
            images_BCHW, labels_B = images_BCHW[:num_valid], labels_B[:num_valid]
        if self.dtype is torch.uint8:
            return images_BCHW, labels_B
        return self.normalize(images_BCHW).to(self.dtype), labels_B


def build(
    root: str | os.PathLike[str],
    split: str,
    batch_size: int,
    transform: TrainTransform | EvalTransform | None = None,
    dtype: str = "fp32",
    **options: Any,
) -> Epochs:
    """A split's batches for any training loop, in as many processes as torchrun started.

    Args:
        root: a dataset as `prep/shard.py` writes it; `split` is one of its folders.
        batch_size: of this process, as PyTorch's loaders count it.
        transform: by default training's for the split `train`, evaluation's for any other.
        dtype: of the images: fp32, fp16 or bf16, normalised; or uint8.
        options: seed, order and repeats of training (`Sampling`), device (auto, cpu or cuda), and what `LoaderConfig`
            takes.
    """
    sampling = Sampling(**{name: options.pop(name) for name in ("seed", "order", "repeats") if name in options})
    world = join_environment(options.pop("device", "auto"))
    transform = transform or (TrainTransform() if split == "train" else EvalTransform())
    config = LoaderConfig(**options)
    loader = build_loader(Split(Path(root), split), transform, batch_size * world.size, world, sampling, config)
    return Epochs(loader, dtype)
