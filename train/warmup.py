"""Before the clock starts: the network runs at each resolution, so that no step stalls to compile, tune or record.

And so that a run that goes on computes as one that was not interrupted: after its first backward pass DDP puts the
gradients into other buckets, in the order in which they come, and three or more addends do not add up to the same
bits there.
"""

import math

import torch

from loaders.plan import sizes
from prep.errors import InputError
from train.step import Step


def warm_up(step: Step) -> None:
    """Forward and backward on black images; nothing of it is left behind."""
    recipe, world = step.recipe, step.world
    each = sizes(recipe.transform, math.ceil(recipe.epochs))
    if recipe.speed.compile == "none" and world.device.type == "cpu":
        each = each[:1] if world.size > 1 else []  # any will do for DDP
    buffers = list(step.state.model.buffers())
    kept = [buffer.clone() for buffer in buffers]
    for size in each:
        for _ in range(recipe.speed.num_rehearsals):
            rehearse(step, size)
            # Before the next pass: with CUDA graphs these gradients are memory of a graph that it overwrites.
            step.state.optimizer.zero_grad()
    for buffer, before in zip(buffers, kept, strict=True):
        buffer.copy_(before)


def rehearse(step: Step, size: int) -> None:
    """One pass at a resolution, of as many images as go through at once."""
    shape = (len(step.slots) // step.num_parts, 3, size, size)
    images_BCHW = torch.zeros(shape, device=step.world.device).contiguous(memory_format=torch.channels_last)
    with step.amp:
        outputs_BK = step.model(images_BCHW)
    outputs_BK.float().sum().backward()
    check_gradients(step)


def check_gradients(step: Step) -> None:
    """Raises InputError where a parameter of several processes' network got no gradient, for which DDP would wait."""
    unused = [name for name, each in step.state.model.named_parameters() if each.requires_grad and each.grad is None]
    if unused and step.world.size > 1:
        raise InputError(
            f"{step.recipe.model.name} does not use {unused[0]}{' and others' if len(unused) > 1 else ''} in training, "
            "and such a model trains in one process alone: start one, or choose another --model.name"
        )
