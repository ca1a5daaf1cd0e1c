"""The phases of a recipe: how many images it trains on at each resolution, and how many it evaluates."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from verdict.cost import IMAGENET_IMAGES

from loaders.plan import TrainTransform, size_at
from train.config import Recipe

IMAGENET_VALIDATION = 50_000  # images of ImageNet-1k's validation split
EVEN = 2  # pixels: scaled resolutions are multiples of it


@dataclass(frozen=True)
class Phase:
    """All training at one resolution, or all evaluations."""

    size: int  # pixels, of the recipe
    measured_size: int  # the same, unless the measurement is scaled down
    num_images: int  # of ImageNet-1k
    evaluates: bool = False


def list_shares(transform: TrainTransform, epochs: float) -> Iterator[tuple[int, float]]:
    """Yield the size of each epoch, and how much of the epoch is run: 1, or less in the last one."""
    epoch = 0
    while epoch < epochs:
        yield size_at(transform, epoch), min(1.0, epochs - epoch)
        epoch += 1


def plan_phases(recipe: Recipe, scale: float = 1.0) -> list[Phase]:
    """Return the training phases in the order of their first epochs, then the evaluation.

    Args:
        scale: of the measured resolutions; below 1 for a rehearsal on a slow machine.
    """
    epochs: dict[int, float] = {}
    for size, share in list_shares(recipe.transform, recipe.epochs):
        epochs[size] = epochs.get(size, 0.0) + share
    phases = [Phase(size, scale_size(size, scale), round(each * IMAGENET_IMAGES)) for size, each in epochs.items()]

    # A run evaluates at its end too, so also a last interval that is shorter.
    num_evaluations = max(1, math.ceil(recipe.epochs / recipe.run.evaluate_every - 1e-9))
    size = recipe.evaluation.size
    return [*phases, Phase(size, scale_size(size, scale), num_evaluations * IMAGENET_VALIDATION, evaluates=True)]


def scale_size(size: int, scale: float) -> int:
    """Return a resolution times `scale`, an even number of pixels unless the scale is 1."""
    return size if scale == 1 else max(EVEN, round(size * scale / EVEN) * EVEN)
