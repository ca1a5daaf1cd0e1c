"""From bytes to what a network takes; done on the device, so that a quarter of the bytes travel to it."""

import torch
from torch import nn

from prep.preprocess import IMAGENET_MEAN, IMAGENET_STD, Channels


class Normalize(nn.Module):
    """uint8 RGB [B, 3, H, W] -> float32 (x / 255 - mean) / std, as one multiplication and one addition."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, mean: Channels = IMAGENET_MEAN, std: Channels = IMAGENET_STD) -> None:
        super().__init__()
        mean_C, std_C = torch.tensor(mean), torch.tensor(std)
        self.register_buffer("scale", (1 / (255 * std_C)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean_C / std_C).view(1, 3, 1, 1), persistent=False)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(self.shift, images_BCHW.float(), self.scale)

    def inverse(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Normalised images as uint8 RGB again, to look at: rounded, and cut off at black and white."""
        return ((images_BCHW - self.shift) / self.scale).round().clamp(0, 255).to(torch.uint8)
