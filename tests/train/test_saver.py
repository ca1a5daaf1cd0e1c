"""A save is of the moment at which it was asked for, is written meanwhile, and never fails in silence."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.train_runs import small_state

import train.checkpoint
from loaders import World
from train.checkpoint import Saver, Snapshot, TrainState, load_checkpoint, newest_complete, write_checkpoint

FACTS: dict[str, Any] = {"metrics": {}}


def _change(state: TrainState) -> None:
    """Change the state in place, as the next steps do."""
    with torch.no_grad():
        momentum = [each["momentum_buffer"] for each in state.optimizer.state.values()]
        for tensor in [*state.model.state_dict().values(), *state.ema.state_dict().values(), *momentum]:
            tensor.add_(1)
    state.clock += 32


def _values(state: TrainState) -> list[torch.Tensor]:
    momentum = [each["momentum_buffer"] for each in state.optimizer.state.values()]
    modules = [*state.model.state_dict().values(), *state.ema.state_dict().values()]
    return [tensor.detach().clone() for tensor in [*modules, *momentum]]


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Writing waits for this event."""
    event = threading.Event()

    def write_later(folder: Path, snapshot: Snapshot, facts: dict[str, Any]) -> Path:
        assert event.wait(30)
        return write_checkpoint(folder, snapshot, facts)

    monkeypatch.setattr(train.checkpoint, "write_checkpoint", write_later)
    return event


def test_what_is_saved_is_the_state_at_that_moment(tmp_path: Path, hold: threading.Event) -> None:
    state, loaded = small_state(1), small_state(2)
    state.clock, expected = 64, _values(state)
    with Saver(tmp_path, 2, World()) as saver:
        saver.save(state, FACTS)
        _change(state)
        assert newest_complete(tmp_path) == (None, [])  # training was not held up
        hold.set()
    path, _ = newest_complete(tmp_path)
    assert path is not None
    load_checkpoint(path, loaded)
    assert loaded.clock == 64
    assert all(map(torch.equal, _values(loaded), expected))
    assert not any(map(torch.equal, _values(state), expected))


def _use_scaler(state: TrainState) -> None:
    """Scale as fp16 training does: from then on scale and tracker are tensors."""
    weight = next(state.model.parameters())
    state.scaler = torch.amp.GradScaler(weight.device.type, init_scale=1024.0)
    state.scaler.scale(state.model(torch.ones(8, 4, device=weight.device)).square().sum()).backward()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad()


def test_the_scale_is_saved(tmp_path: Path) -> None:
    state, loaded = small_state(1), small_state(2)
    _use_scaler(state)
    loaded.scaler = torch.amp.GradScaler("cpu")
    with Saver(tmp_path, 2, World()) as saver:
        saver.save(state, FACTS)
        state.scaler.update(7.0)
    path, _ = newest_complete(tmp_path)
    assert path is not None
    load_checkpoint(path, loaded)
    assert loaded.scaler.get_scale() == 1024.0


@pytest.mark.gpu
def test_a_save_from_a_gpu_is_of_that_moment_and_does_not_wait_for_its_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    state, loaded = small_state(1), small_state(2)
    loaded.scaler = torch.amp.GradScaler("cpu")
    state.model.cuda()
    state.ema.cuda()
    for each in state.optimizer.state.values():
        each["momentum_buffer"] = each["momentum_buffer"].cuda()
    _use_scaler(state)
    read_scaler = state.scaler.state_dict

    def read_scaler_then_keep_busy() -> dict[str, Any]:
        saved = read_scaler()  # the one wait of a save
        torch.cuda._sleep(2_000_000_000)  # about a second of the GPU's time, before the copies
        return saved

    with Saver(tmp_path, 2, World(device=torch.device("cuda"))) as saver:
        saver.save(state, FACTS)  # pins the memory, which may wait for the GPU
        saver.wait()
        _change(state)
        expected = [tensor.cpu() for tensor in _values(state)]
        monkeypatch.setattr(state.scaler, "state_dict", read_scaler_then_keep_busy)
        saver.save(state, FACTS)
        assert not torch.cuda.current_stream().query()
        _change(state)
    path, _ = newest_complete(tmp_path)
    assert path is not None
    load_checkpoint(path, loaded)
    assert all(map(torch.equal, _values(loaded), expected))
    assert loaded.scaler.get_scale() == 1024.0


def test_saves_are_written_one_after_the_other_and_the_oldest_goes(tmp_path: Path, hold: threading.Event) -> None:
    hold.set()
    state = small_state()
    with Saver(tmp_path, 2, World()) as saver:
        for _ in range(4):
            _change(state)
            saver.save(state, FACTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_0000000096", "step_0000000128"]


def _fail(*_: object) -> Path:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "next_call", [lambda saver: saver.save(small_state(), FACTS), Saver.wait], ids=["save", "wait"]
)
def test_an_error_of_writing_is_raised_at_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, next_call: Callable[[Saver], None]
) -> None:
    monkeypatch.setattr(train.checkpoint, "write_checkpoint", _fail)
    with Saver(tmp_path, 2, World()) as saver:
        saver.save(small_state(), FACTS)
        with pytest.raises(OSError, match="No space left"):
            next_call(saver)


def test_an_error_of_the_last_save_is_raised_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.checkpoint, "write_checkpoint", _fail)
    with pytest.raises(OSError, match="No space left"), Saver(tmp_path, 2, World()) as saver:
        saver.save(small_state(), FACTS)


def test_rank_0_alone_writes(tmp_path: Path) -> None:
    with Saver(tmp_path, 2, World(rank=1, size=2)) as saver:
        saver.save(small_state(), FACTS)
    assert list(tmp_path.iterdir()) == []
