"""The plan's operations by Pillow: the definition of what is right, and what the CPU runs.

All are timm's and torchvision's to the bit. What is turned, sheared or moved is interpolated bilinearly: timm draws
bilinear or bicubic for each image, DALI has bilinear alone, and one filter lets all backends show the same image.
"""

import math
from collections.abc import Callable

from PIL import Image, ImageEnhance, ImageOps

from loaders.augment import FILL, Op
from loaders.plan import Plan

BILINEAR = Image.Resampling.BILINEAR
Affine = tuple[float, float, float, float, float, float]


def augment(image: Image.Image, plan: Plan, i: int) -> Image.Image:
    """Image `i` of a plan once its operations are done."""
    for op, argument in zip(plan.ops_BL[i].tolist(), plan.arguments_BL[i].tolist(), strict=True):
        image = FUNCTIONS[op](image, argument)
    return image


def _warp(image: Image.Image, matrix: Affine) -> Image.Image:
    """Each pixel from where (x, y) -> (a x + b y + c, d x + e y + f) says."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, BILINEAR, fillcolor=FILL)


def _posterize(image: Image.Image, bits: float) -> Image.Image:
    """No bits are a black image: timm draws it, and Pillow's own function refuses it since version 13."""
    step = 2 ** (8 - int(bits))
    return image.point([value // step * step for value in range(256)] * 3)


def _solarize_add(image: Image.Image, addend: float) -> Image.Image:
    return image.point([min(255, value + int(addend)) if value < 128 else value for value in range(256)] * 3)


FUNCTIONS: dict[int, Callable[[Image.Image, float], Image.Image]] = {
    Op.IDENTITY: lambda image, _: image,
    Op.AUTO_CONTRAST: lambda image, _: ImageOps.autocontrast(image),
    Op.EQUALIZE: lambda image, _: ImageOps.equalize(image),
    Op.INVERT: lambda image, _: ImageOps.invert(image),
    Op.ROTATE: lambda image, degrees: image.rotate(degrees, BILINEAR, fillcolor=FILL),
    Op.POSTERIZE: _posterize,
    Op.SOLARIZE: lambda image, threshold: ImageOps.solarize(image, math.ceil(threshold)),
    Op.SOLARIZE_ADD: _solarize_add,
    Op.COLOR: lambda image, share: ImageEnhance.Color(image).enhance(share),
    Op.CONTRAST: lambda image, share: ImageEnhance.Contrast(image).enhance(share),
    Op.BRIGHTNESS: lambda image, share: ImageEnhance.Brightness(image).enhance(share),
    Op.SHARPNESS: lambda image, share: ImageEnhance.Sharpness(image).enhance(share),
    Op.SHEAR_X: lambda image, shear: _warp(image, (1, shear, 0, 0, 1, 0)),
    Op.SHEAR_Y: lambda image, shear: _warp(image, (1, 0, 0, shear, 1, 0)),
    Op.TRANSLATE_X: lambda image, pixels: _warp(image, (1, 0, pixels, 0, 1, 0)),
    Op.TRANSLATE_Y: lambda image, pixels: _warp(image, (1, 0, 0, 0, 1, pixels)),
}
