"""The reference backend: Pillow, short and readable. It defines the pixels that the other backends must produce.

`PILLOW_OPS` defines the augmentation operations. They are bit-identical to timm's and torchvision's, with one
exception: rotations, shears and translations always interpolate bilinearly. timm draws bilinear or bicubic for each
image, but DALI has only bilinear, and with one filter all backends show the same image.
"""

import io
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from loaders.augment import FILL, Op
from loaders.backends import Backend, Pixels
from loaders.batch import allocate_host, upload
from loaders.plan import Plan
from loaders.quarantine import explain_shortage, find_bad_images
from loaders.reader import Encoded

BILINEAR = Image.Resampling.BILINEAR
Affine = tuple[float, float, float, float, float, float]


class ReferenceBackend(Backend):
    """Executes plans on the CPU, one image after the other."""

    @classmethod
    def supported_ops(cls, decodes_on_gpu: bool) -> Collection[int]:
        return PILLOW_OPS

    def decode(self, pairs: Iterable[tuple[Plan, Encoded]]) -> Iterator[Pixels]:
        for plan, encoded in pairs:
            started = time.perf_counter()
            try:
                images = [render(encoded.images[i], plan, i) for i in range(len(encoded.images))]
            except Exception as error:  # Pillow's decoders raise errors of many types on damaged bytes
                raise find_bad_images([(plan, encoded)], find_failing, error, str(error)) from error
            self.release(encoded)
            self.counters.decode_seconds += time.perf_counter() - started
            host_BHWC = allocate_host((len(images), plan.size, plan.size, 3), torch.uint8, self.spec.device)
            np.stack(images, out=host_BHWC.numpy())
            yield Pixels(plan, upload(host_BHWC, self.spec.device).permute(0, 3, 1, 2))


def render(encoded: np.ndarray, plan: Plan, i: int) -> np.ndarray:
    """Return image `i` of a plan: uint8 RGB [size, size, 3]. Ignores the EXIF orientation, as torchvision does."""
    top, left, height, width = map(int, plan.windows_B4[i])
    resized_height, resized_width = map(int, plan.resized_B2[i])
    crop_top, crop_left = map(int, plan.crops_B2[i])

    # Decode, and cut out the window. Pillow would fill a window beyond the image with black.
    with Image.open(io.BytesIO(encoded.tobytes())) as opened:
        if left + width > opened.width or top + height > opened.height:
            raise ValueError(f"it has {opened.width} x {opened.height} pixels, fewer than its index says")
        image = opened.convert("RGB").crop((left, top, left + width, top + height))

    # Resize, crop, flip, augment.
    image = image.resize((resized_width, resized_height), BILINEAR)
    image = image.crop((crop_left, crop_top, crop_left + plan.size, crop_top + plan.size))
    if plan.flips_B[i]:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(apply_ops(image, plan, i))


def find_failing(plan: Plan, encoded: Encoded) -> list[int]:
    """Return the indices within a batch of the images that cannot be rendered."""
    return [i for i in range(len(encoded.images)) if not _can_render(encoded.images[i], plan, i)]


def _can_render(encoded: np.ndarray, plan: Plan, i: int) -> bool:
    try:
        render(encoded, plan, i)
    except Exception as error:  # of any type, see `decode`
        if shortage := explain_shortage(error):
            raise shortage from error
        return False
    return True


# The augmentation operations.


def apply_ops(image: Image.Image, plan: Plan, i: int) -> Image.Image:
    """Return image `i` of a plan after its operations."""
    for op, argument in zip(plan.ops_BL[i].tolist(), plan.arguments_BL[i].tolist(), strict=True):
        image = PILLOW_OPS[op](image, argument)
    return image


def _warp(image: Image.Image, matrix: Affine) -> Image.Image:
    """Take the output pixel (x, y) from the source at (a x + b y + c, d x + e y + f)."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, BILINEAR, fillcolor=FILL)


def _posterize(image: Image.Image, bits: float) -> Image.Image:
    """Keep the highest bits of each value. 0 bits give black: timm draws it; Pillow's function rejects it since 13."""
    step = 2 ** (8 - int(bits))
    return image.point([value // step * step for value in range(256)] * 3)


def _solarize_add(image: Image.Image, addend: float) -> Image.Image:
    return image.point([min(255, value + int(addend)) if value < 128 else value for value in range(256)] * 3)


PILLOW_OPS: dict[int, Callable[[Image.Image, float], Image.Image]] = {
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
