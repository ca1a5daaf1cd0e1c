"""Occlusion: hide one square of a picture after another, and measure how far the class's probability falls.

M. D. Zeiler and R. Fergus, arXiv 1311.2901, by captum. It reads no feature map and no gradient, so it is an independent
check of the other methods, and works for every network. It costs 170 forward passes per picture at 224 pixels.
T is the number of classes, H and W are the crop's side, h and w the number of squares along it.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from serve.maps import Maps, classify, enlarge_maps, scale_maps

NUM_PLACES = 14  # along the side, if the picture has at least as many pixels
PASSES_PER_BATCH = 32


class Occlusion(Maps):
    """Maps by occlusion, with squares of two places that move by one place."""

    name = "occlusion"

    def __init__(self, model: nn.Module, size: int) -> None:
        """Choose the squares; `size` is the side of the network's input, pixels.

        Raises:
            InputError: the network does not accept this size, or is not a classifier.
        """
        super().__init__(model)
        with torch.inference_mode():
            classify(model, torch.zeros(1, 3, size, size, device=self.device))
        self.stride = math.ceil(size / NUM_PLACES)
        self.square = min(size, 2 * self.stride)
        self.passes = (math.ceil((size - self.square) / self.stride) + 1) ** 2 + 1

    def describe(self) -> str:
        """Return the method, the size of the squares, and what the maps show."""
        return (
            f"maps: occlusion by squares of {self.square} pixels in steps of {self.stride}, each scaled from 0 to its "
            "own maximum; warm places lower the logarithm of the class's probability when they are hidden"
        )

    def raw(self, image_CHW: torch.Tensor, classes: Sequence[int]) -> torch.Tensor:
        """Return how far hiding each place lowers the log probability: float32 [T, h, w], 0 or more.

        A place is `stride` pixels wide. Its value is the mean over the squares that cover it; hidden pixels become 0,
        the mean colour of the training set.
        """
        from captum.attr import Occlusion as Captum  # noqa: PLC0415 - only this method needs it

        def log_probabilities(images_BCHW: torch.Tensor) -> torch.Tensor:
            return self.model(images_BCHW).float().log_softmax(1)[:, list(classes)]

        with torch.inference_mode():
            # Without a target, captum returns the map of each output in one run: [T, 3, H, W], equal in all channels.
            falls_TCHW: Any = Captum(log_probabilities).attribute(
                image_CHW[None].to(self.device),
                (image_CHW.shape[0], self.square, self.square),
                strides=(1, self.stride, self.stride),
                baselines=0,
                perturbations_per_eval=PASSES_PER_BATCH,
            )
        return falls_TCHW[:, 0, :: self.stride, :: self.stride].float().relu().cpu()

    def __call__(self, image_CHW: torch.Tensor, classes: Sequence[int]) -> torch.Tensor:
        """Return maps for display, float32 [T, H, W]: enlarged, each scaled to 0 to 1 (or 0 everywhere)."""
        maps_Thw = self.raw(image_CHW, classes)
        # The last place is cut off by the picture's edge if its side is not a multiple of the stride.
        height, width = (self.stride * side for side in maps_Thw.shape[1:])
        maps_THW = enlarge_maps(maps_Thw, height, width)
        return scale_maps(maps_THW[:, : image_CHW.shape[-2], : image_CHW.shape[-1]])
