"""The synthetic backend: the same batch again and again, already on the device. It shows the model's own speed."""

from collections.abc import Collection, Iterable, Iterator
from functools import cache

import torch

from loaders.augment import Op
from loaders.backend import Backend, Pixels
from loaders.plan import Plan
from loaders.reader import Encoded


class SyntheticBackend(Backend):
    """Ignores what the plans say of pixels but their size; labels and positions stay those of the plan."""

    reads = False

    @classmethod
    def lowered(cls, decodes_on_gpu: bool) -> Collection[int]:
        return list(Op)

    def decode(self, pairs: Iterable[tuple[Plan, Encoded]]) -> Iterator[Pixels]:
        noise = cache(self._noise)  # of each resolution
        for plan, _ in pairs:
            yield Pixels(plan, noise(plan.size))

    def _noise(self, size: int) -> torch.Tensor:
        shape, generator = (self.spec.batch_size, 3, size, size), torch.Generator().manual_seed(0)
        noise = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        return noise.to(self.spec.device).contiguous(memory_format=torch.channels_last)
