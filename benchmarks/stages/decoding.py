"""The stage `decode`: encoded batches from memory through the loader's own backend, pixels out; nothing is read.

It does all that the backend does: decoding of the windows, resizing, flips, operations.
"""

from collections.abc import Generator
from contextlib import AbstractContextManager, nullcontext
from itertools import cycle
from types import TracebackType

import torch
from stages.stage import DECODE, Stage

from loaders import Loader
from loaders.backend import BackendSpec, Pixels
from loaders.plan import Plan
from loaders.reader import Encoded, Reader
from loaders.stats import Counters

MOST_BATCHES = 8  # different ones, in memory
Held = list[tuple[Plan, Encoded]]


class Decoding(Stage):
    """Batches that are in memory, round and round."""

    def __init__(self, loader: Loader, held: Held) -> None:
        super().__init__(DECODE, len(loader.slots), loader.world)
        spec = loader.spec()
        self.stream = spec.stream
        backend = loader.backend(spec, _keep, Counters())
        self.pixels: Generator = backend.decode(cycle(held))  # pyright: ignore[reportAttributeAccessIssue]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        with self._on_stream():
            self.pixels.close()

    def take(self) -> None:
        with self._on_stream():
            next(self.pixels)

    def _on_stream(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self.stream) if self.stream else nullcontext()


class MemoryLoader(Loader):
    """A loader that has all of the loader but storage: the same few batches from memory, round and round."""

    def __init__(self, loader: Loader, held: Held) -> None:
        super().__init__(
            loader.split, loader.transform, loader.batch_size, loader.world, loader.sampling, loader.config
        )
        self.held = held

    def _decode(self, spec: BackendSpec, position: int) -> Generator[Pixels, None, None]:
        yield from self.backend(spec, _keep, self.counters).decode(cycle(self.held))


def hold_batches(loader: Loader) -> Held:
    """The stream's first batches, read; nothing releases their buffers, so they stay as they are."""
    num_batches = max(1, min(MOST_BATCHES, len(loader.split) // loader.batch_size))
    plans = (loader.plan(i * loader.batch_size) for i in range(num_batches))
    with Reader(loader.split, 1, 1, Counters()) as reader:
        return list(reader.read(plans))


def _keep(_: Encoded) -> None:
    """What was decoded is decoded again later."""
