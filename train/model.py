"""The network: any of timm's, in channels_last, fed with uint8 images that it normalises on the device."""

import difflib
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn

from loaders import InputError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's and timm's defaults


@dataclass(frozen=True)
class ModelConfig:
    """A model of timm's by name."""

    name: str = "resnet50d"
    drop_path: float = 0.0  # stochastic depth, probability at the last block
    mean: tuple[float, float, float] = IMAGENET_MEAN  # of RGB in [0, 1]
    std: tuple[float, float, float] = IMAGENET_STD


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


class Normalize(nn.Module):
    """uint8 RGB [B, 3, H, W] -> float32 (x / 255 - mean) / std, as one multiplication and one addition."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        mean, std = torch.tensor(config.mean), torch.tensor(config.std)
        self.register_buffer("scale", (1 / (255 * std)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean / std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(self.shift, images_BCHW.float(), self.scale)
