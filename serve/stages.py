"""Find the stage of a network: the module whose output is the feature map that Grad-CAM and its relatives read.

For `serve/cam.py`. B is the batch, C the channels, h and w are the side of the stage's feature map in places.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from prep.errors import InputError
from serve.maps import classify

ENOUGH_PLACES = 4  # along each side; a coarser map does not show where a class is
ENOUGH_CHANNELS = 8  # of a module that timm does not declare; fewer are a gate or a mask, not features
Layout = Literal["channels first", "channels last", "tokens"]  # [B, C, h, w], [B, h, w, C], [B, tokens, C]


@dataclass(frozen=True)
class Stage:
    """The module of a network whose output the maps are computed from."""

    name: str
    module: nn.Module
    height: int  # in places
    width: int
    layout: Layout = "channels first"
    is_declared: bool = True  # False: timm's feature_info does not name it

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
    # List the stages that timm declares. Some networks list names that are not modules.
    info: Any = getattr(model, "feature_info", None)
    named = dict(model.named_modules())
    listed = info.get_dicts() if hasattr(info, "get_dicts") else list(info or ())
    if not listed:
        raise InputError(f"{type(model).__name__} has no feature_info: Grad-CAM needs a model that declares its stages")
    entries = [entry for entry in listed if entry["module"] in named]

    # Run a picture through the network, and keep the stages whose feature map reaches the logits.
    modules = {entry["module"]: named[entry["module"]] for entry in entries}
    outputs = _probe_modules(model, modules, size)
    found = [_make_stage(model, entry, modules[entry["module"]], outputs) for entry in entries]
    stages = [stage for stage in found if stage is not None]
    if not stages:
        return _find_undeclared_stage(model, size)
    large = [stage for stage in stages if min(stage.height, stage.width) >= ENOUGH_PLACES]
    return large[-1] if large else max(stages, key=lambda stage: stage.height * stage.width)


def _find_undeclared_stage(model: nn.Module, size: int) -> Stage:
    """Return the last module of the network's second half that gives a feature map of at least 4 x 4 places.

    For networks whose feature_info names no usable module, such as HRNet, MViT and Twins.

    Raises:
        InputError: no module gives such a map.
    """
    # Consider the two upper levels of the network's second half: modules further down are parts of residual branches,
    # and earlier ones, such as patch embeddings, see only a part of the picture.
    named = list(model.named_modules())
    modules = {name: module for name, module in named[len(named) // 2 :] if name and name.count(".") <= 1}
    outputs = _probe_modules(model, modules, size)
    for name in reversed(outputs):  # in the order in which the modules finished
        output = outputs[name]
        for channels_at in (1, -1):
            if len(output.shape) not in (3, 4) or output.gradients is None or not output.gradients.any():
                continue
            entry = {"module": name, "num_chs": output.shape[channels_at]}
            stage = _make_stage(model, entry, modules[name], outputs)
            is_square = stage is not None and stage.height == stage.width >= ENOUGH_PLACES
            if stage is not None and is_square and entry["num_chs"] >= ENOUGH_CHANNELS:
                return replace(stage, is_declared=False)
    raise InputError(
        f"no stage of {type(model).__name__} gives a feature map that reaches the logits at {size} pixels: "
        "maps of its features need another model; --method occlusion of serve/gradcam_viz.py needs none"
    )


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
    gradients = outputs[name].gradients
    return stage if stage and gradients is not None and stage.to_maps(gradients).any() else None


@dataclass(frozen=True)
class Output:
    """The output of a module for one picture."""

    shape: tuple[int, ...]
    gradients: torch.Tensor | None  # gradient of the sum of squared logits; None if they do not depend on it


def _probe_modules(model: nn.Module, modules: Mapping[str, nn.Module], size: int) -> dict[str, Output]:
    """Return each module's output for a grey picture with faint noise, and the gradient of the logits at it.

    Raises:
        InputError: the network does not accept a picture of this size, or is not a classifier.
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
            logits_1K = classify(model, noise_1CHW.to(device).requires_grad_())
    finally:
        for handle in handles:
            handle.remove()

    # Differentiate one number that depends on all logits.
    names = list(seen)
    if not names:
        return {}
    gradients = torch.autograd.grad(logits_1K.square().sum(), [seen[name] for name in names], allow_unused=True)
    return {name: Output(tuple(seen[name].shape), each) for name, each in zip(names, gradients, strict=True)}
