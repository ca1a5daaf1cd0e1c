"""Networks of timm in which our prototype kernels compute BatchNorm, ReLU and the residual addition."""

from typing import Any

import torch
from modelling.fused_batchnorm import FusedBatchNorm
from timm.models.resnet import Bottleneck, ResNet
from torch import nn


class FusedBottleneck(nn.Module):
    """timm's Bottleneck with the same parameter names; each BatchNorm also computes the operations after it."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        assert issubclass(type(block), Bottleneck)
        others = [block.se, block.drop_path, *block.drop_block.children(), *(block.aa.children() if block.aa else ())]
        assert all(each is None for each in others), "the block has layers that the fused one lacks"
        self.conv1, self.bn1 = block.conv1, FusedBatchNorm.from_layer(block.bn1, relu=True)
        self.conv2, self.bn2 = block.conv2, FusedBatchNorm.from_layer(block.bn2, relu=True)
        self.conv3, self.bn3 = block.conv3, FusedBatchNorm.from_layer(block.bn3, relu=True)
        self.downsample = block.downsample
        if self.downsample is not None:
            fuse_pairs(self.downsample)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return images [B, C, H, W] of the block's output."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x))
        x = self.bn2(self.conv2(x))
        return self.bn3(self.conv3(x), shortcut)


def fuse_pairs(layers: nn.Sequential) -> None:
    """Replace in place each BatchNorm of a sequence by a fused one, which also applies a ReLU that follows it."""
    for i, layer in enumerate(layers):
        if isinstance(layer, nn.BatchNorm2d):
            has_relu = i + 1 < len(layers) and isinstance(layers[i + 1], nn.ReLU)
            layers[i] = FusedBatchNorm.from_layer(layer, relu=has_relu)
            if has_relu:
                layers[i + 1] = nn.Identity()


def fuse_resnet(model: Any) -> nn.Module:
    """Change a ResNet of timm with bottlenecks in place, and return it; the names in its state stay the same."""
    assert issubclass(type(model), ResNet)
    if isinstance(model.conv1, nn.Sequential):
        fuse_pairs(model.conv1)
    model.bn1, model.act1 = FusedBatchNorm.from_layer(model.bn1, relu=True), nn.Identity()
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for i, block in enumerate(stage):
            stage[i] = FusedBottleneck(block)
    return model
