"""Failed steps change nothing; gradients of parts add up to those of the batch; golden losses."""

import copy
import json
import os
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from helpers.steps import build_step, random_batch, small, tensors
from torch import nn

from loaders import Sampling, Split, World, build_loader
from prep.errors import InputError
from train.batch_augment import Mix
from train.compile import SpeedConfig
from train.config import EraseConfig
from train.metrics import Sums
from train.step import Guard, NotFiniteError, warm_up

CPU = torch.device("cpu")
GOLDEN = Path(__file__).with_name("golden_losses.json")
NUM_STEPS = 20


@pytest.mark.parametrize(("amp", "poison"), [("none", float("nan")), ("bf16", float("inf")), ("fp16", float("nan"))])
def test_a_step_that_is_not_finite_changes_no_weight_and_no_statistic(
    amp: str, poison: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, sums = build_step(small(amp=amp, ema_decay=1.0)), Sums.zero(CPU)
    step(random_batch(0), sums)
    before, clock = tensors(step), step.state.clock
    with monkeypatch.context() as patch:
        patch.setattr(step, "augment", lambda images, _: (torch.full(images.shape, poison), Mix()))
        step(random_batch(16), sums)
    after = tensors(step)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(name.endswith("num_batches_tracked") for name in changed)
    assert step.state.clock == clock + 16
    assert int(step.guard.num_in_a_row) == 1
    # The next steps train again. torch's bf16 convolutions on a CPU sometimes give gradients that are not finite, and
    # those steps are skipped too: take three, and more until one has changed the weights.
    num_steps = 0
    while num_steps < 3 or (
        num_steps < 50 and torch.equal(tensors(step)["model fc.weight"], before["model fc.weight"])
    ):
        step(random_batch(32 + 16 * num_steps), sums)
        num_steps += 1
    assert int(step.guard.num_in_a_row) == 0
    assert not torch.equal(tensors(step)["model fc.weight"], before["model fc.weight"])
    assert all(tensor.isfinite().all() for tensor in tensors(step).values())
    assert sums.loss_and_hits.isfinite().all() and sums.num_images == 32 + 16 * num_steps


def test_a_first_step_that_is_skipped_leaves_no_momentum(monkeypatch: pytest.MonkeyPatch) -> None:
    step, sums = build_step(small()), Sums.zero(CPU)
    with monkeypatch.context() as patch:
        patch.setattr(step, "augment", lambda images, _: (torch.full(images.shape, float("nan")), Mix()))
        step(random_batch(0), sums)
    momenta = [tensor for name, tensor in tensors(step).items() if name.startswith("momentum")]
    assert len(momenta) == len(list(step.state.model.parameters()))
    assert not any(tensor.any() for tensor in momenta)


def test_too_many_in_a_row_are_an_error() -> None:
    guard = Guard(nn.BatchNorm2d(3), CPU)
    for is_finite in (False, False, True, False, False):
        guard.rollback_unless_finite(torch.tensor(is_finite))
        guard.check_bad_steps(3, World())
    guard.rollback_unless_finite(torch.tensor(False))
    with pytest.raises(NotFiniteError, match="not finite for 3 steps in a row"):
        guard.check_bad_steps(3, World())


@pytest.mark.parametrize("microbatch", [16, 8, 4])
def test_gradients_of_parts_add_up_to_those_of_the_batch(microbatch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = build_step(small())
    parts = build_step(small(speed=SpeedConfig(microbatch=microbatch)))
    assert parts.num_parts == 16 // microbatch
    for step in (whole, parts):
        step.state.model.eval()  # running statistics, which do not depend on what goes through at once
        step(random_batch(0), Sums.zero(CPU))
    for name, tensor in whole.state.model.state_dict().items():
        torch.testing.assert_close(parts.state.model.state_dict()[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_parts_of_a_share_are_what_more_processes_would_take() -> None:
    step, seen = build_step(small(speed=SpeedConfig(microbatch=4))), []
    augment = step.augment
    step.augment = lambda images, position: seen.append((position, len(images))) or augment(images, position)  # pyright: ignore[reportAttributeAccessIssue]
    step(random_batch(32), Sums.zero(CPU))
    assert seen == [(32, 4), (36, 4), (40, 4), (44, 4)]


def test_a_microbatch_that_does_not_fit_is_refused() -> None:
    with pytest.raises(
        InputError,
        match=r"per process \(16\) must be a multiple of --speed.microbatch \(5\): give --speed.microbatch 4",
    ):
        build_step(small(speed=SpeedConfig(microbatch=5)))
    with pytest.raises(InputError, match=r"--speed\.compile must be one of none, default, .* got fast"):
        SpeedConfig(compile="fast").check_speed()  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=r"--speed\.microbatch must be at least 1, or 0 for all at once, got -1"):
        SpeedConfig(microbatch=-1).check_speed()


def test_a_warm_up_runs_each_resolution_and_changes_nothing() -> None:
    recipe = small(epochs=8)
    growing = replace(recipe.transform, size=64, first_size=32, grow=(2, 4))
    step, seen = build_step(replace(recipe, transform=growing, speed=SpeedConfig(compile="default"))), []
    step.model = copy.deepcopy(step.state.model)  # not compiled: that is tried on its own
    step.model._compiled_call_impl = None
    step.state.model = step.model
    step.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    before = tensors(step)
    warm_up(step)
    assert seen == [(16, 3, 32, 32), (16, 3, 64, 64)]
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors(step).items())


def test_twenty_steps_give_the_golden_losses(digits: Path) -> None:
    recipe = small(batch_size=32)
    split = Split(digits, "train")
    loader = build_loader(split, recipe.transform, recipe.batch_size, sampling=Sampling(recipe.seed))
    step, losses = build_step(recipe, torch.float64), []  # in float32 20 steps drift apart by percents from CPU to CPU
    augment = step.augment
    step.augment = lambda images, position: (augment(images, position)[0].double(), Mix())  # pyright: ignore[reportAttributeAccessIssue]
    for batch in islice(loader, NUM_STEPS):
        sums = Sums.zero(CPU)
        step(batch, sums)
        losses.append(sums.loss_and_hits[0].item() / recipe.batch_size)
    if os.environ.get("PENSTOCK_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(losses, indent=1) + "\n")
    assert losses == pytest.approx(json.loads(GOLDEN.read_text()), rel=1e-6)


def test_a_preview_is_what_the_network_sees() -> None:
    batch = random_batch(0)
    assert torch.equal(build_step(small()).preview(batch, 4), batch.images_BCHW[:4])  # nothing is done on the device
    erased = build_step(small(erase=EraseConfig(probability=1.0))).preview(batch, 4)
    assert (erased != batch.images_BCHW[:4]).any(dim=(1, 2, 3)).all()
