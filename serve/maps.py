"""What a method for maps is: raw values per class and place, and their enlargement to the picture for display.

Grad-CAM and its relatives are in `serve/cam.py`, occlusion and rollout in the files of these names;
`serve/map_methods.py` chooses one by its name. T is the number of classes, H and W are the sides of the network's
input in pixels, h and w those of a map in places.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional

from prep.errors import InputError


class MapMaker(Protocol):
    """Makes maps of classes over pictures, for one network."""

    name: str  # of the method, for headings
    has_classes: bool  # False: the map of a picture is the same for every class
    passes: int  # forward passes per picture

    def describe(self) -> str:
        """Return what the maps show, of which stage, and how they are scaled, for captions."""
        ...

    def raw(self, image_CHW: torch.Tensor, classes: Sequence[int]) -> torch.Tensor:
        """Return the maps at the method's own resolution and scale: float32 [T, h, w] on the CPU, 0 or more."""
        ...

    def __call__(self, image_CHW: torch.Tensor, classes: Sequence[int]) -> torch.Tensor:
        """Return maps for display, float32 [T, H, W]: enlarged, each scaled to 0 to 1 (or 0 everywhere)."""
        ...


class Maps:
    """The part that all methods share: enlargement for display. A method implements `raw` and `describe`."""

    name = ""
    has_classes = True
    passes = 1

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.device = next(model.parameters()).device

    def describe(self) -> str:
        """Return what the maps show, for captions."""
        raise NotImplementedError

    def raw(self, image_CHW: torch.Tensor, classes: Sequence[int]) -> torch.Tensor:
        """Return the maps at the method's own resolution and scale: float32 [T, h, w] on the CPU, 0 or more."""
        raise NotImplementedError

    def __call__(self, image_CHW: torch.Tensor, classes: Sequence[int]) -> torch.Tensor:
        """Return maps for display, float32 [T, H, W]: enlarged, each scaled to 0 to 1 (or 0 everywhere).

        Args:
            image_CHW: the network's input, float32 [3, H, W].
            classes: labels, one or more.
        """
        return scale_maps(enlarge_maps(self.raw(image_CHW, classes), image_CHW.shape[-2], image_CHW.shape[-1]))


def classify(model: nn.Module, images_BCHW: torch.Tensor) -> torch.Tensor:
    """Return a network's logits, [B, K], to check that it can be explained at this size.

    Raises:
        InputError: the network does not accept pictures of this size, or returns something else.
    """
    name, size = type(model).__name__, images_BCHW.shape[-1]
    try:
        logits_BK = model(images_BCHW)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{name} does not accept pictures of {size} pixels ({reason})") from error
    if not isinstance(logits_BK, torch.Tensor) or logits_BK.dim() != 2:
        shape = list(logits_BK.shape) if isinstance(logits_BK, torch.Tensor) else type(logits_BK).__name__
        raise InputError(f"{name} returns {shape}, expected one logit per class: maps need a classifier")
    return logits_BK


def enlarge_maps(maps_Thw: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return maps enlarged to the picture, float32 [T, H, W], between 0 and each map's highest value.

    The interpolation is Catmull-Rom's cubic, which has continuous slopes and passes through the raw values: at the
    centre of a place the enlarged map equals the raw one. Bilinear interpolation, which Grad-CAM's reference code
    uses, has kinks there, which appear as diamonds. The cubic overshoots near steep edges, so it is clipped.
    """
    # With antialias, torch uses Catmull-Rom's coefficient -0.5 as Pillow does; without it -0.75, which rings more.
    maps_THW = functional.interpolate(maps_Thw[:, None], (height, width), mode="bicubic", antialias=True)[:, 0]
    return maps_THW.clamp(min=0).minimum(maps_Thw.amax((1, 2), keepdim=True).clamp(min=0))


def scale_maps(maps_THW: torch.Tensor) -> torch.Tensor:
    """Return maps divided by their own highest values, 0 to 1; a map without a positive value is 0 everywhere."""
    highest_T11 = maps_THW.amax((1, 2), keepdim=True)
    return torch.where(highest_T11 > 0, maps_THW / highest_T11.clamp(min=1e-30), 0)
