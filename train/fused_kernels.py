"""BatchNorm + ReLU (+ residual addition) for channels_last tensors: the Triton kernels, and their launches.

Import this module only where Triton is installed; `train/fused.py` has the layer and says when the kernels are used.

y is a convolution's output [B, C, H, W] in channels_last, treated as a matrix of M = B*H*W rows and C channels. Per
channel, with mean and variance over the rows:

    z  = relu((y - mean) * scale + bias + residual)            scale = weight / sqrt(variance + eps)
    g  = dz where z > 0, else 0                                 also the residual's gradient
    dy = scale * (g - mean(g) - y_hat * mean(g * y_hat))        y_hat = (y - mean) / sqrt(variance + eps)

(S. Ioffe and C. Szegedy, arXiv 1502.03167, section 3.) Each direction makes two passes over memory:

    forward   sum_forward reads y;                    finish_forward;   apply_forward reads y, residual; writes z
    backward  sum_backward reads dz, y (z); writes g; finish_backward;  apply_backward reads g, y; writes dy

So each value is read or written 3 times forward and 5 times backward, where PyTorch's separate operations take 5 and 8;
with a residual 4 and 7 instead of 8 and 8. `finish_*` read only the partial sums. No mask is stored: the backward pass
computes it again from y, or reads it from z if there was a residual. Without a residual g is not stored either.

All arithmetic is float32 for float32, bfloat16 and float16 tensors. The variance is Welford's (B. P. Welford, 1962):
the sum of squares less the squared sum would lose all digits where a channel's mean is large compared with its spread.
No kernel uses atomics, so that equal inputs give equal bits. For float64 tensors the arithmetic is float64, for tests.

A kernel is compiled for the types, the flags, and channels that are a multiple of 16 or not. Another batch size or
resolution needs no new one, except above 2**31 values. Loops are `while` loops: Triton 3.6's interpreter fails at a
range's bounds with numpy 2.5.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

# Estimates; they were not tuned on a GPU.
CHANNELS = tl.constexpr(64)  # of a tile: a cache line of 128 bytes in bfloat16
ROWS = tl.constexpr(64)  # of a tile: 16 values for each thread of 8 warps, which fit into its registers
FINISHED_CHANNELS, FINISHED_SPLITS = tl.constexpr(16), tl.constexpr(128)  # of a tile of partial sums
# Products and sums in one instruction (FMA): Triton 3.9 warns unless it is said, 3.10 changes the default.
LAUNCH: dict[str, Any] = {"num_warps": 8, "enable_fp_fusion": True}
PROGRAMS_PER_PROCESSOR = 4  # of the kernels that sum
CPU_PROCESSORS = 64  # assumed in the interpreter, so that sums are split as on a GPU
FIRST_WIDE = 2**31  # values in a tensor, from which on offsets are int64
MEAN, RSTD, SCALE, BIAS = (tl.constexpr(row) for row in range(4))  # rows of the table of statistics [4, C]
NUM_STATISTICS = 4


# What several kernels do.


@triton.jit
def find_block(num_channels):
    """Return this program's index along the rows, its channels, and a mask of the channels that exist."""
    num_blocks = tl.cdiv(num_channels, CHANNELS)
    channels = (tl.program_id(0) % num_blocks) * CHANNELS + tl.arange(0, CHANNELS)
    return tl.program_id(0) // num_blocks, channels, channels < num_channels


@triton.jit
def index_tile(first_row, channels, num_rows, num_channels, WIDE: tl.constexpr):
    """Return the offsets of a tile's values in the matrix, and which of them are inside it."""
    rows = first_row + tl.arange(0, ROWS)
    inside = (rows[:, None] < num_rows) & (channels < num_channels)[None, :]
    if WIDE:
        rows = rows.to(tl.int64)
    return rows[:, None] * num_channels + channels[None, :], inside


@triton.jit
def load(ptr, at, inside, ACC: tl.constexpr):
    """Return the values at these offsets in the type of the arithmetic, 0 for those that are not inside."""
    return tl.load(ptr + at, mask=inside, other=0.0).to(ACC)


@triton.jit
def load_statistic(table_ptr, row, num_channels, channels, is_channel):
    """Return one row of the table for these channels, [1, C] for use with a tile."""
    return tl.load(table_ptr + row * num_channels + channels, mask=is_channel, other=0.0)[None, :]


@triton.jit
def is_masked(output):
    """Return True where ReLU's output is 0. NaN is not masked: as in PyTorch, it passes forward and backward."""
    return output <= 0.0


@triton.jit
def load_splits(sums_ptr, start, num_splits, num_channels, channels, is_channel):
    """Return a tile of partial results of consecutive splits [S, C], and the numbers of these splits."""
    splits = start + tl.arange(0, FINISHED_SPLITS)
    inside = (splits[:, None] < num_splits) & is_channel[None, :]
    return tl.load(sums_ptr + splits[:, None] * num_channels + channels[None, :], mask=inside, other=0.0), splits


@triton.jit
def count_rows(splits, rows_each, num_rows):
    """Return the number of rows of each split; only the last one may have fewer, and numbers after it have none."""
    return tl.maximum(tl.minimum(num_rows - splits * rows_each, rows_each), 0)


# Forward.


@triton.jit(do_not_specialize=["num_rows", "rows_each", "num_splits"])
def sum_forward(  # noqa: PLR0913, PLR0917  (Triton does not support dataclasses as arguments)
    y_ptr, sums_ptr, num_rows, num_channels, rows_each, num_splits, ACC: tl.constexpr, WIDE: tl.constexpr
):
    """Write mean and squared deviations of y over a split of `rows_each` rows into sums [2, num_splits, C]."""
    split, channels, is_channel = find_block(num_channels)
    first = split * rows_each
    end = tl.minimum(first + rows_each, num_rows)

    # Welford's update, for each place of the tile on its own: its mean and squared deviations over the tiles so far.
    mean = tl.zeros((ROWS, CHANNELS), ACC)
    deviations = tl.zeros((ROWS, CHANNELS), ACC)
    num_tiles = tl.zeros((1, 1), ACC)
    start = first
    while start < end:
        at, inside = index_tile(start, channels, num_rows, num_channels, WIDE)
        y = load(y_ptr, at, inside, ACC)
        num_tiles += 1.0
        share = 1.0 / num_tiles
        delta = tl.where(inside, y - mean, 0.0)
        mean += delta * share
        deviations += delta * (y - mean)
        start += ROWS

    # Combine the places (T. F. Chan et al., 1983). Places after the last row have seen one tile less than the others.
    num_seen = ((end - first - tl.arange(0, ROWS) + ROWS - 1) // ROWS).to(ACC)[:, None]
    split_mean = tl.sum(num_seen * mean, 0) / (end - first).to(ACC)
    apart = mean - split_mean[None, :]
    to = sums_ptr + split * num_channels + channels
    tl.store(to, split_mean, mask=is_channel)
    tl.store(to + num_splits * num_channels, tl.sum(deviations + num_seen * apart * apart, 0), mask=is_channel)


@triton.jit(do_not_specialize=["num_rows", "rows_each", "num_splits", "momentum", "eps"])
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
    rows_each,
    num_splits,
    momentum,
    eps,
    ACC: tl.constexpr,
):
    """Combine the splits, write the table [4, C] of mean, 1/std, scale and bias, and update the running statistics."""
    channels = tl.program_id(0) * FINISHED_CHANNELS + tl.arange(0, FINISHED_CHANNELS)
    is_channel = channels < num_channels
    count = num_rows.to(ACC)

    # The mean of the splits' means, then the squared deviations from it.
    total = tl.zeros((FINISHED_SPLITS, FINISHED_CHANNELS), ACC)
    start = 0
    while start < num_splits:
        means, splits = load_splits(sums_ptr, start, num_splits, num_channels, channels, is_channel)
        total += means * count_rows(splits, rows_each, num_rows).to(ACC)[:, None]
        start += FINISHED_SPLITS
    mean = tl.sum(total, 0) / count
    total = tl.zeros((FINISHED_SPLITS, FINISHED_CHANNELS), ACC)
    start = 0
    while start < num_splits:
        means, splits = load_splits(sums_ptr, start, num_splits, num_channels, channels, is_channel)
        deviations_ptr = sums_ptr + num_splits * num_channels
        deviations, _ = load_splits(deviations_ptr, start, num_splits, num_channels, channels, is_channel)
        apart = means - mean[None, :]
        total += deviations + apart * apart * count_rows(splits, rows_each, num_rows).to(ACC)[:, None]
        start += FINISHED_SPLITS
    deviations = tl.sum(total, 0)

    # The table.
    rstd = 1.0 / tl.sqrt(deviations / count + eps)
    weight = load(weight_ptr, channels, is_channel, ACC)
    tl.store(table_ptr + MEAN * num_channels + channels, mean, mask=is_channel)
    tl.store(table_ptr + RSTD * num_channels + channels, rstd, mask=is_channel)
    tl.store(table_ptr + SCALE * num_channels + channels, weight * rstd, mask=is_channel)
    tl.store(table_ptr + BIAS * num_channels + channels, load(bias_ptr, channels, is_channel, ACC), mask=is_channel)

    # Running statistics; as in PyTorch, the running variance is the unbiased one.
    old_mean = load(running_mean_ptr, channels, is_channel, ACC)
    old_var = load(running_var_ptr, channels, is_channel, ACC)
    new_mean = old_mean + momentum * (mean - old_mean)
    new_var = old_var + momentum * (deviations / (count - 1.0) - old_var)
    tl.store(running_mean_ptr + channels, new_mean.to(running_mean_ptr.dtype.element_ty), mask=is_channel)
    tl.store(running_var_ptr + channels, new_var.to(running_var_ptr.dtype.element_ty), mask=is_channel)
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
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Write one tile of z."""
    row_block, channels, is_channel = find_block(num_channels)
    mean = load_statistic(table_ptr, MEAN, num_channels, channels, is_channel)
    scale = load_statistic(table_ptr, SCALE, num_channels, channels, is_channel)
    bias = load_statistic(table_ptr, BIAS, num_channels, channels, is_channel)
    at, inside = index_tile(row_block * ROWS, channels, num_rows, num_channels, WIDE)
    z = (load(y_ptr, at, inside, ACC) - mean) * scale + bias
    if HAS_RESIDUAL:
        z += load(residual_ptr, at, inside, ACC)
    if RELU:
        z = tl.where(is_masked(z), 0.0, z)
    tl.store(z_ptr + at, z.to(z_ptr.dtype.element_ty), mask=inside)


# Backward.


@triton.jit(do_not_specialize=["num_rows", "rows_each", "num_splits"])
def sum_backward(  # noqa: PLR0913, PLR0917
    dz_ptr,
    y_ptr,
    z_ptr,
    g_ptr,
    table_ptr,
    sums_ptr,
    num_rows,
    num_channels,
    rows_each,
    num_splits,
    HAS_RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Write the sums of g and of g * y_hat over a split of the rows into sums [2, num_splits, C].

    With a residual, also write g, which is the residual's gradient.
    """
    split, channels, is_channel = find_block(num_channels)
    mean = load_statistic(table_ptr, MEAN, num_channels, channels, is_channel)
    rstd = load_statistic(table_ptr, RSTD, num_channels, channels, is_channel)
    scale = load_statistic(table_ptr, SCALE, num_channels, channels, is_channel)
    bias = load_statistic(table_ptr, BIAS, num_channels, channels, is_channel)
    end = tl.minimum((split + 1) * rows_each, num_rows)

    # Add up tile by tile; the places of a tile are summed once, at the end.
    total = tl.zeros((ROWS, CHANNELS), ACC)
    products = tl.zeros((ROWS, CHANNELS), ACC)
    start = split * rows_each
    while start < end:
        at, inside = index_tile(start, channels, num_rows, num_channels, WIDE)
        g = load(dz_ptr, at, inside, ACC)
        y = load(y_ptr, at, inside, ACC)
        if RELU:
            if HAS_RESIDUAL:
                g = tl.where(is_masked(load(z_ptr, at, inside, ACC)), 0.0, g)
            else:
                g = tl.where(is_masked((y - mean) * scale + bias), 0.0, g)
        if HAS_RESIDUAL:
            tl.store(g_ptr + at, g.to(g_ptr.dtype.element_ty), mask=inside)
        total += g
        products += tl.where(inside, g * ((y - mean) * rstd), 0.0)
        start += ROWS
    to = sums_ptr + split * num_channels + channels
    tl.store(to, tl.sum(total, 0), mask=is_channel)
    tl.store(to + num_splits * num_channels, tl.sum(products, 0), mask=is_channel)


@triton.jit(do_not_specialize=["num_splits"])
def finish_backward(sums_ptr, gradients_ptr, num_channels, num_splits, ACC: tl.constexpr):
    """Add up the splits: write the gradients of bias and weight into gradients [2, C]."""
    channels = tl.program_id(0) * FINISHED_CHANNELS + tl.arange(0, FINISHED_CHANNELS)
    is_channel = channels < num_channels
    bias = tl.zeros((FINISHED_SPLITS, FINISHED_CHANNELS), ACC)
    weight = tl.zeros((FINISHED_SPLITS, FINISHED_CHANNELS), ACC)
    start = 0
    while start < num_splits:
        sums, _ = load_splits(sums_ptr, start, num_splits, num_channels, channels, is_channel)
        products_ptr = sums_ptr + num_splits * num_channels
        products, _ = load_splits(products_ptr, start, num_splits, num_channels, channels, is_channel)
        bias += sums
        weight += products
        start += FINISHED_SPLITS
    tl.store(gradients_ptr + channels, tl.sum(bias, 0), mask=is_channel)
    tl.store(gradients_ptr + num_channels + channels, tl.sum(weight, 0), mask=is_channel)


@triton.jit(do_not_specialize=["num_rows"])
def apply_backward(  # noqa: PLR0913, PLR0917
    g_ptr,
    y_ptr,
    dy_ptr,
    table_ptr,
    gradients_ptr,
    num_rows,
    num_channels,
    APPLY_RELU: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Write one tile of dy. With APPLY_RELU, g_ptr is dz, to which this kernel applies ReLU's mask."""
    row_block, channels, is_channel = find_block(num_channels)
    mean = load_statistic(table_ptr, MEAN, num_channels, channels, is_channel)
    rstd = load_statistic(table_ptr, RSTD, num_channels, channels, is_channel)
    scale = load_statistic(table_ptr, SCALE, num_channels, channels, is_channel)
    share = 1.0 / num_rows.to(ACC)
    mean_g = load_statistic(gradients_ptr, 0, num_channels, channels, is_channel) * share
    mean_product = load_statistic(gradients_ptr, 1, num_channels, channels, is_channel) * share
    at, inside = index_tile(row_block * ROWS, channels, num_rows, num_channels, WIDE)
    g = load(g_ptr, at, inside, ACC)
    y = load(y_ptr, at, inside, ACC)
    if APPLY_RELU:
        bias = load_statistic(table_ptr, BIAS, num_channels, channels, is_channel)
        g = tl.where(is_masked((y - mean) * scale + bias), 0.0, g)
    dy = scale * (g - mean_g - (y - mean) * rstd * mean_product)
    tl.store(dy_ptr + at, dy.to(dy_ptr.dtype.element_ty), mask=inside)


# Launches, as operators of torch.library: torch.compile does not trace into them. It calls them, with tensors that have
# the same strides as in the eager step. It learns the shapes of their results from the functions named `_`.


@dataclass(frozen=True)
class Grid:
    """The division of a matrix among programs."""

    apply_grid: tuple[int]  # programs of the kernels that write one tile each
    sum_grid: tuple[int]  # of the kernels that sum
    finish_grid: tuple[int]  # of the kernels that combine the splits
    num_splits: int  # of the rows, for the kernels that sum
    rows_each: int  # rows per split, a multiple of ROWS


@cache
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


@torch.library.custom_op("penstock::batch_norm_relu", mutates_args=("running_mean_C", "running_var_C", "num_batches"))
def launch_forward(  # noqa: PLR0913, PLR0917  (an operator's arguments are tensors and numbers)
    y_BCHW: torch.Tensor,
    residual_BCHW: torch.Tensor | None,
    weight_C: torch.Tensor,
    bias_C: torch.Tensor,
    running_mean_C: torch.Tensor,
    running_var_C: torch.Tensor,
    num_batches: torch.Tensor,
    momentum: float,
    eps: float,
    relu: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the forward pass; update the running statistics in place.

    Returns:
        z [B, C, H, W] in y's type, and the table of statistics [4, C] for the backward pass.
    """
    size, grid, flags, y_BCHW = prepare_launch(y_BCHW)
    # Without a residual, the kernels get another tensor in its place and do not read it; so in the backward pass.
    added_BCHW = y_BCHW if residual_BCHW is None else residual_BCHW.contiguous(memory_format=torch.channels_last)
    acc, device = type_of_arithmetic(y_BCHW), y_BCHW.device
    sums = torch.empty(2, grid.num_splits, size[1], dtype=acc, device=device)
    table_4C = torch.empty(NUM_STATISTICS, size[1], dtype=acc, device=device)
    z_BCHW = torch.empty_like(y_BCHW)
    state = (weight_C, bias_C, running_mean_C, running_var_C, num_batches)
    splits: Any = (grid.rows_each, grid.num_splits)
    sum_forward[grid.sum_grid](y_BCHW, sums, *size, *splits, **flags, **LAUNCH)
    numbers: Any = (*size, *splits, momentum, eps)
    finish_forward[grid.finish_grid](sums, table_4C, *state, *numbers, ACC=flags["ACC"], **LAUNCH)
    variant: dict[str, Any] = {"HAS_RESIDUAL": residual_BCHW is not None, "RELU": relu}
    apply_forward[grid.apply_grid](y_BCHW, added_BCHW, z_BCHW, table_4C, *size, **variant, **flags, **LAUNCH)
    return z_BCHW, table_4C


@launch_forward.register_fake
def _(y_BCHW: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    table_4C = y_BCHW.new_empty(NUM_STATISTICS, y_BCHW.shape[1], dtype=type_of_arithmetic(y_BCHW))
    return torch.empty_like(y_BCHW, memory_format=torch.channels_last), table_4C


@torch.library.custom_op("penstock::batch_norm_relu_backward", mutates_args=())
def launch_backward(
    dz_BCHW: torch.Tensor,
    y_BCHW: torch.Tensor,
    z_BCHW: torch.Tensor | None,
    table_4C: torch.Tensor,
    has_residual: bool,
    relu: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run the backward pass.

    Args:
        z_BCHW: needed only with ReLU and a residual.

    Returns:
        The gradients of y, of the residual (an empty tensor without one), and of bias and weight [2, C].
    """
    size, grid, flags, y_BCHW = prepare_launch(y_BCHW)
    dz_BCHW = dz_BCHW.contiguous(memory_format=torch.channels_last)
    output_BCHW = y_BCHW if z_BCHW is None else z_BCHW
    g_BCHW = torch.empty_like(dz_BCHW) if has_residual else dz_BCHW
    sums = torch.empty(2, grid.num_splits, size[1], dtype=table_4C.dtype, device=y_BCHW.device)
    gradients_2C = torch.empty(2, size[1], dtype=table_4C.dtype, device=y_BCHW.device)
    dy_BCHW = torch.empty_like(y_BCHW)
    splits: Any = (grid.rows_each, grid.num_splits)
    variant: dict[str, Any] = {"HAS_RESIDUAL": has_residual, "RELU": relu}
    tensors = (dz_BCHW, y_BCHW, output_BCHW, g_BCHW, table_4C, sums)
    sum_backward[grid.sum_grid](*tensors, *size, *splits, **variant, **flags, **LAUNCH)
    finish_backward[grid.finish_grid](sums, gradients_2C, size[1], grid.num_splits, ACC=flags["ACC"], **LAUNCH)
    apply_relu: Any = relu and not has_residual
    apply_backward[grid.apply_grid](
        g_BCHW, y_BCHW, dy_BCHW, table_4C, gradients_2C, *size, apply_relu, **flags, **LAUNCH
    )
    return dy_BCHW, g_BCHW if has_residual else g_BCHW.new_empty(0), gradients_2C


@launch_backward.register_fake
def _(
    dz_BCHW: torch.Tensor, y_BCHW: torch.Tensor, _: Any, table_4C: torch.Tensor, has_residual: bool, *__: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g_BCHW = torch.empty_like(dz_BCHW, memory_format=torch.channels_last) if has_residual else dz_BCHW.new_empty(0)
    dy_BCHW = torch.empty_like(y_BCHW, memory_format=torch.channels_last)
    return dy_BCHW, g_BCHW, table_4C.new_empty(2, table_4C.shape[1])


def choose_call(operator: Any) -> Any:
    """Return an operator; outside of torch.compile its function, which takes 15 microseconds less for each call."""
    return operator if torch.compiler.is_compiling() else operator._init_fn  # private in torch: without its dispatch


def prepare_launch(y_BCHW: torch.Tensor) -> tuple[tuple[int, int], Grid, dict[str, Any], torch.Tensor]:
    """Return rows and channels of y's matrix, its grid, the flags ACC and WIDE of its kernels, and y in channels_last.

    Raises:
        ValueError: a channel has only one value, which has no variance. The message is PyTorch's.
    """
    batch_size, num_channels, height, width = y_BCHW.shape
    num_rows = batch_size * height * width
    if num_rows < 2:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {y_BCHW.shape}")
    grid = make_grid(num_rows, num_channels, count_processors(y_BCHW.device))
    is_double = type_of_arithmetic(y_BCHW) == torch.float64
    flags = {"ACC": tl.float64 if is_double else tl.float32, "WIDE": num_rows * num_channels >= FIRST_WIDE}
    return (num_rows, num_channels), grid, flags, y_BCHW.contiguous(memory_format=torch.channels_last)


def type_of_arithmetic(y_BCHW: torch.Tensor) -> torch.dtype:
    """Return float32; float64 for a float64 tensor."""
    return torch.promote_types(y_BCHW.dtype, torch.float32)
