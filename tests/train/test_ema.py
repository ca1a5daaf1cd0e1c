"""The averaged weights are timm's, to the bit, whatever happens to the networks between two steps."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers.steps import build_step, random_batch, small
from helpers.train_runs import small_state
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.utils import ModelEmaV3
from torch import nn

from loaders import World
from prep.errors import InputError
from train.checkpoint import load_checkpoint, take_snapshot, write_checkpoint
from train.config import DataConfig, Recipe, RunConfig
from train.ema import Ema, decay_of_update, is_update_due
from train.fit import fit
from train.metrics import Sums
from train.recipe import demo

DECAY, NUM_STEPS, SIZE = 0.97, 5, 32


def build_network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = timm.create_model("test_resnet", num_classes=10)
    return model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def train_on(model: nn.Module) -> Iterator[int]:
    """Changes weights, running statistics and counters, at each step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    for number in range(NUM_STEPS):
        images_BCHW = torch.randn(4, 3, SIZE, SIZE, generator=generator).contiguous(memory_format=torch.channels_last)
        model(images_BCHW).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        yield number


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    pairs = zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True)
    for (name, tensor), other in pairs:
        assert torch.equal(tensor, other), name
        assert tensor.stride() == other.stride(), name


def test_the_average_is_timms_to_the_bit() -> None:
    model = build_network()
    theirs = ModelEmaV3(model, decay=DECAY)
    average = copy.deepcopy(model).requires_grad_(False)
    ours, before = Ema(model, average, DECAY), copy.deepcopy(average.state_dict())
    for number in train_on(model):
        ours.update()
        theirs.update(model)
        assert_same(average, theirs.module)
        counters = [tensor for name, tensor in average.state_dict().items() if name.endswith("num_batches_tracked")]
        assert counters and all(int(tensor) == number + 1 for tensor in counters)
    assert not torch.equal(average.state_dict()["fc.weight"], before["fc.weight"])


def test_the_average_follows_what_is_loaded_and_what_is_compiled() -> None:
    model, other = build_network(), build_network(seed=1)
    theirs = ModelEmaV3(model, decay=DECAY)
    average = copy.deepcopy(model).requires_grad_(False)
    ours = Ema(model, average, DECAY)
    model.compile(backend="eager")  # in place, as the trainer does
    for _ in train_on(model):
        ours.update()
        theirs.update(model)
    for module in (model, average, theirs.module):
        module.load_state_dict(other.state_dict())
    for _ in train_on(model):
        ours.update()
        theirs.update(model)
    assert_same(average, theirs.module)
    assert not torch.equal(average.state_dict()["fc.weight"], other.state_dict()["fc.weight"])


def test_the_average_follows_a_loaded_checkpoint(tmp_path: Path) -> None:
    saved, loaded = small_state(1), small_state(2)
    ours = Ema(loaded.model, loaded.ema, DECAY)
    load_checkpoint(write_checkpoint(tmp_path, take_snapshot(saved), {"metrics": {}}), loaded)
    theirs = ModelEmaV3(saved.model, decay=DECAY)
    theirs.module.load_state_dict(saved.ema.state_dict())
    ours.update()
    theirs.update(saved.model)
    assert_same(loaded.ema, theirs.module)
    assert not torch.equal(loaded.ema.state_dict()["0.weight"], saved.ema.state_dict()["0.weight"])


def test_the_states_are_collected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting them at every step costs more CPU time than the update itself."""
    model = build_network()
    ours = Ema(model, copy.deepcopy(model).requires_grad_(False), DECAY)
    monkeypatch.setattr(nn.Module, "state_dict", lambda *_, **__: pytest.fail("collected again"))
    ours.update()


# Half-life and interval.


class Moving:
    """A network of one weight that is at `position` images, and its average, moved as a run moves it."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.model, self.clock = recipe, nn.Linear(1, 1, bias=False, dtype=torch.float64), 0
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        for each in (self.model, self.average):
            nn.init.zeros_(each.weight)
        self.ema = Ema(self.model, self.average, decay_of_update(recipe))

    def train(self, num_images: int, path: Callable[[float], float]) -> list[float]:
        """Move the weight along a path of the images seen; return the average after each step."""
        averages = []
        while self.clock < num_images:
            self.clock += self.recipe.batch_size
            self.model.weight.data.fill_(path(self.clock))
            if is_update_due(self.recipe, self.clock):
                self.ema.update()
            averages.append(float(self.average.weight))
        return averages


reproducible = settings(deadline=None, derandomize=True)
batch_sizes, intervals = st.sampled_from([8, 32, 256]), st.integers(1, 20)


@reproducible
@given(batch_sizes, intervals, st.floats(500, 50_000), st.integers(0, 2**31))
def test_an_average_by_half_life_is_composers_formula(batch_size: int, every: int, half_life: float, seed: int) -> None:
    """smoothing = 2 ** -(interval / half-life), at every step whose number is a multiple of the interval."""
    recipe = replace(demo(), batch_size=batch_size, ema_every=every, ema_half_life=half_life)
    values = np.random.default_rng(seed).normal(size=50)
    ours = Moving(recipe).train(50 * batch_size, lambda clock: float(values[round(clock) // batch_size - 1]))
    smoothing, average, expected = 2.0 ** -(every / (half_life / batch_size)), 0.0, []
    for number, value in enumerate(values, start=1):
        if number % every == 0:
            average = smoothing * average + (1 - smoothing) * value
        expected.append(average)
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12)


@reproducible
@given(batch_sizes, intervals, st.floats(500, 5000))
def test_after_a_half_life_half_is_new_for_any_batch_and_interval(
    batch_size: int, every: int, half_life: float
) -> None:
    """A weight that jumps to 1: the average is 1 - 0.5 ** (images / half-life), sampled at its updates."""
    recipe = replace(demo(), batch_size=batch_size, ema_every=every, ema_half_life=half_life)
    moving = Moving(recipe)
    averages = moving.train(round(2 * half_life), lambda clock: 1.0)
    for number, average in enumerate(averages, start=1):
        images = number // every * every * batch_size  # up to the last update
        assert average == pytest.approx(1 - 0.5 ** (images / half_life), abs=1e-9)


@pytest.mark.parametrize(("batch_size", "every"), [(64, 20), (128, 10), (1280, 1)])
def test_averages_of_the_same_weights_agree_for_any_batch_and_interval(batch_size: int, every: int) -> None:
    """Sampled at the same images they are the same numbers; at more images they differ by the sampling alone."""
    path, half_life = (lambda clock: np.sin(clock / 30_000)), 20_000.0
    base = replace(demo(), ema_half_life=half_life)
    ours = Moving(replace(base, batch_size=batch_size, ema_every=every)).train(128_000, path)[-1]
    assert ours == pytest.approx(Moving(replace(base, batch_size=1280)).train(128_000, path)[-1], abs=1e-12)
    fine = Moving(replace(base, batch_size=16)).train(128_000, path)[-1]
    assert abs(ours - fine) < 1280 / 30_000  # at most the change of the weight between two samples


def test_without_a_half_life_the_decay_is_of_one_step() -> None:
    recipe = replace(demo(), ema_decay=0.9)
    assert decay_of_update(recipe) == 0.9
    assert decay_of_update(replace(recipe, ema_every=20)) == pytest.approx(0.9**20)


def test_a_step_moves_the_average_at_its_interval_alone() -> None:
    recipe = small(ema_every=3, ema_half_life=48.0)
    step = build_step(recipe)
    expected = {name: tensor.clone() for name, tensor in step.state.ema.state_dict().items()}
    for number in range(1, 8):
        step(random_batch(step.state.clock), Sums.zero(torch.device("cpu")))
        if number % 3 == 0:
            for name, tensor in step.state.model.state_dict().items():
                floating = tensor.is_floating_point()
                expected[name] = 0.5 * expected[name] + 0.5 * tensor if floating else tensor.clone()
        for name, tensor in step.state.ema.state_dict().items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-7, msg=f"{number} {name}")
    assert not torch.equal(step.state.ema.state_dict()["fc.weight"], step.state.model.state_dict()["fc.weight"])


def test_an_average_that_would_never_move_is_refused(digits: Path, tmp_path: Path) -> None:
    recipe = replace(demo(), epochs=0.5, batch_size=64, ema_every=13, amp="none")
    recipe = replace(recipe, data=DataConfig(digits), run=RunConfig(tmp_path / "run"))
    recipe = replace(recipe, optim=replace(recipe.optim, warmup_epochs=0.0))
    with pytest.raises(InputError, match=r"ema_every must be at most the run's 12 steps, got 13: .* --ema-every 12"):
        fit(recipe, World())
    assert not (tmp_path / "run").exists()
