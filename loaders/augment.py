"""The augmentation operations of each image after its crop and flip, and their arguments: a part of the plan.

RandAugment (E. Cubuk et al., arXiv 1909.13719) as timm draws it for `rand-m9-mstd0.5`, and TrivialAugment Wide
(S. Müller and F. Hutter, arXiv 2103.10158) as torchvision draws it. This module decides the operations with pure
functions; loaders/reference.py defines what each does to pixels, and loaders/augment_dali.py does the same on a GPU.

Shapes: B images of one rank's batch; L layers, the operations of one image, one after the other.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np

AugmentKind = Literal["none", "rand", "trivial"]
MOST = 10.0  # timm's magnitudes range from 0 to 10
NUM_BINS = 31  # number of magnitudes in torchvision's TrivialAugment
HALF_WORD = 2.0**-33  # added to a uniform number of 32 bits, so that it is never 0: ndtri(0) is infinite
FILL = (124, 116, 104)  # RGB outside of the image: ImageNet's mean in 255ths, as in timm


class Op(IntEnum):
    """The operations by their number in a plan; each comment says what the argument is."""

    IDENTITY = 0
    AUTO_CONTRAST = 1
    EQUALIZE = 2
    INVERT = 3
    ROTATE = 4  # degrees, counterclockwise about the centre
    POSTERIZE = 5  # bits to keep
    SOLARIZE = 6  # threshold: values of at least this are inverted
    SOLARIZE_ADD = 7  # addend for values below 128
    COLOR = 8  # share of the image in a blend with its grey version; above 1 it extrapolates
    CONTRAST = 9  # the same, in a blend with its mean grey
    BRIGHTNESS = 10  # the same, in a blend with black
    SHARPNESS = 11  # the same, in a blend with the smoothed image
    SHEAR_X = 12  # the source moves right by this many pixels per row
    SHEAR_Y = 13  # the source moves down by this many pixels per column
    TRANSLATE_X = 14  # the source moves right by this many pixels
    TRANSLATE_Y = 15  # the source moves down by this many pixels


OPS: dict[AugmentKind, list[Op]] = {
    "none": [],
    "rand": [op for op in Op if op is not Op.IDENTITY],
    "trivial": [op for op in Op if op not in (Op.INVERT, Op.SOLARIZE_ADD)],
}
BLENDS = (Op.COLOR, Op.CONTRAST, Op.BRIGHTNESS, Op.SHARPNESS)
SHEARS, TRANSLATIONS = (Op.SHEAR_X, Op.SHEAR_Y), (Op.TRANSLATE_X, Op.TRANSLATE_Y)


@dataclass(frozen=True)
class AugmentConfig:
    """RandAugment, by default timm's `rand-m9-mstd0.5`; or TrivialAugment Wide, which has no parameters."""

    kind: AugmentKind = "none"  # rand (RandAugment) or trivial (TrivialAugment Wide)
    num_ops: int = 2  # operations per image; this field and those below apply to rand only
    magnitude: float = 9.0  # strength, from 0 to 10
    std: float = 0.5  # standard deviation of the magnitude's normal noise, drawn for each operation
    probability: float = 0.5  # probability that a drawn operation is applied
    increasing: bool = False  # timm's inc1: a larger magnitude is a stronger change in every operation

    @property
    def num_layers(self) -> int:
        """The number of operations per image, including the identity."""
        return {"none": 0, "rand": self.num_ops, "trivial": 1}[self.kind]


def draw_ops(config: AugmentConfig, draws_4BL: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the operations of each image, and their arguments.

    Args:
        draws_4BL: uniform numbers in [0, 1) for the operation, its magnitude, its sign, and whether it is applied.
        size: side of the images in pixels.

    Returns:
        The operations, int64 [B, L], IDENTITY if none is applied; and their arguments, float64 [B, L].
    """
    choices_BL, levels_BL, signs_BL, applied_BL = draws_4BL
    ops, signs_BL = OPS[config.kind], np.where(signs_BL < 0.5, 1.0, -1.0)

    # TrivialAugment: one of 31 levels, always applied.
    if config.kind == "trivial":
        levels_BL = np.floor(levels_BL * NUM_BINS) / (NUM_BINS - 1)
        return _choose(ops, choices_BL, trivial_arguments(levels_BL, signs_BL))

    # RandAugment: a level with normal noise, applied with a probability.
    from scipy.special import ndtri  # noqa: PLC0415  (takes 0.2 s to import, and only RandAugment needs it)

    magnitudes_BL = config.magnitude + config.std * ndtri(levels_BL + HALF_WORD)
    arguments = rand_arguments(np.clip(magnitudes_BL, 0, MOST) / MOST, signs_BL, size, config.increasing)
    ops_BL, arguments_BL = _choose(ops, choices_BL, arguments)
    is_applied_BL = applied_BL < config.probability
    return np.where(is_applied_BL, ops_BL, Op.IDENTITY), np.where(is_applied_BL, arguments_BL, 0.0)


def _choose(ops: list[Op], choices_BL: np.ndarray, arguments: dict[Op, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return an operation for each uniform number, and its argument, which is 0 for operations without one."""
    ops_BL = np.array(ops, np.int64)[np.floor(choices_BL * len(ops)).astype(np.int64)]
    arguments_BL = np.zeros(ops_BL.shape)
    for op, of_op_BL in arguments.items():
        arguments_BL = np.where(ops_BL == op, of_op_BL, arguments_BL)
    return ops_BL, arguments_BL


def rand_arguments(levels_BL: np.ndarray, signs_BL: np.ndarray, size: int, increasing: bool) -> dict[Op, np.ndarray]:
    """Return RandAugment's arguments at levels in [0, 1], as LEVEL_TO_ARG in timm.data.auto_augment.

    Without `increasing`, level 0 has the fewest bits and the lowest threshold, and shares are 1 at level 0.5.
    Translations are proportional to `size`, the side of the images in pixels.
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
    """Return TrivialAugment's arguments at levels in [0, 1], as torchvision's TrivialAugmentWide."""
    return {
        Op.ROTATE: 135 * signs_BL * levels_BL,
        Op.POSTERIZE: 8 - np.rint(6 * levels_BL),
        Op.SOLARIZE: 255 - 255 * levels_BL,
        **dict.fromkeys(BLENDS, 1 + 0.99 * signs_BL * levels_BL),
        **dict.fromkeys(SHEARS, 0.99 * signs_BL * levels_BL),
        **dict.fromkeys(TRANSLATIONS, signs_BL * np.trunc(32 * levels_BL)),
    }
