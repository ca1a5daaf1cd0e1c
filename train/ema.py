"""The averaged weights (EMA): after each step they move a little towards the model's."""

import torch
from torch import nn


class Ema:
    """Moves `average` towards `model`, two networks of the same architecture on the same device.

    Computes what timm's ModelEmaV3 computes, to the bit, without collecting both states at every step. For ResNet-50
    that takes 4 ms on one core of a 2-core cloud machine (two `state_dict()` calls, 53 copies of BatchNorm counters),
    time in which no kernel is launched for a GPU.

    The tensors are collected once. They stay the networks' own through training steps, `load_state_dict` and
    `nn.Module.compile`, which all work in place; after moving a network to another device make a new Ema.

    Args:
        decay: what the average keeps of itself at each step.
    """

    def __init__(self, model: nn.Module, average: nn.Module, decay: float) -> None:
        self.weight = 1.0 - decay
        ours, theirs = (module.state_dict(keep_vars=True) for module in (average, model))
        assert ours.keys() == theirs.keys()
        pairs = [(ours[name], theirs[name]) for name in ours]
        moving = [pair for pair in pairs if pair[0].is_floating_point()]
        counting = [pair for pair in pairs if not pair[0].is_floating_point()]
        self.averages, self.values = [pair[0] for pair in moving], [pair[1] for pair in moving]
        self.counters, self.counts = [pair[0] for pair in counting], [pair[1] for pair in counting]

    @torch.no_grad()
    def update(self) -> None:
        """Move parameters and running statistics by one step; take over BatchNorm's counters, which are integers."""
        torch._foreach_lerp_(self.averages, self.values, weight=self.weight)
        if self.counters:
            torch._foreach_copy_(self.counters, self.counts)
