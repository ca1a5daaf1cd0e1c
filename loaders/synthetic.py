"""The synthetic backend: the same batch for ever, already on the device. What a model does with a perfect loader."""

from collections.abc import Iterable, Iterator

import torch

from loaders.backend import Backend, Pixels
from loaders.plan import Plan
from loaders.reader import Encoded


class SyntheticBackend(Backend):
    """Ignores what the plans say of pixels; labels and positions stay those of the plan."""

    reads = False

    def decode(self, pairs: Iterable[tuple[Plan, Encoded]]) -> Iterator[Pixels]:
        shape = (self.spec.batch_size, 3, self.spec.size, self.spec.size)
        noise = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        images_BCHW = noise.to(self.spec.device).contiguous(memory_format=torch.channels_last)
        for plan, _ in pairs:
            yield Pixels(plan, images_BCHW)
