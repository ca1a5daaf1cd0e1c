"""The fused kernels in Triton's interpreter, on a CPU: values, gradients and running statistics, compared with PyTorch.

`test_fused.py` runs this file in a process of its own, because the variable TRITON_INTERPRET counts for a whole process
and must be there before Triton is imported. By hand:

    TRITON_INTERPRET=1 pytest tests/train/interpreted_fused.py
"""

import copy
import os
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
from helpers.steps import build_step, random_batch, small, tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from triton.runtime import interpreter

from loaders import Batch
from prep.blur import blur_first
from train import fused_kernels
from train.compile import SpeedConfig
from train.freeze import freeze_parts
from train.fused import FusedBatchNorm, fuse, fuse_if_wanted, fuse_norm
from train.metrics import Sums

assert os.environ.get("TRITON_INTERPRET") == "1", "run this file as its docstring says"

CPU = torch.device("cpu")
SOAK = "PENSTOCK_SOAK_FUSED" in os.environ
# Relative errors: of sums in the type of the arithmetic, and of values that are rounded to the images' type.
SUMMED = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-6, torch.float16: 2e-6}
# Triton's interpreter truncates float32 to bfloat16, where a GPU rounds to the nearest: hence the whole last bit.
ROUNDED = SUMMED | {torch.bfloat16: 2**-7, torch.float16: 2**-11}
NARROW = {"channels": (8, 8, 16, 16), "num_classes": 10}  # of a network that the interpreter can train

_patch_language, patched = interpreter._patch_lang, set()


def patch_language_once(function: Any) -> Any:
    """Patch Triton's language once for each module; Triton does so before every call, which takes half the time."""
    if id(function.__globals__) not in patched:
        patched.add(id(function.__globals__))
        _patch_language(function)
    return interpreter._LangPatchScope()


interpreter._patch_lang = patch_language_once


# One layer.


@dataclass(frozen=True)
class Trial:
    """Inputs of a layer: y and residual [B, C, H, W], the gradient of the output, and the layer with its parameters."""

    y: torch.Tensor
    residual: torch.Tensor | None
    dz: torch.Tensor
    layer: nn.BatchNorm2d  # float64
    relu: bool

    def run(self, layer: nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Return all results of a layer, and the gradients, in float64."""
        y, dz = self.y.to(dtype, copy=True).requires_grad_(), self.dz.to(dtype)
        residual = None if self.residual is None else self.residual.to(dtype, copy=True).requires_grad_()
        if isinstance(layer, FusedBatchNorm):
            z = layer(y, residual)
        else:
            z = layer(y) if residual is None else layer(y) + residual
            z = z.relu() if self.relu else z
        z.backward(dz)
        found = {"z": z, "dy": y.grad, "weight": layer.weight.grad, "bias": layer.bias.grad}
        found |= {"mean": layer.running_mean, "variance": layer.running_var, "count": layer.num_batches_tracked}
        if residual is not None:
            found["residual"] = residual.grad
        return {name: each.detach().double() for name, each in found.items()}


def make_trial(shape: tuple[int, int, int, int], relu: bool, has_residual: bool, dtype: torch.dtype) -> Trial:
    """Return random inputs that are exact in `dtype`, with a gradient of 0 where rounding decides about ReLU's mask."""
    torch.manual_seed(hash((shape, relu, has_residual)) % 2**31)
    layer = nn.BatchNorm2d(shape[1]).double().train()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)

    def draw(scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
        values = torch.randn(shape, dtype=torch.float64) * scale + shift
        return values.to(dtype).double().contiguous(memory_format=torch.channels_last)

    y, residual, dz = draw(2.0, 1.0), draw() if has_residual else None, draw()
    with torch.no_grad():
        before = copy.deepcopy(layer)(y)
        before = before if residual is None else before + residual
    return Trial(y, residual, torch.where(before.abs() > 0.02, dz, 0.0), layer, relu)


def check_trial(trial: Trial, dtype: torch.dtype, layer: nn.BatchNorm2d | None = None) -> None:
    """Compare the fused layer in `dtype` with PyTorch's in float64."""
    exact = trial.run(copy.deepcopy(trial.layer), torch.float64)
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    fused = fuse_norm(layer or copy.deepcopy(trial.layer).to(kept), relu=trial.relu)
    found = trial.run(fused, dtype)
    assert found.keys() == exact.keys()
    # dy is a small difference of large terms where a channel has few values: compared with the terms.
    variance = trial.y.var(dim=(0, 2, 3), unbiased=False)
    scale_C = trial.layer.weight.detach().abs() / (variance + trial.layer.eps).sqrt()
    terms = (trial.dz.abs() * scale_C[:, None, None]).norm()
    for name, value in exact.items():
        limit = (ROUNDED if name in ("z", "dy", "residual") else SUMMED)[dtype]
        size = value.norm() + (terms if name == "dy" else trial.dz.norm() if name in ("weight", "bias") else 0.0)
        assert (found[name] - value).norm() <= limit * size, (name, found[name], value)


sizes = st.tuples(st.integers(1, 4), st.integers(1, 130), st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=400 if SOAK else 40, deadline=None, derandomize=True)
@given(
    shape=sizes.filter(lambda shape: shape[0] * shape[2] * shape[3] > 1),
    relu=st.booleans(),
    has_residual=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_values_gradients_and_statistics(
    shape: tuple[int, int, int, int], relu: bool, has_residual: bool, dtype: torch.dtype
) -> None:
    check_trial(make_trial(shape, relu, has_residual, dtype), dtype)


@pytest.mark.parametrize(
    "shape",
    [
        (2, 16, 72, 64),  # more splits than one tile of partial sums
        (4, 64, 28, 28),  # each split has several tiles
        (2, 300, 5, 5),  # several blocks of channels, the last one incomplete
        (1, 1, 1, 2),  # one image, one channel, two values
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_sums_in_parts(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    check_trial(make_trial(shape, True, True, dtype), dtype)


def test_offsets_of_64_bits_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors with 2**31 values and more need them; here a small one gets them too."""
    trial = make_trial((3, 70, 5, 6), True, True, torch.float32)
    results = []
    for first_wide in (2**31, 0):
        monkeypatch.setattr(fused_kernels, "FIRST_WIDE", first_wide)
        results.append(trial.run(fuse_norm(copy.deepcopy(trial.layer).float(), relu=True), torch.float32))
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("has_residual", [True, False])
def test_gradcheck(relu: bool, has_residual: bool) -> None:
    trial = make_trial((2, 3, 3, 2), relu, has_residual, torch.float64)
    layer = fuse_norm(copy.deepcopy(trial.layer), relu=relu)

    def compute(y: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *residual: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (y, *residual))

    inputs = [trial.y, layer.weight, layer.bias] + ([trial.residual] if trial.residual is not None else [])
    assert torch.autograd.gradcheck(compute, [each.detach().clone().requires_grad_() for each in inputs])


def test_a_second_derivative_is_an_error() -> None:
    trial = make_trial((2, 3, 3, 2), True, False, torch.float64)
    y = trial.y.clone().requires_grad_()
    z = fuse_norm(copy.deepcopy(trial.layer), relu=True)(y)
    (dy,) = torch.autograd.grad(z.square().sum(), y, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dy.sum().backward()


def test_a_mean_far_from_zero_keeps_its_variance() -> None:
    """The sum of squares less the squared sum would give 0 or a negative variance."""
    torch.manual_seed(0)
    y = (10_000 + torch.randn(4, 8, 24, 24)).contiguous(memory_format=torch.channels_last)
    y[0, :, 0, 0] = 0.0  # an unusual first value, from which a shift would be taken
    exact = nn.BatchNorm2d(8).double().train()
    layer: Any = fuse_norm(nn.BatchNorm2d(8), relu=False)
    z, expected = layer(y), exact(y.double())
    torch.testing.assert_close(layer.running_var.double(), exact.running_var, rtol=1e-4, atol=0)
    torch.testing.assert_close(z.double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of numpy, with which the interpreter computes
@pytest.mark.parametrize("place", ["y", "residual", "dz"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_and_infinity_go_where_they_go_in_pytorch(place: str, value: float, dtype: torch.dtype) -> None:
    trial = make_trial((2, 5, 4, 3), True, True, dtype)
    getattr(trial, place)[1, 2, 3, 1] = value
    plain = trial.run(copy.deepcopy(trial.layer).float(), dtype)
    fused = trial.run(fuse_norm(copy.deepcopy(trial.layer).float(), relu=True), dtype)
    for name, expected in plain.items():
        # Of infinities PyTorch's CPU makes infinite means, its GPU and Welford's update NaN.
        assert torch.equal(fused[name].isfinite(), expected.isfinite()), name
        if name == "z":
            assert torch.equal(fused[name].isnan(), expected.isnan())
            assert torch.equal(fused[name].isposinf(), expected.isposinf())


def test_any_strides() -> None:
    trial = make_trial((3, 10, 6, 5), True, True, torch.float32)
    expected = trial.run(fuse_norm(copy.deepcopy(trial.layer).float(), relu=True), torch.float32)
    wide = torch.zeros(3, 10, 6, 10, dtype=torch.float64)
    wide[..., ::2] = trial.y
    for y in (trial.y.contiguous(), wide[..., ::2], trial.y.transpose(2, 3).contiguous().transpose(2, 3)):
        assert trial.residual is not None
        other = Trial(y, trial.residual.contiguous(), trial.dz.contiguous(), trial.layer, relu=True)
        found = other.run(fuse_norm(copy.deepcopy(trial.layer).float(), relu=True), torch.float32)
        assert all(torch.equal(value, expected[name]) for name, value in found.items())
    # A gradient that was expanded from one number, as that of a sum or of the pooling at the end of a network.
    layer = fuse_norm(copy.deepcopy(trial.layer).float(), relu=True)
    y = trial.y.float().requires_grad_()
    layer(y).sum().backward()
    again = fuse_norm(copy.deepcopy(trial.layer).float(), relu=True)
    x = trial.y.float().requires_grad_()
    again(x).backward(torch.ones_like(x))
    assert y.grad is not None and x.grad is not None and torch.equal(y.grad, x.grad)


def test_equal_inputs_give_equal_bits() -> None:
    trial = make_trial((4, 64, 20, 20), True, True, torch.bfloat16)
    once, again = (trial.run(fuse_norm(copy.deepcopy(trial.layer).float(), relu=True), torch.bfloat16) for _ in "12")
    assert all(torch.equal(value, again[name]) for name, value in once.items())


def test_one_value_per_channel_is_refused_as_in_pytorch() -> None:
    messages = []
    for layer in (nn.BatchNorm2d(3), fuse_norm(nn.BatchNorm2d(3), relu=True)):
        with pytest.raises(ValueError, match="more than 1 value per channel") as caught:
            layer(torch.zeros(1, 3, 1, 1))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_parameters_in_half_precision_get_gradients_in_it() -> None:
    layer: Any = fuse_norm(nn.BatchNorm2d(4).to(torch.bfloat16), relu=True)
    layer(torch.randn(2, 4, 3, 3).to(torch.bfloat16)).sum().backward()
    assert layer.weight.grad.dtype == layer.bias.grad.dtype == layer.running_var.dtype == torch.bfloat16


# Networks.


def big_batch(position: int, size: int = 32) -> Batch:
    """Return a batch of 16-pixel images, repeated to `size` pixels."""
    batch, times = random_batch(position), size // 16
    images_BCHW = batch.images_BCHW.repeat(1, 1, times, times).contiguous(memory_format=torch.channels_last)
    return Batch(images_BCHW[:4], batch.labels_B[:4], batch.valid_B[:4], batch.damaged_B[:4], position, batch.rows_B)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-6))


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-9), (torch.float32, 2e-2)])
def test_twenty_steps_of_resnet50d(dtype: torch.dtype, limit: float) -> None:
    """Weights, EMA, momentum and running statistics; in float32, rounding grows from step to step."""
    if dtype == torch.float32 and not SOAK:
        pytest.skip("a soak: PENSTOCK_SOAK_FUSED=1")
    layers = (3, 4, 6, 3) if SOAK else (1, 1, 1, 1)
    torch.manual_seed(1)
    network = timm.create_model("resnet50d", layers=layers, **NARROW).to(memory_format=torch.channels_last)
    recipe = small(batch_size=4, amp="none")
    steps = [build_step(recipe, dtype=dtype, network=network) for _ in range(2)]
    fuse(steps[1].state.model)
    losses = [Sums.zero(CPU), Sums.zero(CPU)]
    for number in range(20):
        for step, sums in zip(steps, losses, strict=True):
            batch = big_batch(4 * number)
            step.augment.normalize.to(dtype)
            step(batch, sums)
    plain, fused = map(tensors, steps)
    assert plain.keys() == fused.keys()
    distances = {name: relative(fused[name], value) for name, value in plain.items()}
    distances["losses"] = relative(losses[1].loss_and_hits, losses[0].loss_and_hits)
    print(f"resnet50d {layers}, {dtype}, 20 steps: largest relative distance {max(distances.values()):.1e}")
    assert max(distances.values()) < limit, distances
    assert not torch.equal(plain["model conv1.0.weight"], network.state_dict()["conv1.0.weight"].to(dtype))  # it trains


NETWORKS: dict[str, dict[str, Any]] = {
    "resnet18": {},  # BasicBlock
    "resnet50": {},
    "resnet50d": {"drop_path_rate": 0.2},
    "resnet26t": {},  # a deep stem of three widths
    "seresnet50": {},  # attention between the last BatchNorm and the addition
    "resnetblur50": {},  # blurs after the second BatchNorm
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_compute_the_same(name: str) -> None:
    """Loss, gradients and running statistics of a step in float64; then evaluation, bit for bit."""
    torch.manual_seed(0)
    blocks = {"layers": (1, 1, 1, 1)}
    network = timm.create_model(name, **NARROW, **blocks, **NETWORKS[name]).double()
    plain = blur_first(network) if name == "resnet50" else network
    for parameter in plain.parameters():  # timm starts the last BatchNorm of each block at 0, which hides its branch
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    fused = fuse(copy.deepcopy(plain))
    assert list(fused.state_dict()) == list(plain.state_dict())
    assert not any(type(each) is nn.BatchNorm2d for each in fused.modules() if "se" not in type(each).__name__.lower())
    images = torch.randn(3, 3, 64, 64, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    found = []
    for model in (plain, fused):
        torch.manual_seed(5)  # of stochastic depth
        loss = model(images).square().mean()
        loss.backward()
        gradients = {name: each.grad for name, each in model.named_parameters()}
        found.append({"loss": loss.detach()} | gradients | dict(model.named_buffers()))
    for key, value in found[0].items():
        torch.testing.assert_close(
            found[1][key], value, rtol=1e-9, atol=1e-12, msg=lambda text, key=key: f"{key} {text}"
        )
    fused.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert torch.equal(fused.eval()(images), plain.eval()(images))


def test_checkpoints_load_in_both_directions() -> None:
    torch.manual_seed(0)
    plain = timm.create_model("resnet50d", layers=(1, 1, 1, 1), **NARROW)
    fused = fuse(copy.deepcopy(plain))
    for source, target in ((plain, fused), (fused, plain)):
        for each in source.parameters():
            nn.init.normal_(each)
        target.load_state_dict(source.state_dict())
        assert all(torch.equal(value, source.state_dict()[name]) for name, value in target.state_dict().items())


def test_a_frozen_part_computes_as_in_evaluation() -> None:
    """In training too it uses its running statistics and does not change them (train/freeze.py)."""
    torch.manual_seed(0)
    plain: Any = timm.create_model("resnet10t", **NARROW)
    freeze_parts(plain, ("stem", "1"), "resnet10t")
    fused: Any = fuse(copy.deepcopy(plain))
    images, before = torch.randn(4, 3, 32, 32), copy.deepcopy(fused.state_dict())
    logits = [model.train()(images) for model in (plain, fused)]
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-5)
    for name, buffer in fused.named_buffers():
        is_frozen = name.startswith(("conv1", "bn1", "layer1"))
        assert torch.equal(buffer, before[name]) is is_frozen, name


def test_the_settings_decide() -> None:
    for config, fuses in ((SpeedConfig(fused="on"), True), (SpeedConfig(), False)):
        model = timm.create_model("resnet10t", **NARROW)
        fuse_if_wanted(model, config, "resnet10t", CPU)
        assert any(isinstance(each, FusedBatchNorm) for each in model.modules()) is fuses


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by dynamo of torch 2.11
def test_torch_compile_calls_the_kernels_as_opaque_operators() -> None:
    """One graph without a break; the same values and gradients as without compilation, also at a second resolution."""
    if not SOAK:
        pytest.skip("a soak: PENSTOCK_SOAK_FUSED=1")  # the compiler takes half a minute
    torch.manual_seed(0)
    eager = fuse(timm.create_model("resnet10t", **NARROW).to(memory_format=torch.channels_last))
    compiled = copy.deepcopy(eager)
    compiled.compile(fullgraph=True, dynamic=False)
    for size in (32, 48):
        images = torch.randn(3, 3, size, size).contiguous(memory_format=torch.channels_last)
        outputs = [model(images) for model in (eager, compiled)]
        for output in outputs:
            output.square().sum().backward()
        torch.testing.assert_close(outputs[0], outputs[1])
    for (name, ours), theirs in zip(eager.named_parameters(), compiled.parameters(), strict=True):
        assert theirs.grad is not None and ours.grad is not None and relative(theirs.grad, ours.grad) < 1e-4, name
    for (name, ours), theirs in zip(eager.named_buffers(), compiled.buffers(), strict=True):
        assert relative(theirs, ours) < 1e-5, name
