"""Random erasing: a rectangle of normalised images becomes noise, as timm does it in its mode `pixel`.

Rectangles are a function of (seed, position of the image) alone. Z. Zhong et al., arXiv 1708.04896.
"""

from dataclasses import dataclass

import numpy as np
import torch

from loaders.philox import counters, philox4x32, uniform

STREAM = 2  # of the random numbers, apart from the plan's
NUM_TRIES = 10  # timm.data.random_erasing


@dataclass(frozen=True)
class EraseConfig:
    """Which share of the images loses how much."""

    probability: float = 0.0  # of an image to be erased in
    area: tuple[float, float] = (0.02, 1 / 3)  # of the rectangle, as a share of the image's
    ratio: tuple[float, float] = (0.3, 1 / 0.3)  # height / width
    until: float | None = None  # epoch at which it ends


def draw_boxes(config: EraseConfig, seed: int, position: int, num_images: int, size: int) -> np.ndarray:
    """The rectangles of consecutive images of `size` pixels, the first at `position` in the stream.

    Returns:
        int64 [B, 4]: top, left, height, width; no height where nothing is erased.
    """
    blocks_TB = [counters(STREAM, position, num_images, block) for block in range(NUM_TRIES + 1)]
    draws_T4B = uniform(np.stack([philox4x32(seed, counters_4B) for counters_4B in blocks_TB]))
    area_TB, ratio_TB, top_TB, left_TB = draws_T4B[:NUM_TRIES].swapaxes(0, 1)
    area_TB = size**2 * (config.area[0] + (config.area[1] - config.area[0]) * area_TB)
    low, high = np.log(config.ratio)
    ratio_TB = np.exp(low + (high - low) * ratio_TB)
    h_TB, w_TB = np.rint(np.sqrt(area_TB * ratio_TB)), np.rint(np.sqrt(area_TB / ratio_TB))
    fits_TB = (h_TB < size) & (w_TB < size)
    top_TB, left_TB = np.floor(top_TB * (size - h_TB + 1)), np.floor(left_TB * (size - w_TB + 1))
    boxes_TB4 = np.stack([top_TB, left_TB, h_TB, w_TB], axis=-1).astype(np.int64)
    boxes_B4 = boxes_TB4[fits_TB.argmax(axis=0), np.arange(num_images)]
    erased_B = fits_TB.any(axis=0) & (draws_T4B[NUM_TRIES, 0] < config.probability)
    return np.where(erased_B[:, None], boxes_B4, 0)


def erase(images_BCHW: torch.Tensor, boxes_B4: torch.Tensor) -> torch.Tensor:
    """The images with normal noise inside their rectangles, from torch's generator; those given stay as they are."""
    top_B, left_B, h_B, w_B = boxes_B4[:, :, None, None].unbind(1)
    y_H1 = torch.arange(images_BCHW.shape[2], device=images_BCHW.device)[:, None]
    x_W = torch.arange(images_BCHW.shape[3], device=images_BCHW.device)
    inside_BHW = (y_H1 >= top_B) & (y_H1 < top_B + h_B) & (x_W >= left_B) & (x_W < left_B + w_B)
    return torch.where(inside_BHW[:, None], torch.randn_like(images_BCHW), images_BCHW)
