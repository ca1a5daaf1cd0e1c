"""A run that is asked to leave saves, says so and exits with 75; run again it ends as if it had never been asked."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.ranks import Ranks
from helpers.train_runs import (
    PATIENCE,
    Run,
    assert_ended,
    assert_same_end,
    await_that,
    find_workers,
    finish,
    start,
    torchrun,
)

from loaders import World
from prep.errors import InputError, print_or_discard
from train.checkpoint import read_meta
from train.preemption import LEFT_EARLY, Notices, Reason, is_orphan, watch_launcher

SIZE = 3  # processes: the sum of three gradients depends on the order of its addends

Calm = Callable[[int], Run]


def _marker(run: Run) -> dict[str, Any]:
    return json.loads((run.folder / "continue.json").read_text())


def _assert_left(run: Run, reason: str, said: str) -> None:
    """Saved, marked and told in one line."""
    marker = _marker(run)
    assert marker["reason"] == reason
    assert str(run.folder) in marker["command"]
    assert f"{reason}: saved at image {marker['clock']:,} in {run.folder}; the same command resumes" in said
    assert read_meta(run.checkpoints[-1])["clock"] == marker["clock"] > 0


def _signal_in_the_middle(trainers: Ranks, group: Path, size: int, rank: int, number: int) -> None:
    """Send a signal to a rank while all ranks are held after some steps, then let them go on."""
    await_that(lambda: len(list(group.glob("held-*"))) == size, "all ranks in the middle of the run")
    trainers.signal(rank, number)
    (group / "go").touch()


def test_a_signal_to_one_of_three_makes_all_leave_at_the_same_step(
    trainers: Ranks, calm: Calm, digits: Path, tmp_path: Path
) -> None:
    run = Run(digits, tmp_path / "run")
    _signal_in_the_middle(trainers, group := start(trainers, run, SIZE, "script-held"), SIZE, 2, signal.SIGTERM)
    assert_ended(trainers.wait(PATIENCE), LEFT_EARLY)
    _assert_left(run, "SIGTERM", (group / "stdout-0").read_text())
    finish(trainers, run, SIZE)
    assert not (run.folder / "continue.json").exists()
    assert_same_end(run, calm(SIZE))


def test_sigterm_to_torchrun_is_saved_in_time(trainers: Ranks, calm: Calm, digits: Path, tmp_path: Path) -> None:
    run = Run(digits, tmp_path / "run")
    launcher = torchrun(run, 2, "--standalone")  # two, because each needs some seconds to import torch
    metrics = run.folder / "metrics.jsonl"
    await_that(lambda: metrics.exists() and metrics.read_text().count("\n") > 1, "two logs")
    launcher.terminate()
    said, _ = launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode != 0
    assert "SIGKILL" not in said
    _assert_left(run, "SIGTERM", said)
    finish(trainers, run, 2)
    assert_same_end(run, calm(2))


def test_processes_of_a_torchrun_that_hangs_up_or_is_killed_save_and_leave(digits: Path, tmp_path: Path) -> None:
    run, size = Run(digits, tmp_path / "run", ("--epochs", "200")), 2
    metrics, num_logs = run.folder / "metrics.jsonl", 0
    for number, reason in ((signal.SIGHUP, "SIGHUP"), (signal.SIGKILL, "SIGTERM")):
        launcher = torchrun(run, size, "--standalone")
        await_that(lambda least=num_logs: metrics.exists() and metrics.read_text().count("\n") > least, "a log")
        workers = [os.pidfd_open(pid) for pid in find_workers(launcher).values()]
        assert len(workers) == size
        launcher.send_signal(number)
        for worker in workers:
            assert select.select([worker], [], [], PATIENCE)[0], "a process of torchrun's does not end"
            os.close(worker)
        said, _ = launcher.communicate(timeout=PATIENCE)
        _assert_left(run, reason, said)
        assert ("has ended: this process ends too" in said) == (number == signal.SIGKILL)
        num_logs = metrics.read_text().count("\n")


def test_ctrl_c_and_the_end_of_the_terminal(trainers: Ranks, calm: Calm, digits: Path, tmp_path: Path) -> None:
    run = Run(digits, tmp_path / "run")
    for number in (signal.SIGINT, signal.SIGHUP):
        _signal_in_the_middle(trainers, group := start(trainers, run, 1, "script-held"), 1, 0, number)
        assert_ended(trainers.wait(PATIENCE), LEFT_EARLY)
        _assert_left(run, number.name, (group / "stdout-0").read_text())
    finish(trainers, run, 1)
    assert_same_end(run, calm(1))


@pytest.mark.parametrize("moment", ["run_validation", "warm_up", "gather_facts"])
def test_nothing_is_lost_while_it_evaluates_starts_or_saves(
    trainers: Ranks, calm: Calm, digits: Path, tmp_path: Path, moment: str
) -> None:
    run = Run(digits, tmp_path / "run")
    start(trainers, run, SIZE, "fit-interrupted", moment=moment)
    assert_ended(trainers.wait(PATIENCE), 0)
    meta = read_meta(run.checkpoints[-1])
    assert meta["clock"] == _marker(run)["clock"]
    assert meta["owes_evaluation"] == (moment == "run_validation")
    finish(trainers, run, SIZE)
    assert_same_end(run, calm(SIZE))


def test_an_owed_evaluation_is_logged_once_when_a_kill_comes_before_its_save(
    trainers: Ranks, calm: Calm, digits: Path, tmp_path: Path
) -> None:
    run = Run(digits, tmp_path / "run")
    start(trainers, run, 1, "fit-interrupted", moment="run_validation")
    assert_ended(trainers.wait(PATIENCE), 0)
    num_entries = len(run.metrics())
    start(trainers, run, 1, "fit-killed")
    assert_ended(trainers.wait(PATIENCE), -signal.SIGKILL)
    assert len(run.metrics()) == num_entries + 1  # it was logged
    finish(trainers, run, 1)
    assert_same_end(run, calm(1))


def test_a_recommendation_to_leave_is_followed_by_one_save(trainers: Ranks, digits: Path, tmp_path: Path) -> None:
    # Nothing else saves before the end.
    run = Run(digits, tmp_path / "run", ("--run.keep", "9", "--run.save-every", "inf", "--run.evaluate-every", "inf"))
    group = start(trainers, run, 2, "fit-advised")
    assert_ended(trainers.wait(PATIENCE), 0)
    first, last = run.checkpoints
    clock = read_meta(first)["clock"]
    assert 0 < clock < read_meta(last)["clock"]
    (line,) = [each for each in (group / "stdout-0").read_text().splitlines() if "recommends" in each]
    assert line == f"EC2 recommends to leave this instance: saving at image {clock:,}, going on"


def test_a_second_ctrl_c_interrupts_and_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Notices("off", World()) as notices:
        assert notices.agreed() == Reason.NONE
        os.kill(os.getpid(), signal.SIGINT)
        assert notices.agreed() == Reason.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_signals_that_come_again_while_it_saves_change_nothing() -> None:
    with Notices("off", World()) as notices:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert notices.agreed() == Reason.SIGTERM


def test_a_run_under_nohup_does_not_hear_the_end_of_the_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Notices("off", World()) as notices:
            os.kill(os.getpid(), signal.SIGHUP)
            assert notices.agreed() == Reason.NONE
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_line_that_nobody_reads_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as output, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        print_or_discard("lost")
        print_or_discard("lost, too")  # and what is still in the buffer does not fail when it is closed


def test_a_process_whose_torchrun_ended_before_it_looked_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_orphan(os.getpid())  # a Python process could be torchrun
    read, write = os.pipe()
    script = f"sh -c 'while [ $(ps -o ppid= $$) != 1 ]; do :; done; echo $$ > /proc/self/fd/{write}; sleep 60' &"
    subprocess.run(["sh", "-c", script], pass_fds=[write], check=True)
    os.close(write)
    with os.fdopen(read) as lines:
        adopted = int(lines.readline())
    try:
        assert is_orphan(adopted)
        monkeypatch.setattr(os, "getppid", lambda: adopted)
        watch_launcher()  # not one of torchrun's: nothing to watch
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "first")
        with pytest.raises(InputError, match="torchrun that started this process has ended"):
            watch_launcher()
    finally:
        os.kill(adopted, signal.SIGKILL)
