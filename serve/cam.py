"""Grad-CAM: where in a picture a network found a class.

R. R. Selvaraju et al., "Grad-CAM", arXiv 1610.02391, as captum computes it. After `serve/artifact.py`, beside
`serve/judge.py`; `serve/gallery.py` draws it. T classes, H and W the crop's side, h and w the stage's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from serve.refusal import InputError

ENOUGH_PLACES = 4  # along each side


@dataclass(frozen=True)
class Stage:
    """Where a network's maps are taken from."""

    name: str
    module: nn.Module
    height: int  # places
    width: int


def find_stage(model: nn.Module, size: int) -> Stage:
    """The last stage of any convolutional network of timm's that still has 4 x 4 places, else the one with the most.

    On ImageNet's sizes this is the last of its feature_info. Small pictures, 32 pixels, end as 1 x 1 place there, and
    a map of one place says nothing.

    Raises:
        InputError: it has none, or its last one gives no map [B, channels, h, w], as in transformers.
    """
    info: Any = getattr(model, "feature_info", None)
    entries = info.get_dicts() if hasattr(info, "get_dicts") else list(info or ())
    if not entries:
        raise InputError(f"{type(model).__name__} has no feature_info: Grad-CAM is for timm's convolutional networks")
    modules = {entry["module"]: model.get_submodule(entry["module"]) for entry in entries}
    shapes = _run_through(model, modules, size)
    last = shapes.get(entries[-1]["module"], ())
    if len(last) != 4 or last[1] != entries[-1]["num_chs"]:
        raise InputError(f"the last stage of {type(model).__name__} gives no map of features: take a convolutional one")
    stages = [Stage(name, modules[name], *shapes[name][2:]) for name in modules if len(shapes.get(name, ())) == 4]
    large = [stage for stage in stages if min(stage.height, stage.width) >= ENOUGH_PLACES]
    return large[-1] if large else max(stages, key=lambda stage: stage.height * stage.width)


def _run_through(model: nn.Module, modules: Mapping[str, nn.Module], size: int) -> dict[str, tuple[int, ...]]:
    """The shape of what each module gives for a black picture."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, output: Any) -> None:
        shapes[name] = tuple(getattr(output, "shape", ()))

    handles = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: note(name, output))
        for name, module in modules.items()
    ]
    try:
        with torch.inference_mode():
            model(torch.zeros(1, 3, size, size, device=next(model.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return shapes


class GradCam:
    """Maps of classes over pictures, for one network."""

    def __init__(self, model: nn.Module, size: int) -> None:
        """Finds the stage; `size` is the side of the network's square, pixels."""
        from captum.attr import LayerGradCam  # noqa: PLC0415 - commands that draw no map run without it

        self.stage = find_stage(model, size)
        self.attribution = LayerGradCam(model, self.stage.module)
        self.device = next(model.parameters()).device

    def raw(self, image_CHW: torch.Tensor, classes: Sequence[int]) -> torch.Tensor:
        """As the paper defines it, at the stage's resolution and with its scale: float32 [T, h, w], none negative."""
        images_TCHW = image_CHW.to(self.device).expand(len(classes), -1, -1, -1).clone().requires_grad_()
        targets_T = torch.tensor(list(classes), device=self.device)
        maps_T1HW: Any = self.attribution.attribute(images_TCHW, targets_T, relu_attributions=True)
        return maps_T1HW[:, 0].detach().cpu()

    def __call__(self, image_CHW: torch.Tensor, classes: Sequence[int]) -> torch.Tensor:
        """To look at: float32 [T, H, W], each map bilinear at the picture's size and from 0 to 1 (or 0 throughout).

        Args:
            image_CHW: as the network takes it, float32 [3, H, W].
            classes: one or more.
        """
        height, width = image_CHW.shape[-2:]
        maps_THW = functional.interpolate(self.raw(image_CHW, classes)[:, None], (height, width), mode="bilinear")[:, 0]
        highest_T11 = maps_THW.amax((1, 2), keepdim=True)
        return torch.where(highest_T11 > 0, maps_THW / highest_T11.clamp(min=1e-30), 0)
