"""BatchNorm + ReLU (+ residual addition) for channels_last tensors in Triton: a prototype for measurements.

It answers one question: how much faster is a training step if BatchNorm, the addition and ReLU make fewer passes over
memory? Training does not use it. Compared with PyTorch's separate operations:

* the forward pass reads y twice and writes z once (statistics; then scale, shift, addition and ReLU in one pass);
* the backward pass derives ReLU's mask from y (with a residual: from z), so that no mask is stored.

y is the convolution's output [B, C, H, W] in channels_last, treated as a matrix of M = B*H*W rows and C channels, in
float32, bfloat16 or float16; all sums are float32. Running statistics equal PyTorch's except for float32 rounding.
Tile sizes and numbers of programs are estimates: they were not tuned on a GPU.

On a CPU the kernels run in Triton's interpreter, which needs TRITON_INTERPRET=1 before Triton is imported. Loops are
`while` loops, because Triton 3.6's interpreter fails at the bounds of a range with numpy 2.5. For sm_90 they compile
to the same number of instructions as a range.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import nn

CHANNELS_AT_ONCE = 64  # per tile: a cache line of 128 bytes in bfloat16
ROWS_AT_ONCE = 64  # per tile: 16 values for each thread of 8 warps, which fit into its registers
NUM_WARPS = 8
CHANNELS_TO_FINISH, SPLITS_TO_FINISH = 16, 128  # per tile of the kernels that add up the partial sums
PROGRAMS_PER_PROCESSOR = 4  # of the kernels that sum
CPU_PROCESSORS = 64  # assumed in the interpreter, so that sums are split as on a GPU
LARGEST_INDEX = 2**31  # offsets are int32


# The kernels have many parameters because Triton does not support dataclasses as arguments.
@triton.jit(do_not_specialize=["num_rows", "rows_each", "num_splits"])
def sum_forward(  # noqa: PLR0913, PLR0917
    y_ptr, sums_ptr, num_rows, num_channels, rows_each, num_splits, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    """Write the sums of y and of y*y over `rows_each` rows into sums [2, num_splits, C]."""
    # This program's split of the rows and block of the channels.
    num_blocks = tl.cdiv(num_channels, CHANNELS)
    split = tl.program_id(0) // num_blocks
    channels = (tl.program_id(0) % num_blocks) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channels < num_channels
    # Add up tile by tile; the rows of a tile are summed once, at the end.
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    squares = tl.zeros((ROWS, CHANNELS), tl.float32)
    start = split * rows_each
    while start < (split + 1) * rows_each:
        rows = start + tl.arange(0, ROWS)
        inside = (rows[:, None] < num_rows) & is_channel[None, :]
        y = tl.load(y_ptr + rows[:, None] * num_channels + channels[None, :], mask=inside, other=0.0).to(tl.float32)
        total += y
        squares += y * y
        start += ROWS
    to = split * num_channels + channels
    tl.store(sums_ptr + to, tl.sum(total, 0), mask=is_channel)
    tl.store(sums_ptr + num_splits * num_channels + to, tl.sum(squares, 0), mask=is_channel)


@triton.jit
def add_splits(sums_ptr, channels, is_channel, num_splits, num_channels, SPLITS: tl.constexpr):
    """Return the sum of one of the two halves of `sums` over the splits, for the given channels."""
    total = tl.zeros((SPLITS, channels.shape[0]), tl.float32)
    start = 0
    while start < num_splits:
        splits = start + tl.arange(0, SPLITS)
        inside = (splits[:, None] < num_splits) & is_channel[None, :]
        total += tl.load(sums_ptr + splits[:, None] * num_channels + channels[None, :], mask=inside, other=0.0)
        start += SPLITS
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=["num_rows", "num_splits", "momentum", "eps"])
def finish_forward(  # noqa: PLR0913, PLR0917
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
    SPLITS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Write mean, 1/std, scale and shift into table [4, C], and update the running statistics."""
    # Batch statistics, and the affine transform z = scale * y + shift that they give.
    channels = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channels < num_channels
    count = num_rows.to(tl.float32)
    total = add_splits(sums_ptr, channels, is_channel, num_splits, num_channels, SPLITS)
    squares = add_splits(sums_ptr + num_splits * num_channels, channels, is_channel, num_splits, num_channels, SPLITS)
    mean = total / count
    var = tl.maximum(squares / count - mean * mean, 0.0)
    rstd = 1.0 / tl.sqrt(var + eps)
    scale = tl.load(weight_ptr + channels, mask=is_channel, other=0.0) * rstd
    shift = tl.load(bias_ptr + channels, mask=is_channel, other=0.0) - mean * scale
    tl.store(table_ptr + channels, mean, mask=is_channel)
    tl.store(table_ptr + num_channels + channels, rstd, mask=is_channel)
    tl.store(table_ptr + 2 * num_channels + channels, scale, mask=is_channel)
    tl.store(table_ptr + 3 * num_channels + channels, shift, mask=is_channel)
    # Running statistics; as in PyTorch, the running variance is the unbiased one.
    old_mean = tl.load(running_mean_ptr + channels, mask=is_channel, other=0.0)
    old_var = tl.load(running_var_ptr + channels, mask=is_channel, other=0.0)
    unbiased = var * (count / (count - 1.0))
    tl.store(running_mean_ptr + channels, old_mean + momentum * (mean - old_mean), mask=is_channel)
    tl.store(running_var_ptr + channels, old_var + momentum * (unbiased - old_var), mask=is_channel)
    if tl.program_id(0) == 0:
        tl.store(num_batches_ptr, tl.load(num_batches_ptr) + 1)


@triton.jit(do_not_specialize=["num_rows"])
def apply_forward(  # noqa: PLR0913, PLR0917
    y_ptr,
    residual_ptr,
    z_ptr,
    table_ptr,
    num_rows,
    num_channels,
    HAS_RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Write one tile of z = relu(scale * y + shift + residual)."""
    num_blocks = tl.cdiv(num_channels, CHANNELS)
    rows = (tl.program_id(0) // num_blocks) * ROWS + tl.arange(0, ROWS)
    channels = (tl.program_id(0) % num_blocks) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channels < num_channels
    scale = tl.load(table_ptr + 2 * num_channels + channels, mask=is_channel, other=0.0)
    shift = tl.load(table_ptr + 3 * num_channels + channels, mask=is_channel, other=0.0)
    at = rows[:, None] * num_channels + channels[None, :]
    inside = (rows[:, None] < num_rows) & is_channel[None, :]
    z = tl.load(y_ptr + at, mask=inside, other=0.0).to(tl.float32) * scale[None, :] + shift[None, :]
    if HAS_RESIDUAL:
        z += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
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
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Write the sums of g and of g * normalized y into sums [2, num_splits, C]; g is dz with ReLU's mask applied.

    With a residual, g is the residual's gradient and is written to `masked`.
    """
    # This program's split of the rows and block of the channels, and the channels' statistics.
    num_blocks = tl.cdiv(num_channels, CHANNELS)
    split = tl.program_id(0) // num_blocks
    channels = (tl.program_id(0) % num_blocks) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channels < num_channels
    mean = tl.load(table_ptr + channels, mask=is_channel, other=0.0)
    rstd = tl.load(table_ptr + num_channels + channels, mask=is_channel, other=0.0)
    scale = tl.load(table_ptr + 2 * num_channels + channels, mask=is_channel, other=0.0)
    shift = tl.load(table_ptr + 3 * num_channels + channels, mask=is_channel, other=0.0)
    # Add up tile by tile. ReLU's mask comes from z with a residual, else from y.
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    products = tl.zeros((ROWS, CHANNELS), tl.float32)
    start = split * rows_each
    while start < (split + 1) * rows_each:
        rows = start + tl.arange(0, ROWS)
        at = rows[:, None] * num_channels + channels[None, :]
        inside = (rows[:, None] < num_rows) & is_channel[None, :]
        g = tl.load(dz_ptr + at, mask=inside, other=0.0).to(tl.float32)
        y = tl.load(y_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if RELU:
            if HAS_RESIDUAL:
                g = tl.where(tl.load(z_ptr + at, mask=inside, other=0.0).to(tl.float32) > 0.0, g, 0.0)
            else:
                g = tl.where(y * scale[None, :] + shift[None, :] > 0.0, g, 0.0)
        if HAS_RESIDUAL:
            tl.store(masked_ptr + at, g.to(masked_ptr.dtype.element_ty), mask=inside)
        total += g
        products += g * ((y - mean[None, :]) * rstd[None, :])
        start += ROWS
    to = split * num_channels + channels
    tl.store(sums_ptr + to, tl.sum(total, 0), mask=is_channel)
    tl.store(sums_ptr + num_splits * num_channels + to, tl.sum(products, 0), mask=is_channel)


@triton.jit(do_not_specialize=["num_splits"])
def finish_backward(sums_ptr, gradients_ptr, num_channels, num_splits, SPLITS: tl.constexpr, CHANNELS: tl.constexpr):
    """Write the gradients of bias and weight into gradients [2, C]."""
    channels = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channels < num_channels
    bias = add_splits(sums_ptr, channels, is_channel, num_splits, num_channels, SPLITS)
    weight = add_splits(sums_ptr + num_splits * num_channels, channels, is_channel, num_splits, num_channels, SPLITS)
    tl.store(gradients_ptr + channels, bias, mask=is_channel)
    tl.store(gradients_ptr + num_channels + channels, weight, mask=is_channel)


@triton.jit(do_not_specialize=["num_rows"])
def apply_backward(  # noqa: PLR0913, PLR0917
    g_ptr,
    y_ptr,
    dy_ptr,
    table_ptr,
    gradients_ptr,
    num_rows,
    num_channels,
    MASK: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Write one tile of dy = scale * (g - mean(g) - normalized y * mean(g * normalized y)).

    With MASK, g_ptr is dz, and this kernel applies ReLU's mask.
    """
    # This program's rows and channels, and the channels' statistics and means.
    num_blocks = tl.cdiv(num_channels, CHANNELS)
    rows = (tl.program_id(0) // num_blocks) * ROWS + tl.arange(0, ROWS)
    channels = (tl.program_id(0) % num_blocks) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channels < num_channels
    count = num_rows.to(tl.float32)
    mean = tl.load(table_ptr + channels, mask=is_channel, other=0.0)
    rstd = tl.load(table_ptr + num_channels + channels, mask=is_channel, other=0.0)
    scale = tl.load(table_ptr + 2 * num_channels + channels, mask=is_channel, other=0.0)
    shift = tl.load(table_ptr + 3 * num_channels + channels, mask=is_channel, other=0.0)
    mean_g = tl.load(gradients_ptr + channels, mask=is_channel, other=0.0) / count
    mean_product = tl.load(gradients_ptr + num_channels + channels, mask=is_channel, other=0.0) / count
    # The tile.
    at = rows[:, None] * num_channels + channels[None, :]
    inside = (rows[:, None] < num_rows) & is_channel[None, :]
    g = tl.load(g_ptr + at, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(y_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if MASK:
        g = tl.where(y * scale[None, :] + shift[None, :] > 0.0, g, 0.0)
    normalized = (y - mean[None, :]) * rstd[None, :]
    dy = scale[None, :] * (g - mean_g[None, :] - normalized * mean_product[None, :])
    tl.store(dy_ptr + at, dy.to(dy_ptr.dtype.element_ty), mask=inside)


@dataclass(frozen=True)
class Grid:
    """The division of a matrix of rows and channels among programs."""

    num_rows: int
    num_channels: int
    num_splits: int  # of the rows, for the kernels that sum
    rows_each: int  # rows per split, a multiple of ROWS_AT_ONCE

    @property
    def tiles(self) -> tuple[int]:
        """Programs of the kernels that process one tile each."""
        return (triton.cdiv(self.num_rows, ROWS_AT_ONCE) * triton.cdiv(self.num_channels, CHANNELS_AT_ONCE),)

    @property
    def sums(self) -> tuple[int]:
        """Programs of the kernels that sum."""
        return (self.num_splits * triton.cdiv(self.num_channels, CHANNELS_AT_ONCE),)

    @property
    def ends(self) -> tuple[int]:
        """Programs of the kernels that add up the partial sums."""
        return (triton.cdiv(self.num_channels, CHANNELS_TO_FINISH),)


def make_grid(num_rows: int, num_channels: int, num_processors: int) -> Grid:
    """Divide the rows so that the kernels that sum have about PROGRAMS_PER_PROCESSOR programs per multiprocessor."""
    num_blocks = triton.cdiv(num_channels, CHANNELS_AT_ONCE)
    num_tiles = triton.cdiv(num_rows, ROWS_AT_ONCE)
    wanted = max(1, min(num_tiles, num_processors * PROGRAMS_PER_PROCESSOR // num_blocks))
    tiles_each = triton.cdiv(num_tiles, wanted)
    return Grid(num_rows, num_channels, triton.cdiv(num_tiles, tiles_each), tiles_each * ROWS_AT_ONCE)


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
        weight, bias = parameters
        batch_size, num_channels, height, width = y.shape
        num_rows = batch_size * height * width
        assert num_rows > 1, "the variance of one value per channel is not defined"
        assert num_rows * num_channels < LARGEST_INDEX
        y = y.contiguous(memory_format=torch.channels_last)
        residual = None if residual is None else residual.contiguous(memory_format=torch.channels_last)

        # Allocate the partial sums, the table of statistics, and the output.
        grid = make_grid(num_rows, num_channels, count_processors(y.device))
        tile: dict[str, Any] = {"ROWS": ROWS_AT_ONCE, "CHANNELS": CHANNELS_AT_ONCE, "num_warps": NUM_WARPS}
        end: dict[str, Any] = {"SPLITS": SPLITS_TO_FINISH, "CHANNELS": CHANNELS_TO_FINISH, "num_warps": NUM_WARPS}
        sums = torch.empty(2, grid.num_splits, num_channels, device=y.device)
        table = torch.empty(4, num_channels, device=y.device)  # mean, 1/std, scale, shift
        z = torch.empty_like(y)

        # Three kernels: partial sums; statistics; the output in one pass.
        sum_forward[grid.sums](y, sums, num_rows, num_channels, grid.rows_each, grid.num_splits, **tile)
        weights = (weight, bias, layer.running_mean, layer.running_var, layer.num_batches_tracked)
        settings = (layer.momentum, layer.eps)
        finish_forward[grid.ends](sums, table, *weights, num_rows, num_channels, grid.num_splits, *settings, **end)
        flags: dict[str, Any] = {"HAS_RESIDUAL": residual is not None, "RELU": layer.relu}
        apply_forward[grid.tiles](
            y, y if residual is None else residual, z, table, num_rows, num_channels, **flags, **tile
        )

        # The backward pass derives ReLU's mask from z if there is a residual, else from y: then z is not kept.
        ctx.save_for_backward(y, z if layer.relu and residual is not None else y, table)
        ctx.grid, ctx.flags, ctx.tile, ctx.end = grid, flags, tile, end
        return z

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor):
        """Return the gradients of y, residual, layer, weight and bias."""
        y, z, table = ctx.saved_tensors
        grid, flags, has_residual = ctx.grid, ctx.flags, ctx.flags["HAS_RESIDUAL"]
        size = (grid.num_rows, grid.num_channels)
        dz = gradients[0].contiguous(memory_format=torch.channels_last)
        masked = torch.empty_like(y) if has_residual else dz
        sums = torch.empty(2, grid.num_splits, grid.num_channels, device=y.device)
        ends = torch.empty(2, grid.num_channels, device=y.device)  # of bias, of weight
        dy = torch.empty_like(y)
        sum_backward[grid.sums](
            dz, y, z, masked, table, sums, *size, grid.rows_each, grid.num_splits, **flags, **ctx.tile
        )
        finish_backward[grid.ends](sums, ends, grid.num_channels, grid.num_splits, **ctx.end)
        mask = {"MASK": flags["RELU"] and not has_residual}
        apply_backward[grid.tiles](masked, y, dy, table, ends, *size, **mask, **ctx.tile)
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
