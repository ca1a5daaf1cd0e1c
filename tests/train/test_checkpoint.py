"""Checkpoints are complete or skipped, and only the useful ones are kept."""

from collections.abc import Sequence
from itertools import chain, repeat
from pathlib import Path

import pytest
import torch
from helpers.train_runs import small_state

from prep.errors import InputError
from train.checkpoint import (
    EMA,
    META,
    MODEL,
    OPTIMIZER,
    find_fault,
    list_checkpoints,
    load_checkpoint,
    newest_complete,
    prune,
    read_meta,
    take_snapshot,
    write_checkpoint,
)


def _save(folder: Path, *clocks: int, scores: Sequence[dict[str, float]] = ()) -> list[Path]:
    state = small_state()
    paths = []
    for clock, metrics in zip(clocks, chain(scores, repeat({})), strict=False):
        state.clock = clock
        paths.append(write_checkpoint(folder, take_snapshot(state), {"metrics": metrics}))
    return paths


def _flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    saved, loaded = small_state(1), small_state(2)
    saved.clock = 640
    path = write_checkpoint(tmp_path, take_snapshot(saved), {"metrics": {"top1": 12.5}})
    meta = load_checkpoint(path, loaded)
    assert (loaded.clock, meta["metrics"]) == (640, {"top1": 12.5})
    for ours, theirs in ((saved.model, loaded.model), (saved.ema, loaded.ema)):
        for name, tensor in ours.state_dict().items():
            assert torch.equal(tensor, theirs.state_dict()[name]), name
    for ours, theirs in zip(saved.model.parameters(), loaded.model.parameters(), strict=True):
        momentum = saved.optimizer.state[ours]["momentum_buffer"]
        assert torch.equal(momentum, loaded.optimizer.state[theirs]["momentum_buffer"])


def test_the_newest_is_taken_by_its_clock(tmp_path: Path) -> None:
    _, newest = _save(tmp_path, 900, 10_000)
    assert newest_complete(tmp_path) == (newest, [])


@pytest.mark.parametrize("name", [MODEL, EMA, OPTIMIZER])
def test_one_flipped_byte_makes_the_one_before_be_taken(tmp_path: Path, name: str) -> None:
    before, newest = _save(tmp_path, 32, 64)
    _flip_a_byte(newest / name)
    path, said = newest_complete(tmp_path)
    assert path == before
    assert len(said) == 1
    assert str(newest) in said[0] and name in said[0] and "using the previous one" in said[0]


@pytest.mark.parametrize("name", [MODEL, META])
def test_a_missing_file_is_a_fault(tmp_path: Path, name: str) -> None:
    (path,) = _save(tmp_path, 32)
    assert find_fault(path) is None
    (path / name).unlink()
    assert find_fault(path)
    assert newest_complete(tmp_path)[0] is None


def test_what_a_killed_save_left_is_ignored_and_pruned(tmp_path: Path) -> None:
    (whole,) = _save(tmp_path, 32)
    partial = tmp_path / ".partial-step_0000000064"
    partial.mkdir()
    (partial / MODEL).write_bytes(b"half")
    assert newest_complete(tmp_path) == (whole, [])
    prune(tmp_path, keep=2)
    assert list(tmp_path.iterdir()) == [whole]


def test_a_save_after_a_killed_one_of_the_same_clock_is_whole(tmp_path: Path) -> None:
    partial = tmp_path / ".partial-step_0000000032"
    partial.mkdir()
    (partial / "rubbish").write_text("left by a kill")
    (path,) = _save(tmp_path, 32)
    assert sorted(file.name for file in path.iterdir()) == sorted([MODEL, EMA, OPTIMIZER, META])
    assert find_fault(path) is None


def test_prune_keeps_the_newest_and_the_best_by_each_score(tmp_path: Path) -> None:
    scores = [{"top1": 3, "ema_top1": 1}, {"top1": 2, "ema_top1": 4}, {"top1": 1, "ema_top1": 2}, {}, {}]
    paths = _save(tmp_path, 32, 64, 96, 128, 160, scores=scores)
    prune(tmp_path, keep=1)
    assert list_checkpoints(tmp_path) == [paths[0], paths[1], paths[4]]


def test_prune_passes_over_a_damaged_score(tmp_path: Path) -> None:
    paths = _save(tmp_path, 32, 64, 96, scores=[{"top1": 3.0}, {"top1": 2.0}, {}])
    (paths[0] / META).write_text("{")
    prune(tmp_path, keep=1)
    assert list_checkpoints(tmp_path) == paths[1:]


def test_a_whole_checkpoint_of_the_same_clock_is_told_new_facts_and_stays(tmp_path: Path) -> None:
    (path,) = _save(tmp_path, 32)
    files = {name: (path / name).stat().st_ino for name in (MODEL, EMA, OPTIMIZER)}
    assert _save(tmp_path, 32, scores=[{"top1": 9.0}]) == [path]
    assert {name: (path / name).stat().st_ino for name in files} == files
    assert read_meta(path)["metrics"] == {"top1": 9.0}
    assert newest_complete(tmp_path) == (path, [])


def test_a_damaged_checkpoint_of_the_same_clock_is_written_anew(tmp_path: Path) -> None:
    (path,) = _save(tmp_path, 32)
    _flip_a_byte(path / MODEL)
    _save(tmp_path, 32)
    assert newest_complete(tmp_path) == (path, [])


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    (path,) = _save(tmp_path, 32)
    with pytest.raises(InputError, match=r"model\.safetensors does not fit: .*0\.weight") as refusal:
        load_checkpoint(path, small_state(width=5))
    assert "\n" not in str(refusal.value)
