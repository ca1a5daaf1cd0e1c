"""Every optimizer that `optim.name` takes: skipped steps, resume to the bit, and settings refused in one line.

PENSTOCK_SOAK_OPTIMIZERS=1 tries all of timm's that can be used here, not only the usual ones.
"""

import copy
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.optim import list_optimizers

from loaders import Batch, World
from prep.errors import InputError
from train.arguments import parse_command
from train.batch_augment import Mix
from train.checkpoint import load_checkpoint, take_snapshot, write_checkpoint
from train.config import ModelConfig, OptimConfig, Recipe, complete, first_difference
from train.metrics import Sums
from train.model import build_model
from train.optim import build_optimizer, check_optimizer, default_lr, peak_lr, usable_optimizers
from train.recipe import demo
from train.step import Step, new_state

CPU = torch.device("cpu")
SIZE, BATCH, TOTAL = 16, 8, 160  # pixels, images
USUAL = ["sgd", "adamw", "lamb", "muon", "adafactorbv", "lookahead_radam"]
TRIED = [*usable_optimizers(), "lookahead_radam"] if os.environ.get("PENSTOCK_SOAK_OPTIMIZERS") else USUAL


def small(name: str, **changes: Any) -> Recipe:
    """The demo with a tiny network and another optimizer."""
    optim = OptimConfig(name, lr=0.05 if "sgd" in name else 0.005, weight_decay=0.01, warmup_epochs=1.0)
    transform = replace(demo().transform, size=SIZE)
    model = ModelConfig("test_resnet")
    return replace(demo(), batch_size=BATCH, model=model, optim=optim, transform=transform, **changes)


def start(recipe: Recipe) -> Step:
    torch.manual_seed(0)
    model = build_model(recipe.model, 10, CPU)
    optimizer = build_optimizer(model, recipe.optim, recipe.batch_size)
    state = new_state(recipe, model, copy.deepcopy(model).requires_grad_(False), optimizer)
    return Step(recipe, state, TOTAL, World())


def take_steps(step: Step, num_steps: int) -> None:
    for _ in range(num_steps):
        position = step.state.clock
        generator = torch.Generator().manual_seed(position)
        images_BCHW = torch.randint(0, 256, (BATCH, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
        images_BCHW = images_BCHW.contiguous(memory_format=torch.channels_last)
        valid_B, damaged_B = torch.ones(BATCH, dtype=torch.bool), torch.zeros(BATCH, dtype=torch.bool)
        batch = Batch(images_BCHW, torch.arange(BATCH) % 10, valid_B, damaged_B, position, np.arange(BATCH))
        step(batch, Sums.zero(CPU))


def take_bad_step(step: Step) -> None:
    """Take a step with a loss that is NaN."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "augment", lambda images, _: (torch.full(images.shape, float("nan")), Mix()))
        take_steps(step, 1)


def flatten(value: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested dicts and lists, tensors as bytes with their types, so that they compare as bits."""
    if isinstance(value, dict):
        return {k: v for key, each in value.items() for k, v in flatten(each, f"{name}.{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for i, each in enumerate(value) for k, v in flatten(each, f"{name}.{i}").items()}
    if isinstance(value, torch.Tensor):
        return {name: (value.dtype, value.contiguous().flatten().view(torch.uint8).numpy().tobytes())}
    return {name: value}


def bits(step: Step) -> dict[str, Any]:
    """Everything that a resumed run needs, by name."""
    state = step.state
    parts = {"model": state.model, "ema": state.ema, "optimizer": state.optimizer}
    return flatten({name: part.state_dict() for name, part in parts.items()})


def learned(step: Step) -> dict[str, Any]:
    """The bits that only a step with finite gradients may change: the average moves on, and batches are counted."""
    counts = "num_batches_tracked"
    return {name: value for name, value in bits(step).items() if not name.startswith(".ema") and counts not in name}


@pytest.mark.parametrize("name", TRIED)
def test_a_resumed_run_has_the_bits_of_an_undisturbed_one(name: str, tmp_path: Path) -> None:
    recipe = small(name)
    undisturbed = start(recipe)
    take_steps(undisturbed, 7)  # lookahead's slow weights move at every sixth step
    path = write_checkpoint(tmp_path, take_snapshot(undisturbed.state), {"recipe": recipe.to_dict()})
    take_steps(undisturbed, 7)
    resumed = start(recipe)
    load_checkpoint(path, resumed.state)
    take_steps(resumed, 7)
    assert bits(resumed) == bits(undisturbed)
    assert all(tensor.isfinite().all() for tensor in undisturbed.state.model.state_dict().values())
    fresh = start(recipe).state.model.state_dict()
    weights = undisturbed.state.model.state_dict()
    assert not any(torch.equal(fresh[each], weights[each]) for each in ("fc.weight", "fc.bias", "bn1.weight"))


@pytest.mark.parametrize("name", TRIED)
def test_a_step_that_is_not_finite_leaves_nothing_in_the_optimizer(name: str) -> None:
    harmed, other = start(small(name)), start(small(name))
    take_bad_step(harmed)  # the very first one, which creates the optimizer's state
    other.state.clock += BATCH
    take_steps(harmed, 2)
    take_steps(other, 2)
    take_bad_step(harmed)
    other.state.clock += BATCH
    take_steps(harmed, 4)
    take_steps(other, 4)
    assert learned(harmed) == learned(other)


@pytest.mark.parametrize("name", TRIED)
def test_fp16_learns_on_after_a_step_that_overflowed(name: str) -> None:
    step = start(small(name, amp="fp16"))
    take_steps(step, 1)
    weights = {each: tensor.clone() for each, tensor in step.state.model.named_parameters()}
    take_bad_step(step)
    assert all(torch.equal(tensor, weights[each]) for each, tensor in step.state.model.named_parameters())
    take_steps(step, 4)  # the first ones may overflow too, until the scale is low enough
    assert not torch.equal(step.state.model.state_dict()["fc.weight"], weights["fc.weight"])
    assert all(tensor.isfinite().all() for tensor in step.state.model.state_dict().values())


def test_every_optimizer_of_timms_is_taken_or_refused_in_one_line_whose_advice_works() -> None:
    usable = usable_optimizers()
    assert len(usable) > 80 and {*USUAL[:-1], "lion", "adan", "nadamw", "rmsproptf"} <= set(usable)
    for name in map(str, list_optimizers()):
        config = OptimConfig(name, lr=default_lr(name) or 0.01 if name in usable else 0.01)
        if name in usable:
            check_optimizer(config)
            continue
        with pytest.raises(InputError) as refusal:
            check_optimizer(config)
        line = str(refusal.value)
        assert name in line and "\n" not in line
        advised = line.rpartition("choose ")[2].removeprefix("another, such as ").split()[0]
        check_optimizer(replace(config, name=advised))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (OptimConfig("adamww"), "unknown optimizer 'adamww'; did you mean adamw"),
        (OptimConfig("AdamW"), "did you mean adamw"),
        (OptimConfig("lookahed_adamw"), "unknown optimizer 'lookahed_adamw'"),
        (OptimConfig("lookahead_kron"), "needs the package opt_einsum"),
        (OptimConfig("adamw", momentum=0.5), "momentum is not used by adamw, which uses betas, eps: remove it"),
        (OptimConfig("adamw", nesterov=False), "nesterov is not used by adamw"),
        (OptimConfig("nlars", nesterov=False), "give --optim.options nesterov=True or nesterov=False"),
        (OptimConfig(betas=(0.9, 0.99)), "betas is not used by sgd, which uses momentum: remove it"),
        (OptimConfig("lion", eps=1e-6), "eps is not used by lion"),
        (OptimConfig("adan", betas=(0.9, 0.99)), "betas of adan must be 3 numbers, got [0.9, 0.99]"),
        (OptimConfig("adamw", betas=(0.9, 1.5)), "adamw does not accept these settings: Invalid beta"),
        (OptimConfig("adamw", options=("amsgrad",)), "must be NAME=VALUE, got amsgrad"),
        (OptimConfig("adamw", options=("amsgrd=True",)), "has no option amsgrd; did you mean amsgrad"),
        (OptimConfig("adamw", options=("weight_decay=1",)), "has no option weight_decay"),
        (OptimConfig("lamb", options=("max_grad_norm='x'",)), "lamb does not accept these settings"),
        (OptimConfig(momentum=0.0), "sgd does not accept these settings: Nesterov momentum requires a momentum"),
        (OptimConfig(lr=-1.0), "Invalid learning rate"),
    ],
)
def test_what_an_optimizer_does_not_take_is_one_line(config: OptimConfig, words: str) -> None:
    with pytest.raises(InputError) as refusal:
        check_optimizer(config)
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


def test_options_reach_the_optimizer() -> None:
    model = build_model(ModelConfig("test_resnet"), 10, CPU)
    settings = {"betas": (0.8, 0.9), "eps": 1e-5, "options": ("amsgrad=True",)}
    group = build_optimizer(model, OptimConfig("adamw", lr=0.5, **settings)).param_groups[0]
    assert (group["betas"], group["eps"], group["amsgrad"], group["lr"]) == ((0.8, 0.9), 1e-5, True, 0.5)
    assert build_optimizer(model, OptimConfig(options=("dampening=0.0",))).defaults["fused"]
    check_optimizer(OptimConfig("adafactorbv", lr=0.1, options=("momentum_dtype=float32",)))


def test_decay_groups_are_timms() -> None:
    model = build_model(ModelConfig("test_vit2"), 10, CPU)
    groups = build_optimizer(model, OptimConfig("adamw", weight_decay=0.05)).param_groups
    decayed = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) not in decayed}
    assert {"pos_embed", "cls_token"} & names  # of more than one dimension, and named by the model
    assert all(
        name in ("pos_embed", "cls_token", "reg_token") or p.ndim == 1
        for name, p in model.named_parameters()
        if name in names
    )


def test_corrected_decay_compares_with_the_peak_of_this_batch() -> None:
    model = build_model(ModelConfig("test_resnet"), 10, CPU)
    optimizer = build_optimizer(model, OptimConfig("adamc", lr=0.001), batch_size=1024)
    assert optimizer.param_groups[0]["max_lr_snapshot"] == pytest.approx(0.004)


@pytest.mark.parametrize(("scaling", "lr"), [("linear", 0.4), ("sqrt", 0.2), ("none", 0.1)])
def test_the_learning_rate_scales_with_the_batch_as_asked(scaling: Any, lr: float) -> None:
    assert peak_lr(OptimConfig(lr=0.1, lr_scaling=scaling), 1024) == pytest.approx(lr)


def test_another_optimizer_than_the_recipes_wants_a_learning_rate_and_none_of_its_settings() -> None:
    with pytest.raises(InputError, match=r"learning rate 0\.10625 is for sgd, not for adamw: give --optim\.lr"):
        parse_command(["fast_16", "--optim.name", "adamw"])
    optim = parse_command(["fast_16", "--optim.name", "adamw", "--optim.lr=0.001"]).recipe.optim
    assert (optim.name, optim.lr, optim.nesterov) == ("adamw", 0.001, True)  # fast_16 says False, of sgd
    check_optimizer(optim)


@pytest.mark.parametrize("flag", [["--optim.momentum", "0.9"], ["--optim.nesterov"], ["--optim.no-nesterov"]])
def test_a_flag_that_the_optimizer_does_not_use_is_one_line_even_with_the_usual_value(flag: list[str]) -> None:
    with pytest.raises(InputError, match=r"optim\.(momentum|nesterov) is not used by adamw.*remove it"):
        parse_command(["demo", "--optim.name", "adamw", "--optim.lr", "0.001", *flag])


def test_a_run_of_a_version_that_knew_sgd_alone_goes_on() -> None:
    ours = demo().to_dict()
    new = ("name", "lr_scaling", "betas", "eps", "options")
    theirs = {**ours, "optim": {name: value for name, value in ours["optim"].items() if name not in new}}
    assert first_difference(ours, complete(theirs)) is None
    assert first_difference(ours, complete({**theirs, "epochs": 9})) == "epochs"
    assert first_difference(ours, complete({**theirs, "unknown": 9})) is not None


def test_another_optimizer_leaves_the_recipes_decoupling_behind() -> None:
    optim = parse_command(["quick_24", "--optim.name", "adamw", "--optim.lr", "0.001"]).recipe.optim
    assert not optim.decoupled
    check_optimizer(optim)
    with pytest.raises(InputError, match=r"optim\.decoupled is not used by adamw"):
        parse_command(["quick_24", "--optim.name", "adamw", "--optim.lr", "0.001", "--optim.decoupled"])
