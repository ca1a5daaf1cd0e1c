"""A run that is asked to leave saves, says so and exits with 75; run again it ends as if it had never been asked."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ranks import Ranks
from train_runs import (
    PATIENCE,
    Run,
    assert_ended,
    assert_same_end,
    await_that,
    count_logs,
    finish,
    start,
    torchrun,
)

from loaders import World
from train.checkpoint import read_meta
from train.preemption import LEFT_EARLY, Notices, Reason

pytest_plugins = ["train_fixtures"]
SIZE = 3  # processes: the sum of three gradients depends on the order of its addends

Calm = Callable[[int], Run]


def _marker(run: Run) -> dict[str, Any]:
    return json.loads((run.folder / "continue.json").read_text())


def _assert_left(run: Run, reason: str, said: str) -> None:
    """Saved, marked and told in one line."""
    marker = _marker(run)
    assert marker["reason"] == reason
    assert str(run.folder) in marker["command"]
    assert f"{reason}: saved at image {marker['clock']:,} in {run.folder}; the same command goes on" in said
    assert read_meta(run.checkpoints[-1])["clock"] == marker["clock"] > 0


def test_a_signal_to_one_of_three_makes_all_leave_at_the_same_step(
    trainers: Ranks, calm: Calm, digits: Path, tmp_path: Path
) -> None:
    run = Run(digits, tmp_path / "run")
    group = start(trainers, run, SIZE)
    await_that(lambda: count_logs(group) > 1, "two logs")
    trainers.signal(2, signal.SIGTERM)
    assert_ended(trainers.wait(PATIENCE), LEFT_EARLY)
    _assert_left(run, "SIGTERM", (group / "stdout-0").read_text())
    finish(trainers, run, SIZE)
    assert not (run.folder / "continue.json").exists()
    assert_same_end(run, calm(SIZE))


def test_sigterm_to_torchrun_is_saved_in_time(trainers: Ranks, calm: Calm, digits: Path, tmp_path: Path) -> None:
    run = Run(digits, tmp_path / "run")
    launcher = torchrun(run, SIZE, "--standalone")
    metrics = run.folder / "metrics.jsonl"
    await_that(lambda: metrics.exists() and metrics.read_text().count("\n") > 1, "two logs")
    launcher.terminate()
    said, _ = launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode != 0
    assert "SIGKILL" not in said
    _assert_left(run, "SIGTERM", said)
    finish(trainers, run, SIZE)
    assert_same_end(run, calm(SIZE))


def test_ctrl_c_and_again(trainers: Ranks, calm: Calm, digits: Path, tmp_path: Path) -> None:
    run = Run(digits, tmp_path / "run")
    for _ in range(2):
        group = start(trainers, run, 1)
        await_that(lambda group=group: count_logs(group) > 0, "a log")
        trainers.signal(0, signal.SIGINT)
        assert_ended(trainers.wait(PATIENCE), LEFT_EARLY)
        _assert_left(run, "SIGINT", (group / "stdout-0").read_text())
    finish(trainers, run, 1)
    assert_same_end(run, calm(1))


@pytest.mark.parametrize("moment", ["evaluate", "warm_up", "gather_facts"])
def test_nothing_is_lost_while_it_evaluates_starts_or_saves(
    trainers: Ranks, calm: Calm, digits: Path, tmp_path: Path, moment: str
) -> None:
    run = Run(digits, tmp_path / "run")
    start(trainers, run, SIZE, "fit-interrupted", moment=moment)
    assert_ended(trainers.wait(PATIENCE), 0)
    meta = read_meta(run.checkpoints[-1])
    assert meta["clock"] == _marker(run)["clock"]
    assert meta["owes_evaluation"] == (moment == "evaluate")
    finish(trainers, run, SIZE)
    assert_same_end(run, calm(SIZE))


def test_a_second_ctrl_c_interrupts_and_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Notices("off", World()) as notices:
        assert notices.agreed() == Reason.NONE
        os.kill(os.getpid(), signal.SIGINT)
        assert notices.agreed() == Reason.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
