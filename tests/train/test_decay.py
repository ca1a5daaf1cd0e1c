"""Decoupled weight decay against its formula, in fp16 too; skipped steps, resume, and the work that it adds."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.steps import CPU, build_step, random_batch, small, tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from prep.errors import InputError
from train.batch_augment import Mix
from train.checkpoint import load_checkpoint, take_snapshot, write_checkpoint
from train.config import ModelConfig, OptimConfig, Recipe
from train.metrics import Sums
from train.model import build_model
from train.optim import DecoupledSgd, build_optimizer, check_optimizer, set_lr
from train.step import Step

DECOUPLED = OptimConfig(
    lr=0.5, momentum=0.875, nesterov=False, weight_decay=0.02, decay_all=True, decoupled=True, warmup_epochs=0.5
)


class Plain(nn.Module):
    """A weight and a bias whose gradients are what the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(4))


def decayed(**changes: Any) -> Recipe:
    return small(optim=DECOUPLED, model=ModelConfig("test_resnet"), **changes)


@settings(deadline=None, derandomize=True)
@given(
    st.integers(0, 1000),
    st.floats(0, 0.5),
    st.floats(0, 0.95),
    st.booleans(),
    st.lists(st.floats(0, 1), min_size=1, max_size=6),
)
def test_steps_are_composers_formula(
    seed: int, decay: float, momentum: float, decay_all: bool, shares: list[float]
) -> None:
    """v = m v + g; w = w (1 - decay lr / peak) - lr v, in float64; biases decay only if all do."""
    config = replace(DECOUPLED, weight_decay=decay, momentum=momentum, decay_all=decay_all)
    model, generator = Plain(), np.random.default_rng(seed)
    optimizer, peak = build_optimizer(model, config, batch_size=512), 1.0
    expected = {"weight": np.ones((4, 3)), "bias": np.ones(4)}
    velocity: dict[str, Any] = {"weight": 0.0, "bias": 0.0}
    for share in shares:
        set_lr(optimizer, share * peak)
        for name, parameter in model.named_parameters():
            gradient = generator.normal(size=tuple(parameter.shape)).astype(np.float32)
            parameter.grad = torch.from_numpy(gradient)
            own_decay = decay if decay_all or name == "weight" else 0.0
            velocity[name] = momentum * velocity[name] + gradient
            expected[name] = expected[name] * (1 - own_decay * share) - share * peak * velocity[name]
        optimizer.step()
        for name, parameter in model.named_parameters():
            np.testing.assert_allclose(parameter.detach().numpy(), expected[name], rtol=1e-4, atol=1e-4)


def test_without_gradients_only_the_decay_is_left_and_the_momentum_does_not_see_it() -> None:
    model = Plain()
    optimizer = build_optimizer(model, DECOUPLED, batch_size=256)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(10):
        optimizer.step()
    torch.testing.assert_close(model.weight.detach(), torch.full((4, 3), 0.98**10))
    assert not any(state["momentum_buffer"].any() for state in optimizer.state.values())


def test_a_step_at_half_of_the_peak_decays_half_as_much_at_any_batch_size() -> None:
    for batch_size in (64, 2048):
        model = Plain()
        optimizer = build_optimizer(model, DECOUPLED, batch_size)
        set_lr(optimizer, 0.25 * batch_size / 256)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        torch.testing.assert_close(model.bias.detach(), torch.full((4,), 0.99))


def test_training_steps_are_the_formula_too() -> None:
    """Through Step, scaler and schedule: every weight of a network, over steps of the warm-up and after it."""
    recipe = decayed(epochs=4)
    step = build_step(recipe)
    parameters, gradients, rates = dict(step.state.model.named_parameters()), {}, []
    weights = {name: each.detach().clone() for name, each in parameters.items()}
    velocity = {name: torch.zeros_like(each) for name, each in weights.items()}
    for name, each in parameters.items():  # a step ends without gradients
        each.register_post_accumulate_grad_hook(lambda p, n=name: gradients.update({n: p.grad.clone()}))
    for number in range(6):
        step(random_batch(16 * number), Sums.zero(CPU))
        rates.append(step.lr)
        for name, gradient in gradients.items():
            velocity[name] = 0.875 * velocity[name] + gradient
            weights[name] = weights[name] * (1 - 0.02 * step.lr / (0.5 * 16 / 256)) - step.lr * velocity[name]
    assert len(set(rates)) == 6
    for name, each in parameters.items():
        torch.testing.assert_close(each.detach(), weights[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.fixture
def plain_convolutions() -> Iterator[None]:
    """Without oneDNN: its bf16 convolutions on a CPU read memory that earlier NaN images of this process can fill."""
    with torch.backends.mkldnn.flags(enabled=False):
        yield


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # from the switch of oneDNN
@pytest.mark.usefixtures("plain_convolutions")
@pytest.mark.parametrize("amp", ["none", "bf16", "fp16"])
@pytest.mark.parametrize("fused", [True, False])
def test_a_step_that_is_not_finite_does_not_decay(amp: str, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    options = () if fused else ("fused=False",)
    recipe = decayed(amp=amp, ema_decay=1.0)
    step = build_step(replace(recipe, optim=replace(recipe.optim, options=options)))
    first = tensors(step)
    for number in range(10):  # fp16's first steps may overflow
        step(random_batch(16 * number), Sums.zero(CPU))
    before = tensors(step)
    assert not torch.equal(before["model fc.bias"], first["model fc.bias"])

    # Neither a decay nor a movement.
    with monkeypatch.context() as patch:
        patch.setattr(step, "augment", lambda images, _: (torch.full(images.shape, float("nan")), Mix()))
        step(random_batch(160), Sums.zero(CPU))
    after = tensors(step)
    assert {name for name in before if not torch.equal(before[name], after[name])} <= {
        name for name in before if name.endswith("num_batches_tracked")
    }

    # Training goes on.
    for number in range(11, 21):
        step(random_batch(16 * number), Sums.zero(CPU))
    assert not torch.equal(tensors(step)["model fc.bias"], after["model fc.bias"])
    assert all(tensor.isfinite().all() for tensor in tensors(step).values())


def test_fp16_decays_as_float32_does() -> None:
    """The decay does not depend on the scale of the gradients."""
    after = {}
    for amp in ("none", "fp16"):
        step = build_step(decayed(amp=amp))
        for each in step.state.model.parameters():
            each.register_hook(torch.zeros_like)  # only the decay moves them
        for number in range(3):
            step(random_batch(16 * number), Sums.zero(CPU))
        after[amp] = {name: each.detach().clone() for name, each in step.state.model.named_parameters()}
    assert all(torch.equal(after["fp16"][name], each) for name, each in after["none"].items())


def test_a_resumed_run_has_the_bits_of_an_undisturbed_one(tmp_path: Path) -> None:
    recipe = decayed(ema_every=3, ema_half_life=100.0, loss="bce")
    undisturbed = build_step(recipe)
    take(undisturbed, 7)
    path = write_checkpoint(tmp_path, take_snapshot(undisturbed.state), {"recipe": recipe.to_dict()})
    take(undisturbed, 7)
    resumed = build_step(replace(recipe, seed=1))
    load_checkpoint(path, resumed.state)
    resumed.recipe = recipe
    take(resumed, 7)
    ours, theirs = tensors(resumed), tensors(undisturbed)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert resumed.state.optimizer.param_groups[0]["peak_lr"] == 0.5 * 16 / 256


def take(step: Step, num_steps: int) -> None:
    for _ in range(num_steps):
        step(random_batch(step.state.clock), Sums.zero(CPU))


class Recorder(TorchDispatchMode):
    """Lists the operations that are dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["test_resnet", "resnet18"])
def test_the_decay_is_one_operation_for_all_tensors_and_waits_for_no_value(name: str) -> None:
    """As many operations for 20 tensors as for 62; on a GPU none of them reads a number back."""
    model = build_model(ModelConfig(name), 10, CPU)
    optimizer, scaler = build_optimizer(model, DECOUPLED), torch.amp.GradScaler("cpu", init_scale=1.0)
    scaler.scale(model(torch.zeros(2, 3, 32, 32)).sum()).backward()
    with Recorder() as recorder:
        scaler.step(optimizer)
    assert recorder.names.count("aten._foreach_mul_.Tensor") == 1
    assert not [each for each in recorder.names if "_local_scalar_dense" in each or each.startswith("aten.mul_")]
    assert len(recorder.names) < 20, recorder.names


@pytest.mark.gpu
def test_a_gpu_is_not_waited_for_and_a_bad_gradient_stops_the_decay() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    model = Plain().to("cuda")
    optimizer, scaler = build_optimizer(model, DECOUPLED), torch.amp.GradScaler("cuda", init_scale=2.0**16)
    for gradient in (float("inf"), 0.0):
        before = model.weight.detach().clone()
        scaler.scale((model.weight * 1.0).sum() + model.bias.sum()).backward()
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        torch.cuda.set_sync_debug_mode("error")
        try:
            scaler.step(optimizer)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        scaler.update()
        torch.testing.assert_close(model.weight.detach(), before * (1.0 if gradient else 0.98))


def test_norms_and_biases_decay_if_asked_whatever_the_optimizer() -> None:
    model = build_model(ModelConfig("test_resnet"), 10, CPU)
    for config in (OptimConfig(decay_all=True), OptimConfig("adamw", lr=0.001, decay_all=True)):
        groups = build_optimizer(model, config).param_groups
        assert [group["weight_decay"] for group in groups] == [1e-4]
        assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    (group,) = build_optimizer(model, DECOUPLED).param_groups
    assert (group["weight_decay"], group["decoupled_decay"]) == (0.0, 0.02)
    groups = build_optimizer(model, replace(DECOUPLED, decay_all=False)).param_groups
    assert sorted(group["decoupled_decay"] for group in groups) == [0.0, 0.02]


def test_what_a_model_excludes_itself_stays_excluded() -> None:
    model = build_model(ModelConfig("test_vit2"), 10, CPU)
    groups = build_optimizer(model, OptimConfig("adamw", lr=0.001, decay_all=True)).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    excluded = {names[id(each)] for group in groups if not group["weight_decay"] for each in group["params"]}
    assert {"pos_embed", "cls_token"} & excluded and not any("bias" in name for name in excluded)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (OptimConfig("adamw", lr=0.001, decoupled=True), "optim.decoupled is not used by adamw, which uses betas, eps"),
        (OptimConfig("momentum", decoupled=True), "optim.decoupled is not used by momentum"),
        (replace(DECOUPLED, weight_decay=1.0), "weight_decay must be at least 0 and less than 1, got 1"),
        (replace(DECOUPLED, weight_decay=-0.1), "weight_decay must be at least 0 and less than 1, got -0.1"),
    ],
)
def test_what_cannot_be_decoupled_is_refused_in_one_line(config: OptimConfig, words: str) -> None:
    with pytest.raises(InputError) as refusal:
        check_optimizer(config)
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_peak_of_zero_decays_at_full_strength_as_composers() -> None:
    optimizer = DecoupledSgd([{"params": [weight := nn.Parameter(torch.ones(2))], "weight_decay": 0.1}], lr=0.0)
    weight.grad = torch.zeros(2)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((2,), 0.9))
