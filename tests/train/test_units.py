"""The formulas of training against their sources: schedule, decay groups, EMA, normalisation; and the recipes."""

import copy
import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import nn
from torchvision.transforms.functional import normalize

from loaders import Batch, World
from loaders.batch import Normalize
from prep.preprocess import IMAGENET_MEAN, IMAGENET_STD
from train.config import ModelConfig, OptimConfig, Recipe, first_difference
from train.fit import is_due
from train.metrics import Sums
from train.model import build_model
from train.optim import build_optimizer, lr_factor, peak_lr
from train.recipe import RECIPES, demo, seed_113, seed_113_aug
from train.step import Step, new_state

CPU = torch.device("cpu")


def test_lr_rises_from_zero_to_its_peak_and_falls_to_zero() -> None:
    factors = [lr_factor(step / 1000, 0.1) for step in range(1001)]
    assert (factors[0], factors[100], factors[1000]) == (0, 1, 0)
    assert all(a < b for a, b in pairwise(factors[:101]))
    assert all(a > b for a, b in pairwise(factors[100:]))
    assert lr_factor(1.01, 0.1) == 0  # the last batch reaches past the end


def test_lr_without_warmup_starts_at_its_peak() -> None:
    assert lr_factor(0.0, 0.0) == 1


def test_lr_is_timms_cosine_schedule() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = CosineLRScheduler(optimizer, t_initial=100, warmup_t=10, warmup_lr_init=0.0, warmup_prefix=False)
    prefixed = CosineLRScheduler(optimizer, t_initial=90, warmup_t=10, warmup_lr_init=0.0, warmup_prefix=True)
    for step in range(100):
        assert lr_factor(step / 100, 0.1) == pytest.approx(prefixed._get_lr(step)[0], abs=1e-12)
    assert theirs._get_lr(5)[0] == pytest.approx(lr_factor(0.05, 0.1))


def test_lr_on_a_straight_line_is_ffcvs() -> None:
    for epoch in np.linspace(0, 16, 321):
        ffcv = np.interp(epoch, [0, 2, 16], [0, 1, 0])
        assert lr_factor(epoch / 16, 2 / 16, "linear") == pytest.approx(ffcv, abs=1e-12)


@pytest.mark.parametrize(("batch_size", "lr"), [(256, 0.1), (64, 0.025), (1024, 0.4)])
def test_peak_lr_scales_with_the_batch(batch_size: int, lr: float) -> None:
    assert peak_lr(OptimConfig(lr=0.1), batch_size) == pytest.approx(lr)


def test_norms_and_biases_alone_are_not_decayed() -> None:
    model = build_model(ModelConfig("resnet50d"), 1000, CPU)
    groups = build_optimizer(model, OptimConfig(weight_decay=1e-4)).param_groups
    decay = {id(param): group["weight_decay"] for group in groups for param in group["params"]}
    names = dict(model.named_parameters())
    assert len(decay) == len(names)
    undecayed = {name for name, param in names.items() if decay[id(param)] == 0}
    assert undecayed == {name for name, p in names.items() if p.ndim == 1 or name.endswith(".bias")}
    assert {decay[id(p)] for name, p in names.items() if name not in undecayed} == {1e-4}
    assert "fc.weight" not in undecayed and {"fc.bias", "bn1.weight"} <= undecayed


def test_a_step_moves_the_ema_by_timms_formula_and_the_clock_by_a_batch() -> None:
    recipe = replace(demo(), batch_size=8, ema_decay=0.75)
    torch.manual_seed(0)
    model = build_model(recipe.model, 10, CPU)
    ema = copy.deepcopy(model)
    state = new_state(recipe, model, ema, build_optimizer(model, recipe.optim))
    step, sums = Step(recipe, state, 8000, World()), Sums.zero(CPU)
    expected = {name: tensor.clone() for name, tensor in ema.state_dict().items()}
    for position in (0, 8, 16):
        images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
        valid, damaged = torch.ones(8, dtype=torch.bool), torch.zeros(8, dtype=torch.bool)
        step(Batch(images, torch.arange(8), valid, damaged, position, np.arange(8)), sums)
        for name, tensor in model.state_dict().items():
            floating = tensor.is_floating_point()
            expected[name] = 0.75 * expected[name] + 0.25 * tensor if floating else tensor.clone()
    assert (state.clock, sums.num_images) == (24, 24)
    assert not torch.equal(model.state_dict()["fc.weight"], ema.state_dict()["fc.weight"])
    for name, tensor in ema.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_normalize_is_torchvisions() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    expected = normalize(images.float() / 255, list(IMAGENET_MEAN), list(IMAGENET_STD))
    torch.testing.assert_close(Normalize()(images), expected, rtol=0, atol=1e-6)


def test_sums_saved_and_restored_go_on_in_a_world_of_another_size() -> None:
    sums = Sums.zero(CPU)
    sums.add(torch.tensor(2.5), torch.eye(4), torch.tensor([0, 1, 2, 0]))
    saved = json.loads(json.dumps(sums.over_all_ranks(World())))
    assert saved == [10.0, 3.0, 4]
    halves = [Sums.zero(CPU) for _ in range(2)]
    for rank, half in enumerate(halves):
        half.restore(saved, World(rank=rank, size=2))
    assert sum(half.num_images for half in halves) == 4
    assert sum(half.loss_and_hits for half in halves).tolist() == [10.0, 3.0]  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_comes_back_from_json(name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]()
    recipe = replace(recipe, run=replace(recipe.run, dir=tmp_path))
    assert recipe.name == name
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_first_difference_names_the_field_and_passes_over_where_and_how_fast() -> None:
    recipe = demo()
    ours = recipe.to_dict()
    assert first_difference(ours, json.loads(json.dumps(ours))) is None  # tuples are lists in JSON
    moved = replace(recipe, data=replace(recipe.data, root=Path("elsewhere")), run=replace(recipe.run, keep=9))
    assert first_difference(ours, moved.to_dict()) is None
    other = replace(recipe, seed=1, optim=replace(recipe.optim, lr=9.0))
    assert first_difference(ours, other.to_dict()) == "seed"
    assert first_difference(ours, replace(other, seed=0).to_dict()) == "optim.lr"
    assert first_difference(ours, {**ours, "new": 1}) == "new"


@pytest.mark.parametrize(
    ("every", "before", "now", "passed"),
    [(100, 64, 96, False), (100, 96, 128, True), (100, 68, 100, True), (100, 100, 132, False), (0.5, 0, 32, True)],
)
def test_due_when_a_multiple_is_passed(every: float, before: int, now: int, passed: bool) -> None:
    assert is_due(every, before, now) is passed


def test_due_never_when_every_is_infinite() -> None:
    assert not is_due(math.inf, 0, 1 << 40)


def test_seed_113_is_what_it_says() -> None:
    recipe = seed_113()
    assert (recipe.model.name, recipe.epochs, recipe.batch_size) == ("resnet50d", 113, 256)
    assert (recipe.optim.lr, recipe.optim.warmup_epochs, recipe.optim.weight_decay) == (0.1, 5, 1e-4)
    assert (recipe.optim.momentum, recipe.optim.nesterov) == (0.9, True)
    assert (recipe.label_smoothing, recipe.ema_decay) == (0.1, 0.9999)
    assert (recipe.transform.size, recipe.evaluation.size) == (224, 224)


def test_a_run_that_is_all_warm_up_ends_at_its_peak() -> None:
    assert lr_factor(1.01, 1.0) == 1


def test_seed_113_aug_is_seed_113_and_what_the_reference_run_added() -> None:
    plain, augmented = seed_113().to_dict(), seed_113_aug().to_dict()
    changed = {name for name in plain if plain[name] != augmented[name]}
    assert changed == {"name", "transform", "mix", "erase", "run"}  # its folder has its name
    assert augmented["mix"] == {"mixup": 0.2, "cutmix": 1.0, "until": 52}
    assert (augmented["erase"]["probability"], augmented["erase"]["until"]) == (0.25, 83)
