"""Compare the fused kernels with PyTorch in float64: output, gradients, running statistics."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from modelling.fused_batchnorm import FusedBatchNorm
from torch import nn

from train.step import AMP_TYPES

Build = Callable[[nn.BatchNorm2d, bool], nn.Module]  # builds a float32 layer with these parameters; True: with ReLU
ROUNDED = ("output", "input gradient", "residual gradient")  # in the images' type; the others are float32
LARGEST_ERROR = 1e-4  # of quantities that are summed in float32
CLEAR = 1e-3  # from this distance from zero on, ReLU's mask does not depend on rounding


@dataclass(frozen=True)
class Trial:
    """One shape, and the operations after the normalization."""

    shape_BCHW: tuple[int, int, int, int]
    relu: bool
    residual: bool


# Few and many channels, a number of channels that is not a multiple of a tile; sums in one part and in several, and
# more parts than one tile adds up.
TRIALS = (
    Trial((4, 64, 28, 28), relu=True, residual=False),
    Trial((4, 64, 28, 28), relu=True, residual=True),
    Trial((3, 96, 7, 5), relu=True, residual=True),
    Trial((8, 256, 7, 7), relu=False, residual=False),
    Trial((2, 512, 3, 3), relu=False, residual=True),
    Trial((2, 16, 72, 64), relu=True, residual=False),
)


def build_fused(layer: nn.BatchNorm2d, relu: bool) -> nn.Module:
    """Return the fused layer."""
    return FusedBatchNorm.from_layer(layer, relu=relu)


def measure_errors(amp: str, device: torch.device, build: Build = build_fused) -> dict[str, Any]:
    """Return the largest error of each quantity over all trials, and its limit.

    An error is the norm of the difference from float64, divided by the norm of the float64 result.
    """
    dtype, errors = AMP_TYPES[amp], {}
    for number, trial in enumerate(TRIALS):
        torch.manual_seed(number)
        for name, error in compare_with_float64(trial, dtype, device, build).items():
            errors[name] = max(errors.get(name, 0.0), error)
    rounding = max(torch.finfo(dtype).eps, LARGEST_ERROR)
    return {
        "errors": errors,
        "limits": {name: rounding if name in ROUNDED else LARGEST_ERROR for name in errors},
        "type": str(dtype).removeprefix("torch."),
    }


def describe_excess(result: dict[str, Any]) -> str:
    """Return the errors that are above their limits or not a number, in words; "" if there are none."""
    limits = result["limits"]
    return ", ".join(
        f"{name} is off by {error:.1e} in {result['type']}, {limits[name]:.1e} is allowed"
        for name, error in result["errors"].items()
        if not error <= limits[name]
    )


def compare_with_float64(trial: Trial, dtype: torch.dtype, device: torch.device, build: Build) -> dict[str, float]:
    """Return the error of each quantity, for one trial with random inputs that are exact in `dtype`."""
    # Two layers with the same random parameters: float64, and the one to check. Random inputs.
    reference = nn.BatchNorm2d(trial.shape_BCHW[1]).train()
    nn.init.normal_(reference.weight)
    nn.init.normal_(reference.bias)
    layer = build(_copy(reference).to(device), trial.relu)
    reference = reference.double()
    images = _draw(trial, dtype).mul(2).add(1).to(dtype)
    residual = _draw(trial, dtype) if trial.residual else None

    # The reference. The loss is a randomly weighted sum of the outputs, so that each output has a different gradient.
    # Outputs near ReLU's kink get weight 0, because rounding decides about their gradient.
    exact_images, exact_residual = _as_leaf(images, torch.float64), None
    before = reference(exact_images)
    if residual is not None:
        exact_residual = _as_leaf(residual, torch.float64)
        before = before + exact_residual
    weights = torch.where(before.detach().abs() > CLEAR, _draw(trial, dtype).double(), 0.0)
    exact = before.relu() if trial.relu else before
    exact.backward(weights)

    # The checked layer, with the same inputs and weights in its own type.
    images = _as_leaf(images, dtype, device)
    residual = None if residual is None else _as_leaf(residual, dtype, device)
    output = layer(images, residual)
    output.backward(weights.to(dtype).to(device))

    pairs: dict[str, tuple[Any, Any]] = {
        "output": (output, exact),
        "input gradient": (images.grad, exact_images.grad),
        "weight gradient": (layer.weight.grad, reference.weight.grad),
        "bias gradient": (layer.bias.grad, reference.bias.grad),
        "running mean": (layer.running_mean, reference.running_mean),
        "running variance": (layer.running_var, reference.running_var),
        "batches tracked": (layer.num_batches_tracked, reference.num_batches_tracked),
    }
    if residual is not None and exact_residual is not None:
        pairs["residual gradient"] = (residual.grad, exact_residual.grad)
    return {name: _relative_error(found, wanted) for name, (found, wanted) in pairs.items()}


def _copy(layer: nn.BatchNorm2d) -> nn.BatchNorm2d:
    other = nn.BatchNorm2d(layer.num_features)
    other.load_state_dict(layer.state_dict())
    return other.train()


def _draw(trial: Trial, dtype: torch.dtype) -> torch.Tensor:
    """Return normal random values in channels_last. They are drawn on the CPU, so all devices get the same."""
    return torch.randn(trial.shape_BCHW).to(dtype).contiguous(memory_format=torch.channels_last)


def _as_leaf(tensor: torch.Tensor, dtype: torch.dtype, device: torch.device | None = None) -> torch.Tensor:
    return tensor.detach().to(device=device, dtype=dtype).requires_grad_()


def _relative_error(found: torch.Tensor | None, wanted: torch.Tensor) -> float:
    if found is None:
        return math.inf
    found, wanted = found.detach().double().cpu(), wanted.detach().double()
    return ((found - wanted).norm() / wanted.norm()).item()
