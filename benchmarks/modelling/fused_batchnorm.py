"""BatchNorm + ReLU (+ residual addition) for channels_last tensors in Triton: a prototype for measurements.

It answers one question: how much faster is a training step if BatchNorm, the addition and ReLU make fewer passes over
memory? Training does not use it. Compared with PyTorch's separate operations:

* the forward pass reads y twice and writes z once (statistics; then scale, shift, addition and ReLU in one pass);
* the backward pass derives ReLU's mask from y (with a residual: from z), so that no mask is stored.

y is the convolution's output [B, C, H, W] in channels_last, treated as a matrix of M = B*H*W rows and C channels, in
float32, bfloat16 or float16; all sums are float32. Running statistics equal PyTorch's except for float32 rounding.
`measure_errors` compares output, gradients and running statistics with PyTorch in float64.

On a CPU the kernels run in Triton's interpreter, which needs TRITON_INTERPRET=1 before Triton is imported. Loops are
`while` loops, because Triton 3.6's interpreter fails at the bounds of a range with numpy 2.5. For sm_90 they compile
to the same number of instructions as a range.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from train.step import AMP_TYPES

# Estimates, which were not tuned on a GPU.
CHANNELS = tl.constexpr(64)  # of a tile: a cache line of 128 bytes in bfloat16
ROWS = tl.constexpr(64)  # of a tile: 16 values for each thread of 8 warps, which fit into its registers
FINISHED_CHANNELS, FINISHED_SPLITS = tl.constexpr(16), tl.constexpr(128)  # of a tile of partial sums
LAUNCH: dict[str, Any] = {"num_warps": 8}
PROGRAMS_PER_PROCESSOR = 4  # of the kernels that sum
CPU_PROCESSORS = 64  # assumed in the interpreter, so that sums are split as on a GPU
LARGEST_INDEX = 2**31  # offsets are int32

# Kernels. Each sums a split of the rows for a block of channels, or adds up the splits, or writes one tile.


@triton.jit
def find_block(num_channels):
    """Return this program's number among those of the same channels, its channels, and which of these exist."""
    num_blocks = tl.cdiv(num_channels, CHANNELS)
    channels = (tl.program_id(0) % num_blocks) * CHANNELS + tl.arange(0, CHANNELS)
    return tl.program_id(0) // num_blocks, channels, channels < num_channels


@triton.jit
def index_tile(first_row, channels, num_rows, num_channels):
    """Return the offsets of a tile's values in the matrix, and which of them are inside it."""
    rows = first_row + tl.arange(0, ROWS)
    inside = (rows[:, None] < num_rows) & (channels < num_channels)[None, :]
    return rows[:, None] * num_channels + channels[None, :], inside


@triton.jit
def load(ptr, at, inside):
    """Return the values at these offsets in float32, 0 for those that are not inside."""
    return tl.load(ptr + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def load_statistics(table_ptr, num_channels, channels, is_channel):
    """Return mean, 1/std, scale and shift of the channels, each [1, C] for use with a tile."""
    mean = load(table_ptr, channels, is_channel)
    rstd = load(table_ptr + num_channels, channels, is_channel)
    scale = load(table_ptr + 2 * num_channels, channels, is_channel)
    shift = load(table_ptr + 3 * num_channels, channels, is_channel)
    return mean[None, :], rstd[None, :], scale[None, :], shift[None, :]


@triton.jit
def add_splits(sums_ptr, num_splits, num_channels, channels, is_channel):
    """Return the sum of one of the two halves of `sums` over the splits, for the given channels."""
    total = tl.zeros((FINISHED_SPLITS, FINISHED_CHANNELS), tl.float32)
    start = 0
    while start < num_splits:
        splits = start + tl.arange(0, FINISHED_SPLITS)
        inside = (splits[:, None] < num_splits) & is_channel[None, :]
        total += load(sums_ptr, splits[:, None] * num_channels + channels[None, :], inside)
        start += FINISHED_SPLITS
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=["num_rows", "rows_each", "num_splits"])
def sum_forward(y_ptr, sums_ptr, num_rows, num_channels, rows_each, num_splits):
    """Write the sums of y and of y*y over `rows_each` rows into sums [2, num_splits, C]."""
    split, channels, is_channel = find_block(num_channels)
    # Add up tile by tile; the rows of a tile are summed once, at the end.
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    squares = tl.zeros((ROWS, CHANNELS), tl.float32)
    start = split * rows_each
    while start < (split + 1) * rows_each:
        at, inside = index_tile(start, channels, num_rows, num_channels)
        y = load(y_ptr, at, inside)
        total += y
        squares += y * y
        start += ROWS
    to = sums_ptr + split * num_channels + channels
    tl.store(to, tl.sum(total, 0), mask=is_channel)
    tl.store(to + num_splits * num_channels, tl.sum(squares, 0), mask=is_channel)


@triton.jit(do_not_specialize=["num_rows", "num_splits", "momentum", "eps"])
def finish_forward(  # noqa: PLR0913, PLR0917  (Triton does not support dataclasses as arguments)
    sums_ptr,
    table_ptr,
    weight_ptr,
    bias_ptr,
    running_mean_ptr,
    running_var_ptr,
    num_batches_ptr,
    num_rows,
    num_channels,
    num_splits,
    momentum,
    eps,
):
    """Write mean, 1/std, scale and shift into table [4, C], and update the running statistics."""
    # Batch statistics, and the affine transform z = scale * y + shift that they give.
    channels = tl.program_id(0) * FINISHED_CHANNELS + tl.arange(0, FINISHED_CHANNELS)
    is_channel = channels < num_channels
    count = num_rows.to(tl.float32)
    total = add_splits(sums_ptr, num_splits, num_channels, channels, is_channel)
    squares = add_splits(sums_ptr + num_splits * num_channels, num_splits, num_channels, channels, is_channel)
    mean = total / count
    var = tl.maximum(squares / count - mean * mean, 0.0)
    rstd = 1.0 / tl.sqrt(var + eps)
    scale = load(weight_ptr, channels, is_channel) * rstd
    shift = load(bias_ptr, channels, is_channel) - mean * scale
    tl.store(table_ptr + channels, mean, mask=is_channel)
    tl.store(table_ptr + num_channels + channels, rstd, mask=is_channel)
    tl.store(table_ptr + 2 * num_channels + channels, scale, mask=is_channel)
    tl.store(table_ptr + 3 * num_channels + channels, shift, mask=is_channel)
    # Running statistics; as in PyTorch, the running variance is the unbiased one.
    old_mean = load(running_mean_ptr, channels, is_channel)
    old_var = load(running_var_ptr, channels, is_channel)
    unbiased = var * (count / (count - 1.0))
    tl.store(running_mean_ptr + channels, old_mean + momentum * (mean - old_mean), mask=is_channel)
    tl.store(running_var_ptr + channels, old_var + momentum * (unbiased - old_var), mask=is_channel)
    if tl.program_id(0) == 0:
        tl.store(num_batches_ptr, tl.load(num_batches_ptr) + 1)


@triton.jit(do_not_specialize=["num_rows"])
def apply_forward(  # noqa: PLR0913, PLR0917
    y_ptr, residual_ptr, z_ptr, table_ptr, num_rows, num_channels, HAS_RESIDUAL: tl.constexpr, RELU: tl.constexpr
):
    """Write one tile of z = relu(scale * y + shift + residual)."""
    row_block, channels, is_channel = find_block(num_channels)
    scale = load(table_ptr + 2 * num_channels, channels, is_channel)
    shift = load(table_ptr + 3 * num_channels, channels, is_channel)
    at, inside = index_tile(row_block * ROWS, channels, num_rows, num_channels)
    z = load(y_ptr, at, inside) * scale[None, :] + shift[None, :]
    if HAS_RESIDUAL:
        z += load(residual_ptr, at, inside)
    if RELU:
        z = tl.maximum(z, 0.0)
    tl.store(z_ptr + at, z.to(z_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_rows", "rows_each", "num_splits"])
def sum_backward(  # noqa: PLR0913, PLR0917
    dz_ptr,
    y_ptr,
    z_ptr,
    masked_ptr,
    table_ptr,
    sums_ptr,
    num_rows,
    num_channels,
    rows_each,
    num_splits,
    HAS_RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
):
    """Write the sums of g and of g * normalized y into sums [2, num_splits, C]; g is dz with ReLU's mask applied.

    With a residual, g is the residual's gradient and is written to `masked`.
    """
    split, channels, is_channel = find_block(num_channels)
    mean, rstd, scale, shift = load_statistics(table_ptr, num_channels, channels, is_channel)
    # Add up tile by tile. ReLU's mask comes from z with a residual, else from y.
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    products = tl.zeros((ROWS, CHANNELS), tl.float32)
    start = split * rows_each
    while start < (split + 1) * rows_each:
        at, inside = index_tile(start, channels, num_rows, num_channels)
        g = load(dz_ptr, at, inside)
        y = load(y_ptr, at, inside)
        if RELU:
            if HAS_RESIDUAL:
                g = tl.where(load(z_ptr, at, inside) > 0.0, g, 0.0)
            else:
                g = tl.where(y * scale + shift > 0.0, g, 0.0)
        if HAS_RESIDUAL:
            tl.store(masked_ptr + at, g.to(masked_ptr.dtype.element_ty), mask=inside)
        total += g
        products += g * ((y - mean) * rstd)
        start += ROWS
    to = sums_ptr + split * num_channels + channels
    tl.store(to, tl.sum(total, 0), mask=is_channel)
    tl.store(to + num_splits * num_channels, tl.sum(products, 0), mask=is_channel)


@triton.jit(do_not_specialize=["num_splits"])
def finish_backward(sums_ptr, gradients_ptr, num_channels, num_splits):
    """Write the gradients of bias and weight into gradients [2, C]."""
    channels = tl.program_id(0) * FINISHED_CHANNELS + tl.arange(0, FINISHED_CHANNELS)
    is_channel = channels < num_channels
    bias = add_splits(sums_ptr, num_splits, num_channels, channels, is_channel)
    weight = add_splits(sums_ptr + num_splits * num_channels, num_splits, num_channels, channels, is_channel)
    tl.store(gradients_ptr + channels, bias, mask=is_channel)
    tl.store(gradients_ptr + num_channels + channels, weight, mask=is_channel)


@triton.jit(do_not_specialize=["num_rows"])
def apply_backward(  # noqa: PLR0913, PLR0917
    g_ptr, y_ptr, dy_ptr, table_ptr, gradients_ptr, num_rows, num_channels, MASK: tl.constexpr
):
    """Write one tile of dy = scale * (g - mean(g) - normalized y * mean(g * normalized y)).

    With MASK, g_ptr is dz, and this kernel applies ReLU's mask.
    """
    row_block, channels, is_channel = find_block(num_channels)
    mean, rstd, scale, shift = load_statistics(table_ptr, num_channels, channels, is_channel)
    count = num_rows.to(tl.float32)
    mean_g = load(gradients_ptr, channels, is_channel) / count
    mean_product = load(gradients_ptr + num_channels, channels, is_channel) / count
    at, inside = index_tile(row_block * ROWS, channels, num_rows, num_channels)
    g = load(g_ptr, at, inside)
    y = load(y_ptr, at, inside)
    if MASK:
        g = tl.where(y * scale + shift > 0.0, g, 0.0)
    dy = scale * (g - mean_g[None, :] - (y - mean) * rstd * mean_product[None, :])
    tl.store(dy_ptr + at, dy.to(dy_ptr.dtype.element_ty), mask=inside)


# The layer.


@dataclass(frozen=True)
class Grid:
    """The division of a matrix among programs."""

    tiles: tuple[int]  # programs of the kernels that write one tile each
    sums: tuple[int]  # programs of the kernels that sum
    ends: tuple[int]  # programs of the kernels that add up the partial sums
    num_splits: int  # of the rows, for the kernels that sum
    rows_each: int  # rows per split, a multiple of ROWS


def make_grid(num_rows: int, num_channels: int, num_processors: int) -> Grid:
    """Divide the rows so that the kernels that sum have about PROGRAMS_PER_PROCESSOR programs per multiprocessor."""
    num_blocks = triton.cdiv(num_channels, CHANNELS.value)
    num_tiles = triton.cdiv(num_rows, ROWS.value)
    wanted = max(1, min(num_tiles, num_processors * PROGRAMS_PER_PROCESSOR // num_blocks))
    tiles_each = triton.cdiv(num_tiles, wanted)
    num_splits = triton.cdiv(num_tiles, tiles_each)
    ends = triton.cdiv(num_channels, FINISHED_CHANNELS.value)
    return Grid((num_tiles * num_blocks,), (num_splits * num_blocks,), (ends,), num_splits, tiles_each * ROWS.value)


@cache
def count_processors(device: torch.device) -> int:
    """Return the device's number of multiprocessors."""
    if device.type != "cuda":
        return CPU_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


class FusedFunction(torch.autograd.Function):
    """z = relu(batch_norm(y) + residual) with the gradients of y, weight, bias and residual."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, residual: torch.Tensor | None, layer: "FusedBatchNorm", *parameters: Any):
        """Return z; `parameters` are the layer's weight and bias [C], float32, passed so that autograd sees them."""
        batch_size, num_channels, height, width = y.shape
        size = num_rows, _ = batch_size * height * width, num_channels
        assert num_rows > 1, "the variance of one value per channel is not defined"
        assert num_rows * num_channels < LARGEST_INDEX
        y = y.contiguous(memory_format=torch.channels_last)
        added = y if residual is None else residual.contiguous(memory_format=torch.channels_last)
        grid = make_grid(*size, count_processors(y.device))
        sums = torch.empty(2, grid.num_splits, num_channels, device=y.device)
        table = torch.empty(4, num_channels, device=y.device)  # mean, 1/std, scale, shift
        z = torch.empty_like(y)

        # Three kernels: partial sums; statistics; the output in one pass.
        sum_forward[grid.sums](y, sums, *size, grid.rows_each, grid.num_splits, **LAUNCH)
        weight, bias = parameters
        state = (weight, bias, layer.running_mean, layer.running_var, layer.num_batches_tracked)
        numbers = (*size, grid.num_splits, layer.momentum, layer.eps)
        finish_forward[grid.ends](sums, table, *state, *numbers, **LAUNCH)
        flags: tuple[Any, Any] = (residual is not None, layer.relu)
        apply_forward[grid.tiles](y, added, z, table, *size, *flags, **LAUNCH)

        # The backward pass derives ReLU's mask from z if there is a residual, else from y: then z is not kept.
        ctx.save_for_backward(y, z if all(flags) else y, table)
        ctx.grid, ctx.size, ctx.flags = grid, size, flags
        return z

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor):
        """Return the gradients of y, residual, layer, weight and bias."""
        y, z, table = ctx.saved_tensors
        (num_rows, num_channels), (has_residual, relu), grid = ctx.size, ctx.flags, ctx.grid
        dz = gradients[0].contiguous(memory_format=torch.channels_last)
        masked = torch.empty_like(y) if has_residual else dz
        sums = torch.empty(2, grid.num_splits, num_channels, device=y.device)
        ends = torch.empty(2, num_channels, device=y.device)  # of bias, of weight
        dy = torch.empty_like(y)
        size, splits = (num_rows, num_channels), (grid.rows_each, grid.num_splits)
        sum_backward[grid.sums](dz, y, z, masked, table, sums, *size, *splits, has_residual, relu, **LAUNCH)
        finish_backward[grid.ends](sums, ends, num_channels, grid.num_splits, **LAUNCH)
        mask: Any = relu and not has_residual
        apply_backward[grid.tiles](masked, y, dy, table, ends, *size, mask, **LAUNCH)
        return dy, masked if has_residual else None, None, ends[1], ends[0]


class FusedBatchNorm(nn.BatchNorm2d):
    """BatchNorm2d that in training mode adds a residual and applies ReLU in the same passes."""

    relu = True

    @classmethod
    def from_layer(cls, layer: nn.BatchNorm2d, *, relu: bool) -> "FusedBatchNorm":
        """Return a fused layer that shares a layer's parameters and running statistics."""
        fused = cls(layer.num_features, layer.eps, layer.momentum, device="meta")
        fused.relu = relu
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            setattr(fused, name, getattr(layer, name))
        return fused.train(layer.training)

    def forward(self, input: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Return relu(batch_norm(input) + residual), images [B, C, H, W]."""
        if self.training:
            return FusedFunction.apply(input, residual, self, self.weight, self.bias)  # pyright: ignore
        z = super().forward(input)
        z = z if residual is None else z + residual
        return torch.relu(z) if self.relu else z


# Networks of timm with the layer.


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


# The check.

# Shape, whether ReLU follows, whether a residual is added. Few and many channels, a number of channels that is not a
# multiple of a tile; sums in one part and in several, and more parts than one tile adds up.
Trial = tuple[tuple[int, int, int, int], bool, bool]
TRIALS: tuple[Trial, ...] = (
    ((4, 64, 28, 28), True, False),
    ((4, 64, 28, 28), True, True),
    ((3, 96, 7, 5), True, True),
    ((8, 256, 7, 7), False, False),
    ((2, 512, 3, 3), False, True),
    ((2, 16, 72, 64), True, False),
)
Build = Callable[..., nn.Module]  # build(layer, relu=...) returns the layer to check, with the same parameters
ROUNDED = ("output", "input gradient", "residual gradient")  # in the images' type; the others are float32
LARGEST_ERROR = 1e-4  # of quantities that are summed in float32
CLEAR = 1e-3  # from this distance from zero on, ReLU's mask does not depend on rounding


def measure_errors(amp: str, device: torch.device, build: Build = FusedBatchNorm.from_layer) -> dict[str, Any]:
    """Return the largest error of each quantity over all trials, and its limit.

    An error is the norm of the difference from float64, divided by the norm of the float64 result.
    """
    dtype, errors = AMP_TYPES[amp], {}
    for number, trial in enumerate(TRIALS):
        torch.manual_seed(number)
        for name, error in compare_with_float64(trial, dtype, device, build).items():
            errors[name] = max(errors.get(name, 0.0), error)
    rounding = max(torch.finfo(dtype).eps, LARGEST_ERROR)
    limits = {name: rounding if name in ROUNDED else LARGEST_ERROR for name in errors}
    return {"errors": errors, "limits": limits, "type": str(dtype).removeprefix("torch.")}


def compare_with_float64(trial: Trial, dtype: torch.dtype, device: torch.device, build: Build) -> dict[str, float]:
    """Return the error of each quantity, for one trial with random inputs that are exact in `dtype`."""
    # Two layers with the same random parameters: float64, and the one to check. The inputs are drawn on the CPU, so
    # all devices get the same.
    shape_BCHW, relu, has_residual = trial
    reference = nn.BatchNorm2d(shape_BCHW[1]).train()
    nn.init.normal_(reference.weight)
    nn.init.normal_(reference.bias)
    layer = build(copy.deepcopy(reference).to(device), relu=relu)
    reference = reference.double()

    def draw() -> torch.Tensor:
        return torch.randn(shape_BCHW).to(dtype)

    inputs = [draw().mul(2).add(1), *([draw()] if has_residual else [])]  # the records' inputs are rounded first too
    inputs = [each.contiguous(memory_format=torch.channels_last) for each in inputs]

    # The reference. The loss is a randomly weighted sum of the outputs, so that each output has a different gradient.
    # Outputs near ReLU's kink get weight 0, because rounding decides about their gradient.
    exact_inputs = [each.double().requires_grad_() for each in inputs]
    before = reference(exact_inputs[0])
    before = before + exact_inputs[1] if has_residual else before
    weights = torch.where(before.detach().abs() > CLEAR, draw().double(), 0.0)
    exact = before.relu() if relu else before
    exact.backward(weights)

    # The checked layer, with the same inputs and weights in its own type.
    inputs = [each.to(device).requires_grad_() for each in inputs]
    output = layer(*inputs)
    output.backward(weights.to(dtype).to(device))
    pairs: dict[str, tuple[Any, Any]] = {
        "output": (output, exact),
        "weight gradient": (layer.weight.grad, reference.weight.grad),
        "bias gradient": (layer.bias.grad, reference.bias.grad),
        "running mean": (layer.running_mean, reference.running_mean),
        "running variance": (layer.running_var, reference.running_var),
        "batches tracked": (layer.num_batches_tracked, reference.num_batches_tracked),
    }
    for name, found, wanted in zip(("input gradient", "residual gradient"), inputs, exact_inputs, strict=False):
        pairs[name] = (found.grad, wanted.grad)
    return {name: _relative_error(found, wanted) for name, (found, wanted) in pairs.items()}


def _relative_error(found: torch.Tensor | None, wanted: torch.Tensor) -> float:
    if found is None:
        return math.inf
    found, wanted = found.detach().double().cpu(), wanted.detach().double()
    return ((found - wanted).norm() / wanted.norm()).item()
