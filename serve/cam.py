"""Grad-CAM: where in a picture a network found a class.

R. R. Selvaraju et al., "Grad-CAM", arXiv 1610.02391, as captum computes it. After `serve/artifact.py`, beside
`serve/judge.py`; `serve/gallery.py` draws it. T classes, H and W the crop's side, h and w the stage's.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from prep.errors import InputError

ENOUGH_PLACES = 4  # along each side
Layout = Literal["channels first", "channels last", "tokens"]  # [B, C, h, w], [B, h, w, C], [B, tokens, C]


@dataclass(frozen=True)
class Stage:
    """Where a network's maps are taken from."""

    name: str
    module: nn.Module
    height: int  # places
    width: int
    layout: Layout = "channels first"

    def to_maps(self, features: torch.Tensor) -> torch.Tensor:
        """Return what the stage gives as [B, C, h, w]; tokens of no place, which come first, are left out."""
        if self.layout == "channels last":
            return features.permute(0, 3, 1, 2)
        if self.layout == "tokens":
            places_BNC = features[:, features.shape[1] - self.height * self.width :]
            return places_BNC.transpose(1, 2).unflatten(2, (self.height, self.width))
        return features


def find_stage(model: nn.Module, size: int) -> Stage:
    """The last stage of any network of timm's that still has 4 x 4 places, else the one with the most.

    On ImageNet's sizes this is the last of a convolutional network's feature_info. Small pictures, 32 pixels, end as
    1 x 1 place there, and a map of one place says nothing. Of a transformer that classifies by its class token it is
    the stage before the last: what the last one gives for the places is never looked at again.

    Raises:
        InputError: it has none, or none that gives a feature map, or it cannot see pictures of this size.
    """
    info: Any = getattr(model, "feature_info", None)
    named = dict(model.named_modules())
    listed = info.get_dicts() if hasattr(info, "get_dicts") else list(info or ())
    entries = [entry for entry in listed if entry["module"] in named]  # timm names some that are not modules
    if not entries:
        raise InputError(f"{type(model).__name__} has no feature_info: Grad-CAM needs a model with stages of features")
    modules = {entry["module"]: named[entry["module"]] for entry in entries}
    outputs = _run_through(model, modules, size)
    found = [_describe_stage(model, entry, modules[entry["module"]], outputs) for entry in entries]
    stages = [stage for stage in found if stage is not None]
    if not stages:
        raise InputError(
            f"no stage of {type(model).__name__} gives a map of features that reaches the logits at {size} pixels: "
            "Grad-CAM needs another model"
        )
    large = [stage for stage in stages if min(stage.height, stage.width) >= ENOUGH_PLACES]
    return large[-1] if large else max(stages, key=lambda stage: stage.height * stage.width)


def _describe_stage(
    model: nn.Module, entry: dict[str, Any], module: nn.Module, outputs: Mapping[str, "Output"]
) -> Stage | None:
    """Return one entry of feature_info as a stage, None where it gives no map whose places reach the logits."""
    name, channels = entry["module"], entry["num_chs"]
    if name not in outputs or channels not in (shape := outputs[name].shape):
        return None
    if len(shape) == 4 and shape[1] == channels:
        return Stage(name, module, shape[2], shape[3])
    stage = None
    if len(shape) == 4 and shape[3] == channels:
        stage = Stage(name, module, shape[1], shape[2], "channels last")
    elif len(shape) == 3 and shape[2] == channels and not hasattr(model, "unroll"):  # Hiera's tokens lie in no rows
        num_others = (getattr(model, "num_prefix_tokens", 0), 0)  # class and register tokens come before the places
        sides = [math.isqrt(shape[1] - number) for number in num_others if shape[1] > number]
        fits = [side for side, number in zip(sides, num_others, strict=False) if side * side == shape[1] - number]
        stage = Stage(name, module, fits[0], fits[0], "tokens") if fits else None
    slopes = outputs[name].slopes
    return stage if stage and slopes is not None and stage.to_maps(slopes).any() else None


@dataclass(frozen=True)
class Output:
    """What a module gave for a picture."""

    shape: tuple[int, ...]
    slopes: torch.Tensor | None  # gradient of the logits' sum; None where they do not depend on it


def _run_through(model: nn.Module, modules: Mapping[str, nn.Module], size: int) -> dict[str, Output]:
    """What each module gives for a grey picture with faint noise, and whether the logits depend on it.

    Raises:
        InputError: the network cannot see a picture of this size.
    """
    seen: dict[str, torch.Tensor] = {}

    def note(name: str, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            seen[name] = output

    handles = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: note(name, output))
        for name, module in modules.items()
    ]
    device = next(model.parameters()).device
    noise_1CHW = 0.1 * torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    try:
        with torch.enable_grad():
            logits_1K = model(noise_1CHW.to(device).requires_grad_())
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{type(model).__name__} cannot see pictures of {size} pixels ({reason})") from error
    finally:
        for handle in handles:
            handle.remove()
    names = list(seen)
    if not names:
        return {}
    slopes = torch.autograd.grad(logits_1K.square().sum(), [seen[name] for name in names], allow_unused=True)
    return {name: Output(tuple(seen[name].shape), each) for name, each in zip(names, slopes, strict=True)}


class GradCam:
    """Maps of classes over pictures, for one network."""

    def __init__(self, model: nn.Module, size: int) -> None:
        """Finds the stage; `size` is the side of the network's square, pixels."""
        from captum.attr import LayerGradCam  # noqa: PLC0415 - commands that draw no map run without it

        self.model, self.stage = model, find_stage(model, size)
        self.attribution = LayerGradCam(model, self.stage.module)
        self.device = next(model.parameters()).device

    def raw(self, image_CHW: torch.Tensor, classes: Sequence[int]) -> torch.Tensor:
        """As the paper defines it, at the stage's resolution and with its scale: float32 [T, h, w], none negative."""
        images_TCHW = image_CHW.to(self.device).expand(len(classes), -1, -1, -1).clone().requires_grad_()
        targets_T = torch.tensor(list(classes), device=self.device)
        if self.stage.layout != "channels first":  # captum takes the second dimension for the channels
            return self._raw_of_other_layouts(images_TCHW, targets_T).cpu()
        maps_T1HW: Any = self.attribution.attribute(images_TCHW, targets_T, relu_attributions=True)
        return maps_T1HW[:, 0].detach().cpu()

    def _raw_of_other_layouts(self, images_TCHW: torch.Tensor, targets_T: torch.Tensor) -> torch.Tensor:
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
        """To look at: float32 [T, H, W], each map bilinear at the picture's size and from 0 to 1 (or 0 throughout).

        Args:
            image_CHW: as the network takes it, float32 [3, H, W].
            classes: one or more.
        """
        height, width = image_CHW.shape[-2:]
        maps_THW = functional.interpolate(self.raw(image_CHW, classes)[:, None], (height, width), mode="bilinear")[:, 0]
        highest_T11 = maps_THW.amax((1, 2), keepdim=True)
        return torch.where(highest_T11 > 0, maps_THW / highest_T11.clamp(min=1e-30), 0)
