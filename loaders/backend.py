"""What a backend is: it executes plans, and decides nothing."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from loaders.plan import Plan
from loaders.reader import Encoded
from loaders.stats import Stats


@dataclass(frozen=True)
class BackendSpec:
    """What a backend is built for: shapes, device, threads, and bounds that the sample index knows."""

    batch_size: int  # of this rank
    size: int  # pixels, of the square output
    crops: bool  # whether plans crop after resizing
    device: torch.device
    num_threads: int
    batches_ahead: int
    hw_decoder_load: float
    max_width: int  # pixels, of any source image
    max_height: int


@dataclass(frozen=True)
class Pixels:
    """A plan's images: uint8 RGB [B, 3, size, size], channels_last; on a GPU usable once `ready` has happened."""

    plan: Plan
    images_BCHW: torch.Tensor
    ready: torch.cuda.Event | None = None


class Backend(ABC):
    """Turns plans and their encoded images into pixels, in order; may take some pairs ahead of what it yields."""

    reads = True  # whether it wants the encoded images at all

    def __init__(self, spec: BackendSpec, release: Callable[[Encoded], None], stats: Stats) -> None:
        self.spec, self.release, self.stats = spec, release, stats

    @abstractmethod
    def decode(self, pairs: Iterable[tuple[Plan, Encoded]]) -> Iterator[Pixels]:
        """The pixels of each pair; each `Encoded` goes to `release` once nothing reads it any more."""
