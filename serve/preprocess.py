"""From a decoded picture to what the network takes: the transform of evaluation, to the pixel.

Between `serve/images.py` and the model. H, W are the crop's side.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.functional import InterpolationMode, center_crop, resize

from prep.errors import InputError
from prep.preprocess import IMAGENET_MEAN, IMAGENET_STD, Channels

LONGEST_RATIO = 32  # of long to short side of a picture that is resized
LARGEST_SIDE = 4096  # pixels; an artifact that asks for more is damaged


@dataclass(frozen=True)
class Preprocessing:
    """Resize the short side to `resize` (bilinear, antialiased), crop `crop` from the centre, normalise."""

    resize: int = 256
    crop: int = 224
    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD

    def check(self) -> None:
        """Raises InputError for what cannot work."""
        if not 0 < self.crop <= self.resize <= LARGEST_SIDE:
            raise InputError(
                f"a crop of {self.crop} pixels from a short side of {self.resize} cannot be: "
                f"take 1 to {LARGEST_SIDE}, the crop no larger than the short side"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise InputError(f"mean {self.mean} and std {self.std} are not three channels each: export the model anew")


def cut_strip(picture: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Return the central part of a strip, from which the crop comes out the same, and any other picture as it is.

    Resized as a whole, a picture of 1 x 60,000 pixels would take 12 GB. It is `central_windows` of loaders/plan.py.
    """
    short, whole = sorted(picture.size)
    least = short * max(LONGEST_RATIO, 2 * math.ceil(preprocessing.crop / preprocessing.resize))
    if whole <= least:
        return picture
    parts_P = np.arange(whole - (whole - least) // 2 * 2, min(whole, 2 * least) + 1, 2)
    resized_P, resized = preprocessing.resize * parts_P // short, preprocessing.resize * whole // short
    aligned_P = (resized - resized_P) % 4 == 0
    candidates_P = np.flatnonzero(aligned_P) if aligned_P.any() else np.arange(len(parts_P))
    errors_P = np.abs(resized_P[candidates_P] / parts_P[candidates_P] - resized / whole)
    part = int(parts_P[candidates_P[errors_P.argmin()]])
    start = (whole - part) // 2
    wide = picture.width == whole
    return picture.crop((start, 0, start + part, short) if wide else (0, start, short, start + part))


def show_crop(picture: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """The square of a picture that the network sees, RGB. The EXIF orientation is ignored, as in evaluation."""
    whole = cut_strip(picture, preprocessing).convert("RGB")
    resized = resize(whole, [preprocessing.resize], InterpolationMode.BILINEAR)  # pyright: ignore[reportArgumentType]
    return center_crop(resized, [preprocessing.crop])  # pyright: ignore[reportArgumentType, reportReturnType]


def to_tensor(crop: Image.Image, preprocessing: Preprocessing) -> torch.Tensor:
    """A crop of `show_crop` as the network takes it, float32 [3, H, W]: (x / 255 - mean) / std."""
    pixels_HWC = np.asarray(crop, dtype=np.float32)
    mean, std = (np.asarray(each, dtype=np.float32) for each in (preprocessing.mean, preprocessing.std))
    return torch.from_numpy(((pixels_HWC / 255 - mean) / std).transpose(2, 0, 1).copy())
