"""Checkpoints are whole or passed over, and only the useful ones are kept."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from loaders import InputError
from train.checkpoint import (
    EMA,
    META,
    MODEL,
    OPTIMIZER,
    TrainState,
    find_fault,
    list_checkpoints,
    load_checkpoint,
    newest_whole,
    prune,
    save_checkpoint,
)


def _state(seed: int = 0, width: int = 3) -> TrainState:
    """A model with a running statistic, one step into its training."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width))
    ema = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    return TrainState(model, ema, optimizer, torch.amp.GradScaler("cpu", enabled=False))


def _save(folder: Path, *clocks: int) -> list[Path]:
    state = _state()
    paths = []
    for clock in clocks:
        state.clock = clock
        paths.append(save_checkpoint(folder, state, {"metrics": {}}))
    return paths


def _flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    saved, loaded = _state(1), _state(2)
    saved.clock = 640
    meta = load_checkpoint(save_checkpoint(tmp_path, saved, {"metrics": {"top1": 12.5}}), loaded)
    assert (loaded.clock, meta["metrics"]) == (640, {"top1": 12.5})
    for ours, theirs in ((saved.model, loaded.model), (saved.ema, loaded.ema)):
        for name, tensor in ours.state_dict().items():
            assert torch.equal(tensor, theirs.state_dict()[name]), name
    for ours, theirs in zip(saved.model.parameters(), loaded.model.parameters(), strict=True):
        momentum = saved.optimizer.state[ours]["momentum_buffer"]
        assert torch.equal(momentum, loaded.optimizer.state[theirs]["momentum_buffer"])


def test_the_newest_is_taken_by_its_clock(tmp_path: Path) -> None:
    _, newest = _save(tmp_path, 900, 10_000)
    assert newest_whole(tmp_path) == (newest, [])


@pytest.mark.parametrize("name", [MODEL, EMA, OPTIMIZER])
def test_one_flipped_byte_makes_the_one_before_be_taken(tmp_path: Path, name: str) -> None:
    before, newest = _save(tmp_path, 32, 64)
    _flip_a_byte(newest / name)
    path, said = newest_whole(tmp_path)
    assert path == before
    assert len(said) == 1
    assert str(newest) in said[0] and name in said[0] and "the one before" in said[0]


@pytest.mark.parametrize("name", [MODEL, META])
def test_a_missing_file_is_a_fault(tmp_path: Path, name: str) -> None:
    (path,) = _save(tmp_path, 32)
    assert find_fault(path) is None
    (path / name).unlink()
    assert find_fault(path)
    assert newest_whole(tmp_path)[0] is None


def test_what_a_killed_save_left_is_ignored_and_pruned(tmp_path: Path) -> None:
    (whole,) = _save(tmp_path, 32)
    partial = tmp_path / ".partial-step_0000000064"
    partial.mkdir()
    (partial / MODEL).write_bytes(b"half")
    assert newest_whole(tmp_path) == (whole, [])
    prune(tmp_path, keep=2, best=None)
    assert list(tmp_path.iterdir()) == [whole]


def test_a_save_after_a_killed_one_of_the_same_clock_is_whole(tmp_path: Path) -> None:
    partial = tmp_path / ".partial-step_0000000032"
    partial.mkdir()
    (partial / "rubbish").write_text("left by a kill")
    (path,) = _save(tmp_path, 32)
    assert sorted(file.name for file in path.iterdir()) == sorted([MODEL, EMA, OPTIMIZER, META])
    assert find_fault(path) is None


def test_prune_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    paths = _save(tmp_path, 32, 64, 96, 128)
    prune(tmp_path, keep=2, best=paths[0])
    assert list_checkpoints(tmp_path) == [paths[0], *paths[2:]]


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    (path,) = _save(tmp_path, 32)
    with pytest.raises(InputError, match=r"model\.safetensors does not fit: .*0\.weight") as refusal:
        load_checkpoint(path, _state(width=5))
    assert "\n" not in str(refusal.value)
