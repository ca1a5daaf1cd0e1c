"""The errors of the fused layer (`train/fused.py`), compared with PyTorch in float64.

`measure_errors` compares output, gradients and running statistics for a few shapes. It runs on a GPU as the first case
of the fused kernels, and in tests, in Triton's interpreter (TRITON_INTERPRET=1 before Triton is imported).
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from train.fused import fuse_norm
from train.step import AMP_TYPES

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


def measure_errors(amp: str, device: torch.device, build: Build = fuse_norm) -> dict[str, Any]:
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
