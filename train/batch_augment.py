"""Augment a batch on the device before the network receives it: normalize, random erasing, Mixup and CutMix.

All draws are functions of (seed, position in the stream), so a resumed run augments in the same way, on any number of
processes. The per-image augmentations of the plan are in `loaders/`.

* Random erasing: Z. Zhong et al., arXiv 1708.04896; as timm's mode `pixel`.
* Mixup: H. Zhang et al., arXiv 1710.09412; CutMix: S. Yun et al., arXiv 1905.04899; as timm's mode `batch`: a batch is
  mixed with itself in reverse order.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import betaincinv

from loaders import World
from loaders.batch import Normalize
from loaders.philox import counters, philox4x32, uniform
from train.config import EraseConfig, MixConfig, Recipe

# Streams of random numbers; the plan uses stream 0.
MIX_STREAM = 1
ERASE_STREAM = 2
NUM_ERASE_TRIES = 10  # as timm.data.random_erasing


@dataclass(frozen=True)
class Mix:
    """The mixing of one batch: `share` of each image is kept, the rest comes from the batch in reverse order."""

    share: float | torch.Tensor = 1.0  # a tensor, float32 [], for a loss whose share may differ from step to step
    box: tuple[int, int, int, int] | None = None  # CutMix: top, left, bottom, right of the pasted box; None: Mixup

    @property
    def is_mixed(self) -> bool:
        """False if the images were not mixed; True if they may be."""
        return isinstance(self.share, torch.Tensor) or self.share != 1


@dataclass(frozen=True)
class Part:
    """Images of a batch that go through the network at once, augmented."""

    images_BCHW: torch.Tensor  # float32, normalized and mixed
    labels_B: torch.Tensor
    mix: Mix
    is_last: bool  # of the batch


class BatchAugment:
    """The batch augmentation of one run."""

    def __init__(self, recipe: Recipe, epoch_size: int, world: World) -> None:
        self.recipe, self.epoch_size = recipe, epoch_size
        self.normalize = Normalize(recipe.model.mean, recipe.model.std).to(world.device)

    @torch.no_grad()
    def __call__(self, images_BCHW: torch.Tensor, position: int) -> tuple[torch.Tensor, Mix]:
        """Return the images for the network, and how their labels are to be mixed.

        Args:
            images_BCHW: uint8, square, consecutive in the stream.
            position: of the first image in the stream.

        Returns:
            float32 images in the same memory format.
        """
        recipe, num_images, size = self.recipe, len(images_BCHW), images_BCHW.shape[-1]
        images_BCHW = self.normalize(images_BCHW)
        if recipe.erase.probability > 0 and self._is_before(recipe.erase.until, position):
            boxes_B4 = torch.from_numpy(draw_boxes(recipe.erase, recipe.seed, position, num_images, size))
            images_BCHW = erase(images_BCHW, boxes_B4.to(images_BCHW.device, non_blocking=True))
        mix = Mix()
        if self._is_before(recipe.mix.until, position):
            mix = draw_mix(recipe.mix, recipe.seed, position, size)
        return mix_images(images_BCHW, mix), mix

    def _is_before(self, epoch: float | None, position: int) -> bool:
        return epoch is None or position < epoch * self.epoch_size


# Random erasing: a rectangle of a normalized image becomes noise.


def draw_boxes(config: EraseConfig, seed: int, position: int, num_images: int, size: int) -> np.ndarray:
    """Draw the erased rectangles of consecutive images of `size` pixels, the first at `position` in the stream.

    Returns:
        int64 [B, 4]: top, left, height, width; height 0 if nothing is erased.
    """
    # T tries per image, four uniform numbers each; one more block decides whether the image is erased at all.
    blocks_TB = [counters(ERASE_STREAM, position, num_images, block) for block in range(NUM_ERASE_TRIES + 1)]
    draws_T4B = uniform(np.stack([philox4x32(seed, counters_4B) for counters_4B in blocks_TB]))
    area_TB, ratio_TB, top_TB, left_TB = draws_T4B[:NUM_ERASE_TRIES].swapaxes(0, 1)

    # Height and width from a uniform area and a log-uniform aspect ratio, then a position inside the image.
    area_TB = size**2 * (config.area[0] + (config.area[1] - config.area[0]) * area_TB)
    low, high = np.log(config.ratio)
    ratio_TB = np.exp(low + (high - low) * ratio_TB)
    h_TB, w_TB = np.rint(np.sqrt(area_TB * ratio_TB)), np.rint(np.sqrt(area_TB / ratio_TB))
    fits_TB = (h_TB < size) & (w_TB < size)
    top_TB, left_TB = np.floor(top_TB * (size - h_TB + 1)), np.floor(left_TB * (size - w_TB + 1))
    boxes_TB4 = np.stack([top_TB, left_TB, h_TB, w_TB], axis=-1).astype(np.int64)

    # The first try that fits into the image counts.
    boxes_B4 = boxes_TB4[fits_TB.argmax(axis=0), np.arange(num_images)]
    erased_B = fits_TB.any(axis=0) & (draws_T4B[NUM_ERASE_TRIES, 0] < config.probability)
    return np.where(erased_B[:, None], boxes_B4, 0)


def erase(images_BCHW: torch.Tensor, boxes_B4: torch.Tensor) -> torch.Tensor:
    """Return the images with normal noise (torch's generator) inside their rectangles; the input is not changed."""
    top_B, left_B, h_B, w_B = boxes_B4[:, :, None, None].unbind(1)
    y_H1 = torch.arange(images_BCHW.shape[2], device=images_BCHW.device)[:, None]
    x_W = torch.arange(images_BCHW.shape[3], device=images_BCHW.device)
    inside_BHW = (y_H1 >= top_B) & (y_H1 < top_B + h_B) & (x_W >= left_B) & (x_W < left_B + w_B)
    return torch.where(inside_BHW[:, None], torch.randn_like(images_BCHW), images_BCHW)


# Mixup and CutMix.


def draw_mix(config: MixConfig, seed: int, position: int, size: int) -> Mix:
    """Draw the mixing of the batch that begins at `position`; its images are squares of `size` pixels."""
    coin, share, top, left = uniform(philox4x32(seed, counters(MIX_STREAM, position, 1)))[:, 0].tolist()
    cuts = config.cutmix > 0 and (config.mixup <= 0 or coin < 0.5)
    alpha = config.cutmix if cuts else config.mixup
    if alpha <= 0:
        return Mix()
    share = float(betaincinv(alpha, alpha, share))  # Beta(alpha, alpha) by inversion of its distribution function
    return cut_box(share, int(top * size), int(left * size), size) if cuts else Mix(share)


def cut_box(share: float, center_y: int, center_x: int, size: int) -> Mix:
    """Return CutMix's box of area 1 - share around a center, clipped at the edges; the share is corrected for that."""
    side = int(size * math.sqrt(1 - share))
    top, left = (max(0, center - side // 2) for center in (center_y, center_x))
    bottom, right = (min(size, center + (side + 1) // 2) for center in (center_y, center_x))
    return Mix(1 - (bottom - top) * (right - left) / size**2, (top, left, bottom, right))


def mix_images(images_BCHW: torch.Tensor, mix: Mix) -> torch.Tensor:
    """Return the mixed images; the input is not changed."""
    if not mix.is_mixed:
        return images_BCHW
    others_BCHW = images_BCHW.flip(0)
    if mix.box is None:
        return torch.lerp(others_BCHW, images_BCHW, mix.share)
    top, left, bottom, right = mix.box
    mixed_BCHW = images_BCHW.clone()
    mixed_BCHW[:, :, top:bottom, left:right] = others_BCHW[:, :, top:bottom, left:right]
    return mixed_BCHW
