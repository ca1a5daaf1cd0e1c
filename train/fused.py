"""Fuse BatchNorm, ReLU and the residual addition of a ResNet: fewer passes over memory, by Triton kernels.

On an H200, PyTorch's separate operations take about 35 of the 55 ms of a ResNet-50 step (batch 256, bfloat16; record
h200/gpu-model.json), more than twice as long as its convolutions. `fuse` replaces them in training by the kernels of
`train/fused_kernels.py`, which compute the same values within rounding. In evaluation the layers remain PyTorch's, bit
for bit. Parameters, running statistics and their names do not change: a checkpoint of a fused network loads into a
plain one, and the other way around.
"""

import importlib
import importlib.util
import os
from collections.abc import Iterable
from typing import Any

import torch
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn
from torch.autograd.function import once_differentiable

from prep.errors import InputError
from train.compile import SpeedConfig

# `--speed.fused auto` means off until a record shows that training is faster with these kernels. The H200 record of
# 1.40 times the eager rate is that of an earlier version, without Welford's variance, and of a bare step.
AUTO_IS_ON = False
INTERPRETER = "TRITON_INTERPRET"  # environment variable: 1 runs the kernels on a CPU, slowly, for tests


# The decision.


def wants_fused(config: SpeedConfig) -> bool:
    """Return True if the settings ask for fused layers."""
    return config.fused == "on" or (config.fused == "auto" and AUTO_IS_ON)


def explain_plain(config: SpeedConfig, device: torch.device) -> str | None:
    """Return one line that says why plain layers are used although fused ones were asked for; None otherwise."""
    obstacle = find_obstacle(device) if config.fused == "on" else None
    return obstacle and f"speed.fused: {obstacle}, so BatchNorm and ReLU are not fused: the plain layers are used"


def find_obstacle(device: torch.device) -> str | None:
    """Return why the kernels cannot run here, None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device.type != "cuda" and os.environ.get(INTERPRETER) != "1":
        return "the kernels need an NVIDIA GPU"
    return None


def fuse_if_wanted(model: nn.Module, config: SpeedConfig, name: str, device: torch.device) -> None:
    """Fuse a model in place if the settings ask for it and the kernels can run here.

    Args:
        name: of the model, for the error line.

    Raises:
        InputError: `on` for a model that cannot be fused.
    """
    if not wants_fused(config) or find_obstacle(device):
        return
    try:
        fuse(model)
    except InputError as error:
        if config.fused == "on":
            needed = "--speed.fused on needs one of timm's ResNets with BatchNorm and ReLU"
            raise InputError(f"{needed}, got {name}, {error}: give --speed.fused off") from error
        return
    importlib.import_module("train.fused_kernels")  # registers the operators, before torch.compile traces the model


# The layer.


class FusedFunction(torch.autograd.Function):
    """z = relu(batch_norm(y) + residual), with the gradients of y, residual, weight and bias."""

    @staticmethod
    def forward(ctx: Any, y_BCHW: torch.Tensor, residual_BCHW: torch.Tensor | None, *others: Any) -> torch.Tensor:
        """Return z. `others`: weight, bias, the three running statistics, momentum, eps, and whether ReLU follows."""
        from train.fused_kernels import choose_call, launch_forward  # noqa: PLC0415  (Triton, which may be missing)

        z_BCHW, table_4C = choose_call(launch_forward)(y_BCHW, residual_BCHW, *others)
        ctx.has_residual, ctx.relu = residual_BCHW is not None, others[-1]
        # Without a residual ReLU's mask follows from y, so z is not kept.
        ctx.save_for_backward(y_BCHW, z_BCHW if ctx.has_residual and ctx.relu else None, table_4C, *others[:2])
        return z_BCHW

    @staticmethod
    @once_differentiable  # second derivatives would be wrong without an error
    def backward(ctx: Any, *gradients: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the gradients in the order of the arguments."""
        from train.fused_kernels import choose_call, launch_backward  # noqa: PLC0415

        y_BCHW, z_BCHW, table_4C, weight_C, bias_C = ctx.saved_tensors
        found = choose_call(launch_backward)(gradients[0], y_BCHW, z_BCHW, table_4C, ctx.has_residual, ctx.relu)
        dy_BCHW, residual_gradient_BCHW, (bias_gradient_C, weight_gradient_C) = found
        parameters = (weight_gradient_C.to(weight_C.dtype), bias_gradient_C.to(bias_C.dtype))
        return dy_BCHW, residual_gradient_BCHW if ctx.has_residual else None, *parameters, *[None] * 6


class FusedBatchNorm(nn.BatchNorm2d):
    """BatchNorm2d that also adds a residual and applies ReLU.

    Made of a BatchNorm2d by changing its class, so that its tensors stay the same objects.
    """

    relu: bool

    def forward(self, input: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Return relu(batch_norm(input) + residual), images [B, C, H, W]; with `relu` False without ReLU."""
        if self.training:
            running = (self.running_mean, self.running_var, self.num_batches_tracked)
            numbers = (self.momentum, self.eps, self.relu)
            return FusedFunction.apply(input, residual, self.weight, self.bias, *running, *numbers)  # pyright: ignore
        output = super().forward(input)
        if residual is not None:
            output += residual
        return torch.relu_(output) if self.relu else output


# The networks.


class FusedBasicBlock(BasicBlock):
    """timm's BasicBlock with fused layers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output [B, C, H, W]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = _blur(self.aa, self.bn1(self.conv1(x)))
        return _finish_block(self, self.bn2, self.conv2(x), shortcut)


class FusedBottleneck(Bottleneck):
    """timm's Bottleneck with fused layers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output [B, C, H, W]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x))
        x = _blur(self.aa, self.bn2(self.conv2(x)))
        return _finish_block(self, self.bn3, self.conv3(x), shortcut)


def _blur(blur: nn.Module | None, x: torch.Tensor) -> torch.Tensor:
    """Return timm's anti-aliased images; the images themselves without such a layer."""
    return x if blur is None else blur(x)


def _finish_block(block: Any, norm: Any, x: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
    """Return relu(drop_path(attention(norm(x))) + shortcut); in one layer if the block has neither of these two."""
    if _is_tail_fused(block):
        return norm(x, shortcut)
    x = norm(x)
    if block.se is not None:
        x = block.se(x)
    if block.drop_path is not None:
        x = block.drop_path(x)
    return torch.relu(x + shortcut)


def _is_tail_fused(block: Any) -> bool:
    return block.se is None and block.drop_path is None


ACTIVATIONS = ("act1", "act2", "act3")  # names of the layers after BatchNorm, in the stem and in the blocks
FUSED_BLOCKS: dict[type[nn.Module], type[nn.Module]] = {BasicBlock: FusedBasicBlock, Bottleneck: FusedBottleneck}


def fuse(model: nn.Module) -> nn.Module:
    """Fuse the layers of one of timm's ResNets in place. Its parameters and buffers stay the same objects.

    Every BatchNorm is replaced, with the ReLU and the addition that follow it: in the stem, the blocks and the
    downsampling branches. Call this before the model is compiled or wrapped.

    Returns:
        The model.

    Raises:
        InputError: it is not a ResNet of timm, or has layers between BatchNorm and ReLU that are not known; then it is
            unchanged. The message is the end of a sentence about the model.
    """
    check_fusible(model)
    resnet: Any = model

    # The stem; with max pooling, or with a strided convolution in its place.
    for layers in (resnet.conv1, resnet.maxpool):
        if isinstance(layers, nn.Sequential):
            _fuse_sequence(layers)
    fuse_norm(resnet.bn1, relu=True)
    resnet.act1 = nn.Identity()

    # The blocks.
    for block in _blocks_of(model):
        _fuse_block(block)
    return model


def _fuse_block(block: Any) -> None:
    """Fuse the layers of a block, and give it the class whose `forward` leaves out the separate ones."""
    last = getattr(block, "bn3", block.bn2)
    for norm in (block.bn1, block.bn2, last):
        fuse_norm(norm, relu=norm is not last or _is_tail_fused(block))
    if block.downsample is not None:
        _fuse_sequence(block.downsample)
    block.__class__ = FUSED_BLOCKS[type(block)]


def check_fusible(model: nn.Module) -> None:
    """Check whether `fuse` knows all layers of a model.

    Raises:
        InputError: it does not.
    """
    if type(model) is not ResNet:
        raise InputError(f"which is of the class {type(model).__name__}")
    for block in _blocks_of(model):
        if type(block) not in FUSED_BLOCKS:
            raise InputError(f"which has blocks of the class {type(block).__name__}")
        if type(block.drop_block) is not nn.Identity:
            raise InputError("which has DropBlock")
    for name, layer in model.named_modules():
        if name.rpartition(".")[2] in ACTIVATIONS and type(layer) is not nn.ReLU:
            raise InputError(f"which has {type(layer).__name__} in place of ReLU")
    norms = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._NormBase)]
    for norm in norms:
        if type(norm) is not nn.BatchNorm2d or not norm.affine or not norm.track_running_stats or norm.momentum is None:
            raise InputError(f"which has {norm}, not a BatchNorm2d with affine, track_running_stats and a momentum")
    if type(model.bn1) is not nn.BatchNorm2d:
        raise InputError(f"which has {type(model.bn1).__name__}, not BatchNorm2d")


def _blocks_of(model: Any) -> Iterable[Any]:
    return (block for stage in (model.layer1, model.layer2, model.layer3, model.layer4) for block in stage)


def fuse_norm(norm: Any, *, relu: bool) -> FusedBatchNorm:
    """Make a BatchNorm2d a fused one in place, and return it."""
    norm.__class__ = FusedBatchNorm
    norm.relu = relu
    return norm


def _fuse_sequence(layers: nn.Sequential) -> None:
    """Fuse each BatchNorm of a sequence with the ReLU after it, if there is one."""
    for i, layer in enumerate(layers):
        if type(layer) is nn.BatchNorm2d:
            has_relu = i + 1 < len(layers) and type(layers[i + 1]) is nn.ReLU
            fuse_norm(layer, relu=has_relu)
            if has_relu:
                layers[i + 1] = nn.Identity()
