"""Grad-CAM: a map of the places in a picture that support a class.

R. R. Selvaraju et al., "Grad-CAM", arXiv 1610.02391, as captum computes it. `serve/gallery.py` and the app draw the
maps. T is the number of classes, H and W are the crop's side, h and w the side of the stage's feature map in places.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from prep.errors import InputError

ENOUGH_PLACES = 4  # along each side; a coarser map does not show where a class is
Layout = Literal["channels first", "channels last", "tokens"]  # [B, C, h, w], [B, h, w, C], [B, tokens, C]


@dataclass(frozen=True)
class Stage:
    """The module of a network whose output the maps are computed from."""

    name: str
    module: nn.Module
    height: int  # in places
    width: int
    layout: Layout = "channels first"

    def to_maps(self, features: torch.Tensor) -> torch.Tensor:
        """Return the stage's output as [B, C, h, w], without class and register tokens, which come first."""
        if self.layout == "channels last":
            return features.permute(0, 3, 1, 2)
        if self.layout == "tokens":
            places_BNC = features[:, features.shape[1] - self.height * self.width :]
            return places_BNC.transpose(1, 2).unflatten(2, (self.height, self.width))
        return features


def find_stage(model: nn.Module, size: int) -> Stage:
    """Return the last stage of a timm network that has at least 4 x 4 places, otherwise the one with the most places.

    At ImageNet's sizes this is the last stage in a convolutional network's feature_info. A picture of 32 pixels is
    reduced to a single place there, which shows nothing, so an earlier stage is used. For a transformer that classifies
    by its class token it is the stage before the last: the last stage's outputs for the places do not reach the logits.

    Args:
        size: side of the network's input, pixels.

    Raises:
        InputError: the network has no stages, none gives a feature map, or it does not accept this size.
    """
    # List the stages that timm declares.
    info: Any = getattr(model, "feature_info", None)
    named = dict(model.named_modules())
    listed = info.get_dicts() if hasattr(info, "get_dicts") else list(info or ())
    entries = [entry for entry in listed if entry["module"] in named]  # timm also lists names that are not modules
    if not entries:
        raise InputError(f"{type(model).__name__} has no feature_info: Grad-CAM needs a model that declares its stages")

    # Run a picture through the network, and keep the stages whose feature map reaches the logits.
    modules = {entry["module"]: named[entry["module"]] for entry in entries}
    outputs = _probe_modules(model, modules, size)
    found = [_make_stage(model, entry, modules[entry["module"]], outputs) for entry in entries]
    stages = [stage for stage in found if stage is not None]
    if not stages:
        raise InputError(
            f"no stage of {type(model).__name__} gives a feature map that reaches the logits at {size} pixels: "
            "Grad-CAM needs another model"
        )
    large = [stage for stage in stages if min(stage.height, stage.width) >= ENOUGH_PLACES]
    return large[-1] if large else max(stages, key=lambda stage: stage.height * stage.width)


def _make_stage(
    model: nn.Module, entry: dict[str, Any], module: nn.Module, outputs: Mapping[str, "Output"]
) -> Stage | None:
    """Return an entry of feature_info as a stage, or None if its output is not a map whose places reach the logits."""
    name, channels = entry["module"], entry["num_chs"]
    if name not in outputs or channels not in (shape := outputs[name].shape):
        return None
    if len(shape) == 4 and shape[1] == channels:
        return Stage(name, module, shape[2], shape[3])

    # Other layouts are recognized by their shape alone, so their gradient must confirm that the places are used.
    stage = None
    if len(shape) == 4 and shape[3] == channels:
        stage = Stage(name, module, shape[1], shape[2], "channels last")
    elif len(shape) == 3 and shape[2] == channels and not hasattr(model, "unroll"):  # Hiera's tokens are not in rows
        # Tokens form a square, after the class and register tokens if there are any.
        num_others = (getattr(model, "num_prefix_tokens", 0), 0)
        sides = [math.isqrt(shape[1] - number) for number in num_others if shape[1] > number]
        fits = [side for side, number in zip(sides, num_others, strict=False) if side * side == shape[1] - number]
        stage = Stage(name, module, fits[0], fits[0], "tokens") if fits else None
    slopes = outputs[name].slopes
    return stage if stage and slopes is not None and stage.to_maps(slopes).any() else None


@dataclass(frozen=True)
class Output:
    """The output of a module for one picture."""

    shape: tuple[int, ...]
    slopes: torch.Tensor | None  # gradient of the sum of squared logits; None if they do not depend on it


def _probe_modules(model: nn.Module, modules: Mapping[str, nn.Module], size: int) -> dict[str, Output]:
    """Return each module's output for a grey picture with faint noise, and the gradient of the logits at it.

    Raises:
        InputError: the network does not accept a picture of this size.
    """
    # Record the outputs with hooks.
    seen: dict[str, torch.Tensor] = {}

    def record(name: str, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            seen[name] = output

    handles = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: record(name, output))
        for name, module in modules.items()
    ]
    device = next(model.parameters()).device
    noise_1CHW = 0.1 * torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    try:
        with torch.enable_grad():
            logits_1K = model(noise_1CHW.to(device).requires_grad_())
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{type(model).__name__} does not accept pictures of {size} pixels ({reason})") from error
    finally:
        for handle in handles:
            handle.remove()

    # Differentiate one number that depends on all logits.
    names = list(seen)
    if not names:
        return {}
    slopes = torch.autograd.grad(logits_1K.square().sum(), [seen[name] for name in names], allow_unused=True)
    return {name: Output(tuple(seen[name].shape), each) for name, each in zip(names, slopes, strict=True)}


class GradCam:
    """Maps of classes over pictures, for one network."""

    def __init__(self, model: nn.Module, size: int) -> None:
        """Find the stage; `size` is the side of the network's input, pixels."""
        from captum.attr import LayerGradCam  # noqa: PLC0415 - only commands that draw maps need it

        self.model, self.stage = model, find_stage(model, size)
        self.attribution = LayerGradCam(model, self.stage.module)
        self.device = next(model.parameters()).device

    def raw(self, image_CHW: torch.Tensor, classes: Sequence[int]) -> torch.Tensor:
        """Return the maps of the paper, at the stage's own resolution and scale: float32 [T, h, w], 0 or more."""
        images_TCHW = image_CHW.to(self.device).expand(len(classes), -1, -1, -1).clone().requires_grad_()
        targets_T = torch.tensor(list(classes), device=self.device)
        if self.stage.layout != "channels first":  # captum assumes that the second dimension is the channels
            return self._raw_of_other_layouts(images_TCHW, targets_T).cpu()
        maps_T1HW: Any = self.attribution.attribute(images_TCHW, targets_T, relu_attributions=True)
        return maps_T1HW[:, 0].detach().cpu()

    def _raw_of_other_layouts(self, images_TCHW: torch.Tensor, targets_T: torch.Tensor) -> torch.Tensor:
        """Return the same maps for other layouts: the features, weighted by their mean gradient over the places."""
        seen: list[torch.Tensor] = []
        handle = self.stage.module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))  # pyright: ignore[reportArgumentType]
        try:
            with torch.enable_grad():
                chosen_T = self.model(images_TCHW).gather(1, targets_T[:, None])
        finally:
            handle.remove()
        (slopes,) = torch.autograd.grad(chosen_T.sum(), seen)
        features_TCHW, slopes_TCHW = self.stage.to_maps(seen[0].detach()), self.stage.to_maps(slopes)
        return (slopes_TCHW.mean((2, 3), keepdim=True) * features_TCHW).sum(1).relu()

    def __call__(self, image_CHW: torch.Tensor, classes: Sequence[int]) -> torch.Tensor:
        """Return maps for display, float32 [T, H, W]: enlarged bilinearly, each scaled to 0 to 1 (or 0 everywhere).

        Args:
            image_CHW: the network's input, float32 [3, H, W].
            classes: labels, one or more.
        """
        height, width = image_CHW.shape[-2:]
        maps_THW = functional.interpolate(self.raw(image_CHW, classes)[:, None], (height, width), mode="bilinear")[:, 0]
        highest_T11 = maps_THW.amax((1, 2), keepdim=True)
        return torch.where(highest_T11 > 0, maps_THW / highest_T11.clamp(min=1e-30), 0)
