"""The stage `decode`: encoded batches in memory become pixels through the loader's own backend; nothing is read.

It does all the work of the backend: decoding the windows, resizing, flips, augmentation.
"""

from collections.abc import Generator
from contextlib import AbstractContextManager, nullcontext
from itertools import cycle
from types import TracebackType

import torch
from stages.stage import DECODE, Stage

from loaders import Loader
from loaders.backends import BackendSpec, Pixels
from loaders.plan import Plan
from loaders.reader import Encoded, Reader
from loaders.stats import Counters

MOST_BATCHES = 8  # different batches in memory
Held = list[tuple[Plan, Encoded]]  # plans with their encoded batches


class Decoding(Stage):
    """Decode the batches `held` in memory, again and again."""

    def __init__(self, loader: Loader, held: Held) -> None:
        super().__init__(DECODE, len(loader.slots), loader.world)
        spec = loader.make_spec()
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
        """Return the context of the backend's CUDA stream; on the CPU one that does nothing."""
        return torch.cuda.stream(self.stream) if self.stream else nullcontext()


class MemoryLoader(Loader):
    """A complete loader except for storage: it gets the same few batches from memory, again and again."""

    def __init__(self, loader: Loader, held: Held) -> None:
        super().__init__(
            loader.split, loader.transform, loader.batch_size, loader.world, loader.sampling, loader.config
        )
        self.held = held

    def _decode(self, spec: BackendSpec, position: int) -> Generator[Pixels, None, None]:
        yield from self.backend(spec, _keep, self.counters).decode(cycle(self.held))


def hold_batches(loader: Loader, *, splices: bool = True) -> Held:
    """Read the first batches of the stream into memory; their buffers are never released, so they do not change.

    Args:
        loader: of a split in a folder.
        splices: False to read complete images from restart shards too.
    """
    num_batches = max(1, min(MOST_BATCHES, len(loader.split) // loader.batch_size))
    plans = (loader.plan(i * loader.batch_size) for i in range(num_batches))
    with loader.open_reader(1, 1, Counters()) if splices else Reader(loader.split, 1, 1, Counters()) as reader:
        return list(reader.read(plans))


def _keep(_: Encoded) -> None:
    """Release nothing: the same buffers are decoded again."""
