"""The network: any of timm's, in channels_last."""

import difflib
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn

from loaders import InputError
from loaders.normalize import IMAGENET_MEAN, IMAGENET_STD, Channels


@dataclass(frozen=True)
class ModelConfig:
    """A model of timm's by name."""

    name: str = "resnet50d"
    drop_path: float = 0.0  # stochastic depth, probability at the last block
    mean: Channels = IMAGENET_MEAN  # of RGB in [0, 1]
    std: Channels = IMAGENET_STD


def build_model(config: ModelConfig, num_classes: int, device: torch.device) -> nn.Module:
    """A freshly initialised model; its weights depend on torch's seed alone.

    Raises:
        InputError: timm has no model of that name.
    """
    if not timm.is_model(config.name):
        near = difflib.get_close_matches(config.name, timm.list_models(), n=3)
        raise InputError(f"timm has no model {config.name}" + (f": did you mean {', '.join(near)}?" if near else ""))
    options: dict[str, Any] = {"drop_path_rate": config.drop_path} if config.drop_path else {}
    model = timm.create_model(config.name, pretrained=False, num_classes=num_classes, **options)
    return model.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
