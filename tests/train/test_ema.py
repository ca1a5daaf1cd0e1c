"""The averaged weights are timm's, to the bit, whatever happens to the networks between two steps."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from helpers.train_runs import small_state
from timm.utils import ModelEmaV3
from torch import nn

from train.checkpoint import load_checkpoint, take_snapshot, write_checkpoint
from train.step import Ema

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
