"""Which operations an image goes through after its crop and flip, and with which arguments: a part of the plan, pure.

RandAugment (E. Cubuk et al., arXiv 1909.13719) as timm draws it for `rand-m9-mstd0.5`, and TrivialAugment Wide
(S. Müller and F. Hutter, arXiv 2103.10158) as torchvision draws it. What an operation does to pixels is defined in
`loaders/augment_pillow.py`; `loaders/augment_dali.py` does the same on a GPU.

Shapes: B images of one rank's batch; L layers, the operations that an image goes through one after the other.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np
from scipy.special import ndtri

AugmentKind = Literal["none", "rand", "trivial"]
MOST = 10.0  # timm's magnitudes go from 0 to 10
NUM_BINS = 31  # torchvision's magnitudes of TrivialAugment
HALF_WORD = 2.0**-33  # moves a uniform number of 32 bits off 0, whose normal deviate is infinite
FILL = (124, 116, 104)  # RGB of what lies beyond an image's edges: ImageNet's mean in 255ths, as timm fills


class Op(IntEnum):
    """An operation by its number in a plan; beside it, what its argument is."""

    IDENTITY = 0
    AUTO_CONTRAST = 1
    EQUALIZE = 2
    INVERT = 3
    ROTATE = 4  # degrees, counterclockwise about the centre
    POSTERIZE = 5  # bits to keep
    SOLARIZE = 6  # the value from which on values are inverted
    SOLARIZE_ADD = 7  # what is added to values below 128
    COLOR = 8  # the image's share, beside grey; above 1 it goes beyond the image
    CONTRAST = 9  # the same, beside its mean grey
    BRIGHTNESS = 10  # the same, beside black
    SHARPNESS = 11  # the same, beside the smoothed image
    SHEAR_X = 12  # an output pixel's source lies so many pixels to the right for each pixel down
    SHEAR_Y = 13  # so many pixels down for each pixel to the right
    TRANSLATE_X = 14  # so many pixels to the right
    TRANSLATE_Y = 15  # so many pixels down


OPS: dict[AugmentKind, list[Op]] = {
    "none": [],
    "rand": [op for op in Op if op is not Op.IDENTITY],
    "trivial": [op for op in Op if op not in (Op.INVERT, Op.SOLARIZE_ADD)],
}
BLENDS = (Op.COLOR, Op.CONTRAST, Op.BRIGHTNESS, Op.SHARPNESS)
SHEARS, TRANSLATIONS = (Op.SHEAR_X, Op.SHEAR_Y), (Op.TRANSLATE_X, Op.TRANSLATE_Y)


@dataclass(frozen=True)
class AugmentConfig:
    """RandAugment with timm's values, whose `rand-m9-mstd0.5` these are; or TrivialAugment Wide, which has none."""

    kind: AugmentKind = "none"  # rand (RandAugment) or trivial (TrivialAugment Wide)
    num_ops: int = 2  # drawn for an image; this and all below are of rand alone
    magnitude: float = 9.0  # of 10
    std: float = 0.5  # of the magnitude's normal noise, drawn for each operation
    probability: float = 0.5  # with which an operation that was drawn is applied
    increasing: bool = False  # timm's inc1: in every operation a larger magnitude is a stronger change

    @property
    def num_layers(self) -> int:
        """Operations that an image goes through, the identity counted."""
        return {"none": 0, "rand": self.num_ops, "trivial": 1}[self.kind]


def draw_ops(config: AugmentConfig, draws_4BL: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """What is done to each image of `size` pixels.

    Args:
        draws_4BL: uniform [0, 1) numbers for the operation, its magnitude, its sign and whether it is applied.

    Returns:
        The operations, int64 [B, L], identity where none is applied; and their arguments, float64 [B, L].
    """
    choices_BL, levels_BL, signs_BL, applied_BL = draws_4BL
    ops, signs_BL = OPS[config.kind], np.where(signs_BL < 0.5, 1.0, -1.0)
    if config.kind == "trivial":
        levels_BL = np.floor(levels_BL * NUM_BINS) / (NUM_BINS - 1)
        return _choose(ops, choices_BL, trivial_arguments(levels_BL, signs_BL))
    magnitudes_BL = config.magnitude + config.std * ndtri(levels_BL + HALF_WORD)
    arguments = rand_arguments(np.clip(magnitudes_BL, 0, MOST) / MOST, signs_BL, size, config.increasing)
    ops_BL, arguments_BL = _choose(ops, choices_BL, arguments)
    is_applied_BL = applied_BL < config.probability
    return np.where(is_applied_BL, ops_BL, Op.IDENTITY), np.where(is_applied_BL, arguments_BL, 0.0)


def _choose(ops: list[Op], choices_BL: np.ndarray, arguments: dict[Op, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """One of the operations for each uniform number, and its argument; those that have none get 0."""
    ops_BL = np.array(ops, np.int64)[np.floor(choices_BL * len(ops)).astype(np.int64)]
    arguments_BL = np.zeros(ops_BL.shape)
    for op, of_op_BL in arguments.items():
        arguments_BL = np.where(ops_BL == op, of_op_BL, arguments_BL)
    return ops_BL, arguments_BL


def rand_arguments(levels_BL: np.ndarray, signs_BL: np.ndarray, size: int, increasing: bool) -> dict[Op, np.ndarray]:
    """RandAugment's arguments at levels in [0, 1], for images of `size` pixels: timm.data.auto_augment, LEVEL_TO_ARG.

    Without `increasing` the fewest bits and the lowest threshold are at level 0, and shares are 1 at level 0.5.
    """
    bits_BL, thresholds_BL = np.trunc(4 * levels_BL), np.trunc(256 * levels_BL)
    shares_BL = 0.1 + 1.8 * levels_BL
    if increasing:
        bits_BL, thresholds_BL = 4 - bits_BL, 256 - thresholds_BL
        shares_BL = np.maximum(0.1, 1 + 0.9 * signs_BL * levels_BL)
    return {
        Op.ROTATE: 30 * signs_BL * levels_BL,
        Op.POSTERIZE: bits_BL,
        Op.SOLARIZE: thresholds_BL,
        Op.SOLARIZE_ADD: np.trunc(110 * levels_BL),
        **dict.fromkeys(BLENDS, shares_BL),
        **dict.fromkeys(SHEARS, 0.3 * signs_BL * levels_BL),
        **dict.fromkeys(TRANSLATIONS, 0.45 * size * signs_BL * levels_BL),
    }


def trivial_arguments(levels_BL: np.ndarray, signs_BL: np.ndarray) -> dict[Op, np.ndarray]:
    """TrivialAugment's arguments at levels in [0, 1]: torchvision's TrivialAugmentWide, _augmentation_space."""
    return {
        Op.ROTATE: 135 * signs_BL * levels_BL,
        Op.POSTERIZE: 8 - np.rint(6 * levels_BL),
        Op.SOLARIZE: 255 - 255 * levels_BL,
        **dict.fromkeys(BLENDS, 1 + 0.99 * signs_BL * levels_BL),
        **dict.fromkeys(SHEARS, 0.99 * signs_BL * levels_BL),
        **dict.fromkeys(TRANSLATIONS, signs_BL * np.trunc(32 * levels_BL)),
    }
