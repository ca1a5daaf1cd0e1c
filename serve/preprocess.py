"""Turn a decoded picture into the network's input, with exactly the pixels of evaluation.

Between `serve/pictures.py` and the model. H, W are the crop's side.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.functional import InterpolationMode, center_crop, resize

from prep.errors import InputError
from prep.preprocess import IMAGENET_MEAN, IMAGENET_STD, Channels

LONGEST_RATIO = 32  # long to short side of a picture that is resized as a whole
LARGEST_SIDE = 4096  # pixels; an artifact that asks for more is damaged
INTERPOLATIONS = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}


@dataclass(frozen=True)
class Preprocessing:
    """Resize the short side to `resize` (antialiased), crop `crop` from the centre, normalize.

    Exported artifacts are always bilinear, as the evaluation of this project; weights of others may be bicubic.
    """

    resize: int = 256
    crop: int = 224
    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD
    interpolation: str = "bilinear"

    def validate(self) -> None:
        """Raise InputError if a value is impossible."""
        if not 0 < self.crop <= self.resize <= LARGEST_SIDE:
            raise InputError(
                f"the crop must be between 1 and the short side, the short side at most {LARGEST_SIDE} pixels, "
                f"got a crop of {self.crop} from a short side of {self.resize}"
            )
        is_finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if len(self.mean) != 3 or len(self.std) != 3 or not is_finite or min(self.std) <= 0:
            raise InputError(
                "mean and std must have three channels with finite values, std above 0, "
                f"got {self.mean} and {self.std}: correct --mean and --std, or export the model again"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(f"interpolation must be {' or '.join(INTERPOLATIONS)}, got {self.interpolation}")


def cut_strip(picture: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Return the central part of a long strip, whose crop is the same as the strip's; other pictures are unchanged.

    A strip of 1 x 60,000 pixels, resized as a whole, would need 12 GB. The same rule as `central_windows` in
    loaders/plan.py.
    """
    short, whole = sorted(picture.size)
    least = short * max(LONGEST_RATIO, 2 * math.ceil(preprocessing.crop / preprocessing.resize))
    if whole <= least:
        return picture

    # Candidates for the part's length. It differs from the whole by a multiple of 2, so that both have the same centre;
    # the resized lengths differ by a multiple of 4 if possible, so that the crop's offset is rounded in the same way.
    parts_P = np.arange(whole - (whole - least) // 2 * 2, min(whole, 2 * least) + 1, 2)
    resized_P, resized = preprocessing.resize * parts_P // short, preprocessing.resize * whole // short
    aligned_P = (resized - resized_P) % 4 == 0
    candidates_P = np.flatnonzero(aligned_P) if aligned_P.any() else np.arange(len(parts_P))

    # Of these, choose the one whose scale is closest to that of the whole strip.
    errors_P = np.abs(resized_P[candidates_P] / parts_P[candidates_P] - resized / whole)
    part = int(parts_P[candidates_P[errors_P.argmin()]])
    start = (whole - part) // 2
    wide = picture.width == whole
    return picture.crop((start, 0, start + part, short) if wide else (0, start, short, start + part))


def show_crop(picture: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Return the square of a picture that the network sees, RGB. The EXIF orientation is ignored, as in evaluation."""
    whole = cut_strip(picture, preprocessing).convert("RGB")
    mode = INTERPOLATIONS[preprocessing.interpolation]
    resized = resize(whole, [preprocessing.resize], mode)  # pyright: ignore[reportArgumentType]
    return center_crop(resized, [preprocessing.crop])  # pyright: ignore[reportArgumentType, reportReturnType]


def to_tensor(crop: Image.Image, preprocessing: Preprocessing) -> torch.Tensor:
    """Return a crop of `show_crop` as the network's input, float32 [3, H, W]: (x / 255 - mean) / std."""
    pixels_HWC = np.asarray(crop, dtype=np.float32)
    mean, std = (np.asarray(each, dtype=np.float32) for each in (preprocessing.mean, preprocessing.std))
    return torch.from_numpy(((pixels_HWC / 255 - mean) / std).transpose(2, 0, 1).copy())
