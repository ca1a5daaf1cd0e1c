"""What a backend is: it executes plans, and decides nothing."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

import torch

from loaders.plan import Plan
from loaders.reader import Encoded
from loaders.stats import Counters


@dataclass(frozen=True)
class BackendSpec:
    """What a backend is built for: shapes, device, threads, and bounds that the sample index knows."""

    batch_size: int  # of this rank
    size: int  # pixels, of evaluation's square output; a training plan says its own
    crops: bool  # whether plans crop after resizing
    num_layers: int  # operations of augmentation that an image of a plan goes through
    device: torch.device  # of the batches, the model's
    decodes_on_gpu: bool  # otherwise the CPU decodes, and finished pixels are uploaded
    stream: torch.cuda.Stream | None  # on which batches for a GPU are made or uploaded
    num_threads: int
    cores: tuple[int, ...]  # to pin the decoder's threads to; empty: they may run anywhere
    batches_ahead: int
    roi: bool  # decode the windows alone, not whole images
    hw_decoder_load: float
    width_hint: int  # pixels, of a large source image: what a GPU's decoder sets memory aside for
    height_hint: int


@dataclass(frozen=True)
class Pixels:
    """A plan's images: uint8 RGB [B, 3, size, size], channels_last; on a GPU made on the spec's stream."""

    plan: Plan
    images_BCHW: torch.Tensor


class Backend(ABC):
    """Turns plans and their encoded images into pixels, in order; may take some pairs ahead of what it yields."""

    reads = True  # whether it wants the encoded images at all
    placements: tuple[str, ...] = ("cpu",)  # where it can decode, see `loaders/placement.py`

    @classmethod
    def lowered(cls, decodes_on_gpu: bool) -> Collection[int]:
        """Return the operations of augmentation (`loaders.augment.Op`) that it can execute there."""
        return ()

    def __init__(self, spec: BackendSpec, release: Callable[[Encoded], None], counters: Counters) -> None:
        self.spec, self.release, self.counters = spec, release, counters

    @abstractmethod
    def decode(self, pairs: Iterable[tuple[Plan, Encoded]]) -> Iterator[Pixels]:
        """The pixels of each pair; each `Encoded` goes to `release` once nothing reads it any more.

        Raises:
            DecodeError: images cannot be decoded; it names their rows (`loaders/blame.py`).
        """
