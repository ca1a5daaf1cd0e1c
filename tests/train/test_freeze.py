"""Frozen parts stay as they are to the bit, get no gradient, and have the same names in every network."""

import copy
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.families import FAMILIES
from helpers.ranks import Ranks
from helpers.starts import change_model, change_run, newest_checkpoint, refuse, small_recipe
from helpers.steps import CPU, random_batch, small
from helpers.train_runs import PATIENCE, Run, assert_ended, assert_same_end, finish, start
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from loaders import World
from prep.errors import InputError
from train import fit as trainer
from train.checkpoint import EMA, MODEL
from train.config import Recipe
from train.fit import fit
from train.freeze import BODY, STEM, find_head, find_parts, freeze_parts
from train.metrics import Sums
from train.model import build_model
from train.optim import build_optimizer
from train.origin import Origin
from train.step import Step, new_state, rehearse
from train.transfer import load_optimizer

NAME = "test_resnet"
PARTS = (STEM, "1", "2", "3", "4", BODY)
NUM_PARTS = {  # stages, by family; the survey of timm's own groups
    "ResNet": 4,
    "ConvNeXt": 4,
    "EfficientNet": 7,
    "ViT": 12,
    "Swin": 4,
    "DenseNet": 4,
    "CaiT": 24,
    "Inception v3": 12,
    "LeViT": 3,
    "PoolFormer": None,  # timm does not group its layers
}


@pytest.fixture(scope="module")
def source(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on all ten digits."""
    recipe = small_recipe(digits, tmp_path_factory.mktemp("source") / "run")
    assert fit(recipe, World())
    return recipe.run_dir


def build_frozen(parts: tuple[str, ...]) -> nn.Module:
    return build_model(replace(small().model, freeze=parts), 10, CPU)


def frozen_names(model: nn.Module, parts: tuple[str, ...]) -> set[str]:
    found = find_parts(model)
    return {name for part in parts for name in found[part]}


@pytest.mark.parametrize("family", NUM_PARTS)
def test_the_parts_of_every_family_are_disjoint_and_leave_out_the_classifier(family: str) -> None:
    with torch.device("meta"):
        model: Any = timm.create_model(FAMILIES[family].model, num_classes=7)
    head, num_stages = find_head(model), NUM_PARTS[family]
    parts = find_parts(model)
    stages = [] if num_stages is None else [STEM, *map(str, range(1, num_stages + 1))]
    assert list(parts) == [*stages, BODY]
    names = [name for part in stages for name in parts[part]]
    assert len(names) == len(set(names)) and set(names) <= set(parts[BODY])
    assert {name for name in model.state_dict() if name.startswith(head)} == {*model.state_dict()} - {*parts[BODY]}
    first = next(iter(model.state_dict()))
    assert not stages or first in parts[STEM], "the first tensor is the stem's"


@settings(deadline=None, max_examples=20)
@given(
    st.sets(st.sampled_from(PARTS), min_size=1), st.sampled_from(["sgd", "adamw", "lamb"]), st.sampled_from([0.0, 0.1])
)
def test_what_is_frozen_needs_no_gradient_keeps_its_statistics_and_is_not_in_the_optimizer(
    parts: set[str], optimizer: str, weight_decay: float
) -> None:
    model = build_frozen(tuple(sorted(parts)))
    frozen = frozen_names(model, tuple(parts))
    trained = {name for name, each in model.named_parameters() if each.requires_grad}
    assert trained == {name for name, _ in model.named_parameters()} - frozen
    for network in (model, copy.deepcopy(model)):
        for mode in (False, True, True):
            network.train(mode)
            for name, module in network.named_modules():
                if isinstance(module, _BatchNorm):
                    assert module.training == (mode and f"{name}.weight" not in frozen), name
    config = small().optim
    config = type(config)(name=optimizer, lr=0.1, weight_decay=weight_decay)
    groups = build_optimizer(model, config).param_groups
    held = {id(each) for group in groups for each in group["params"]}
    assert held == {id(each) for name, each in model.named_parameters() if name not in frozen}


@pytest.mark.parametrize("parts", [(STEM, "1"), ("2",), (BODY,)], ids=" ".join)
def test_steps_leave_frozen_tensors_and_their_ema_as_they_are(parts: tuple[str, ...]) -> None:
    recipe = small()
    torch.manual_seed(0)
    model = build_frozen(parts)
    ema = copy.deepcopy(model).requires_grad_(False)
    step = Step(recipe, new_state(recipe, model, ema, build_optimizer(model, recipe.optim)), 1600, World())
    before, sums = copy.deepcopy(model.state_dict()), Sums.zero(CPU)
    for position in range(0, 64, 16):
        rehearse(step, 16)
        assert all((each.grad is None) != each.requires_grad for each in model.parameters())
        step.state.optimizer.zero_grad()
        step(random_batch(position), sums)
        model.eval()
        model.train()  # as `validate` does
    frozen = frozen_names(model, parts)
    others = [each for each in find_parts(model).values() if frozen.isdisjoint(each)]
    for network in (model, ema):
        changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
        assert frozen.isdisjoint(changed) and {"fc.weight", "fc.bias"} <= changed
        assert all(changed & {*each} for each in others), "each part that is not frozen moves"


def test_a_run_with_frozen_parts_resumes_to_the_bit_and_keeps_them(
    digits: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(digits, tmp_path / "calm", init=source, freeze=(STEM, "1", "2"))
    assert fit(recipe, World())
    broken = change_run(recipe, dir=tmp_path / "broken")
    with monkeypatch.context() as patch:
        warm_up = trainer.warm_up
        patch.setattr(trainer, "warm_up", lambda step: (warm_up(step), signal.raise_signal(signal.SIGTERM)))
        assert not fit(broken, World())
    assert fit(broken, World())
    assert_same_end(Run(tmp_path, broken.run_dir), Run(tmp_path, recipe.run_dir))
    assert_frozen(recipe, source)


def assert_frozen(recipe: Recipe, source: Path) -> None:
    """The stem and two stages are those of the source's EMA, in model and EMA, at the end; the others have moved."""
    theirs = load_file(newest_checkpoint(change_run(recipe, dir=source)) / EMA)
    frozen = frozen_names(build_model(recipe.model, 10, CPU), (STEM, "1", "2"))
    for name in (MODEL, EMA):
        ours = load_file(newest_checkpoint(recipe) / name)
        changed = {key for key, tensor in ours.items() if not torch.equal(tensor, theirs[key])}
        assert frozen.isdisjoint(changed) and {"layer3.0.bn1.running_mean", "fc.weight"} <= changed


def test_two_processes_train_with_frozen_parts_and_resume_to_the_bit(
    trainers: Ranks, digits: Path, source: Path, tmp_path: Path
) -> None:
    flags = ("--model.init", str(source), "--model.freeze", STEM, "1", "2")
    calm, broken = Run(digits, tmp_path / "calm", flags), Run(digits, tmp_path / "broken", flags)
    finish(trainers, calm, 2)
    start(trainers, broken, 2, "fit-interrupted", moment="warm_up")
    assert_ended(trainers.wait(PATIENCE), 0)
    assert len(broken.checkpoints) == 2, "the first weights, and those at the signal"
    finish(trainers, broken, 2)
    assert_same_end(broken, calm)
    recipe = small_recipe(digits, calm.folder)
    assert_frozen(recipe, source)


def test_what_cannot_be_frozen_is_refused_in_one_line(digits: Path, source: Path, tmp_path: Path) -> None:
    recipe = small_recipe(digits, tmp_path / "run", freeze=("layer1",))
    assert "this run starts from random ones: give --model.pretrained" in refuse(recipe)
    line = refuse(change_model(recipe, init=source))
    assert line == f"{NAME} has no part layer1 to freeze: give one or more of stem, 1, 2, 3, 4, body"
    with pytest.raises(InputError, match="poolformer_s12 has no part 1 to freeze: give one or more of body"):
        freeze_parts(timm.create_model("poolformer_s12"), ("1",), "poolformer_s12")
    model: Any = timm.create_model(NAME)
    with pytest.raises(InputError, match="freeze body leaves nothing of test_resnet to train"):
        freeze_parts(model.requires_grad_(False), (BODY,), NAME)
    model.pretrained_cfg = {}
    with pytest.raises(InputError, match="has no part body to freeze: give another --model"):
        freeze_parts(model, (BODY,), NAME)


def test_momentum_of_other_frozen_parts_is_refused(tmp_path: Path) -> None:
    """ResNet-18's stages have equally many parameters, of other shapes."""
    config = small().optim
    origin = Origin(str(tmp_path), {}, 0, "resnet18", None, {}, optimizer="sgd")
    with torch.device("meta"):
        second, third = (timm.create_model("resnet18", num_classes=10) for _ in range(2))
    freeze_parts(second, ("2",), "resnet18")
    freeze_parts(third, ("3",), "resnet18")
    saved, other = build_optimizer(second, config), build_optimizer(third, config)
    with pytest.raises(InputError, match=r"does not fit this run's \(sgd\): remove --run\.from-optimizer"):
        load_optimizer(saved.state_dict(), origin, small(), other)
    load_optimizer(saved.state_dict(), origin, small(), build_optimizer(second, config))
