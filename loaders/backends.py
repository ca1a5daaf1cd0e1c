"""The interface of a backend, the list of backends, and the synthetic one.

A backend executes plans and decides nothing. To add one: write a file with a subclass of `Backend`, and add one line
to BACKENDS. The contract tests (tests/loaders/test_contract.py) and the benchmarks run over BACKENDS.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from loaders.augment import Op
from loaders.plan import Plan
from loaders.reader import Encoded
from loaders.stats import Counters
from prep.errors import InputError

if TYPE_CHECKING:
    import torch

# Each backend's class. Its module is imported when the backend is asked for, since torch and DALI take seconds.
BACKENDS = {
    "dali": "loaders.dali:DaliBackend",
    "reference": "loaders.reference:ReferenceBackend",
    "synthetic": "loaders.backends:SyntheticBackend",
}


@dataclass(frozen=True)
class BackendSpec:
    """The properties that a backend is built for: shapes, device, threads, and bounds taken from the sample index."""

    batch_size: int  # images per batch of this rank
    size: int  # side of evaluation's square output in pixels; a training plan states its own
    crops_after_resize: bool  # True if plans crop after resizing (evaluation)
    num_layers: int  # augmentation operations per image
    device: "torch.device"  # where batches are delivered: the model's device
    decodes_on_gpu: bool  # if False, the CPU decodes and finished pixels are uploaded
    stream: "torch.cuda.Stream | None"  # the stream on which batches for a GPU are made or uploaded
    num_threads: int
    cores: tuple[int, ...]  # cores to pin the decoder's threads to; empty: not pinned
    batches_ahead: int
    roi: bool  # decode only the windows instead of complete images
    hw_decoder_load: float
    width_hint: int  # size in pixels of a large source image, for which a GPU's decoder allocates memory in advance
    height_hint: int


@dataclass(frozen=True)
class Pixels:
    """The images of a plan: uint8 RGB [B, 3, size, size], channels_last; on a GPU made on the spec's stream."""

    plan: Plan
    images_BCHW: "torch.Tensor"


class Backend(ABC):
    """Turns plans and their encoded images into pixels, in order; may work on several batches at once."""

    reads = True  # False if it needs no encoded images
    placements: tuple[str, ...] = ("cpu",)  # where it can decode, see loaders/placement.py

    @classmethod
    def supported_ops(cls, decodes_on_gpu: bool) -> Collection[int]:
        """Return the augmentation operations (`loaders.augment.Op`) that it can execute on the CPU or on a GPU."""
        return ()

    def __init__(self, spec: BackendSpec, release: Callable[[Encoded], None], counters: Counters) -> None:
        self.spec, self.release, self.counters = spec, release, counters

    @abstractmethod
    def decode(self, pairs: Iterable[tuple[Plan, Encoded]]) -> Iterator[Pixels]:
        """Yield the pixels of each pair, and pass each `Encoded` to `release` when decoding has read it.

        Raises:
            DecodeError: images cannot be decoded; the error holds their rows (loaders/quarantine.py).
        """


class SyntheticBackend(Backend):
    """Gives the same random images for all plans, already on the device, to measure the model alone.

    Labels and positions are those of the plan.
    """

    reads = False

    @classmethod
    def supported_ops(cls, decodes_on_gpu: bool) -> Collection[int]:
        return list(Op)

    def decode(self, pairs: Iterable[tuple[Plan, Encoded]]) -> Iterator[Pixels]:
        noise = cache(self._make_noise)  # one tensor per resolution
        for plan, _ in pairs:
            yield Pixels(plan, noise(plan.size))

    def _make_noise(self, size: int) -> "torch.Tensor":
        import torch  # noqa: PLC0415  (this module is imported for its list of names)

        shape, generator = (self.spec.batch_size, 3, size, size), torch.Generator().manual_seed(0)
        noise = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        return noise.to(self.spec.device).contiguous(memory_format=torch.channels_last)


def find_backend(name: str) -> type[Backend]:
    """Return the class of a backend by its name in BACKENDS.

    Raises:
        InputError: the name is unknown, or the backend's library is not installed.
    """
    if name not in BACKENDS:
        raise InputError(f"unknown loader backend {name}: choose from {', '.join(BACKENDS)}")
    module, _, class_name = BACKENDS[name].partition(":")
    try:
        return getattr(import_module(module), class_name)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("nvidia"):
            raise
        raise InputError("DALI is not installed: `pip install -e '.[cu12]'` (or cu13), or use reference") from error
