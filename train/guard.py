"""A step whose loss is not finite must leave nothing behind: the optimizer skips it, and this undoes the rest.

Running statistics of BatchNorm that have once been infinite or NaN stay so for ever, and the averaged weights with
them. All of it happens on the device: nothing here waits for it but `check`.
"""

import torch
from torch import nn

from loaders import World
from prep.errors import InputError
from train.dist import from_every_rank


class NotFiniteError(InputError):
    """The loss was not finite for `num_steps` in a row."""

    def __init__(self, num_steps: int) -> None:
        super().__init__(f"the loss was not finite for {num_steps} steps in a row")
        self.num_steps = num_steps


class Guard:
    """Keeps what a step changes beside the weights, and counts the steps that came to nothing."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self.sizes = [buffer.numel() for buffer in self.statistics]
        self.num_in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        self.remember()

    @torch.no_grad()
    def remember(self) -> None:
        """Before a step: keep the running statistics."""
        self.kept = self._flat()

    @torch.no_grad()
    def settle(self, is_finite: torch.Tensor) -> None:
        """After a step: where its loss was not finite (a bool on the device), put them back."""
        self.num_in_a_row = torch.where(is_finite, 0, self.num_in_a_row + 1)
        if self.statistics:
            settled = torch.where(is_finite, self._flat(), self.kept).split(self.sizes)
            shaped = [new.view_as(old) for new, old in zip(settled, self.statistics, strict=True)]
            torch._foreach_copy_(self.statistics, shaped)

    def check(self, most: int, world: World) -> None:
        """Raises NotFiniteError where some process had `most` such steps in a row; waits for the device."""
        num_in_a_row = max(from_every_rank([int(self.num_in_a_row)], world))
        if num_in_a_row >= most:
            raise NotFiniteError(num_in_a_row)

    def _flat(self) -> torch.Tensor:
        return torch.cat([each.flatten() for each in self.statistics]) if self.statistics else torch.empty(0)
