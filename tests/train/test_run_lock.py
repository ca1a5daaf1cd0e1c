"""A run folder belongs to one run at a time, with and without locks, and is free once its run is gone."""

import json
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from helpers.commands import run_command
from helpers.datasets import tree
from helpers.ranks import Ranks
from helpers.train_runs import SAVE_OFTEN, Run, assert_ended, assert_same_end, await_that, count_logs, finish, start

from loaders import World
from prep.curves import read_metrics
from prep.errors import InputError
from train import run_lock
from train.checkpoint import find_checkpoint
from train.run_lock import Holder, RunLock, read_holder

SIZE = 2  # processes
ELSEWHERE = "node-7"  # the name of another machine
NO_LOCKS = ("ENOSYS", "ENOLCK", "EOPNOTSUPP", "EINVAL")  # how flock fails on file systems without locks


def _hold(trainers: Ranks, folder: Path, flock: str = "kernel", host: str | None = None, size: int = 1) -> Path:
    """Start processes that try to hold a folder; the folder of their group."""
    return trainers.start("hold-folder", size, folder.parent / "groups", run_dir=str(folder), flock=flock, host=host)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes this process see file systems with another flock."""

    def see(flock: str) -> None:
        from helpers.train_jobs import change_machine  # noqa: PLC0415  (it imports DALI)

        monkeypatch.setattr(run_lock.fcntl, "flock", run_lock.fcntl.flock)  # to be put back
        change_machine(flock, None)

    return see


def test_a_second_run_says_who_holds_the_folder_until_that_one_is_killed(
    trainers: Ranks, calm: Callable[[int], Run], digits: Path, tmp_path: Path
) -> None:
    run = Run(digits, tmp_path / "run", SAVE_OFTEN)
    group = start(trainers, run, SIZE)
    await_that(lambda: count_logs(group) > 1 and run.checkpoints, "two logs and a checkpoint")
    for rank in range(SIZE):
        trainers.signal(rank, signal.SIGSTOP)
    holder, before = read_holder(run.folder / "holder.json"), tree(run.folder)
    assert holder is not None and holder.runs()
    second = run_command("train/main.py", *run.arguments)
    assert second.returncode == 1 and second.stdout == ""
    assert second.stderr.count("\n") == 1
    assert second.stderr.startswith(
        f"error: {run.folder} belongs to a run that is in progress (process {holder.pid} on"
    )
    assert holder.host in second.stderr and holder.since in second.stderr
    assert tree(run.folder) == before
    assert read_metrics(run.folder) and find_checkpoint(run.folder) == run.checkpoints[-1]  # reading needs no lock
    assert_ended(trainers.kill(), -signal.SIGKILL)
    finish(trainers, run, SIZE)
    assert_same_end(run, calm(SIZE))
    assert not {"run.lock", "holder.json"} & {path.name for path in run.folder.iterdir()}


@pytest.mark.parametrize("flock", ["kernel", "none", *NO_LOCKS])
def test_whatever_the_file_system_one_process_holds_a_folder_and_frees_it_when_it_is_killed(
    trainers: Ranks, tmp_path: Path, machine: Callable[[str], None], flock: str
) -> None:
    group = _hold(trainers, tmp_path / "run", flock)
    await_that((group / "held-0").exists, "the folder is held")
    machine(flock)
    before = set(tree(tmp_path / "run"))
    with pytest.raises(InputError, match=r"in progress \(process \d+ on"), RunLock(tmp_path / "run", World()):
        pass
    assert set(tree(tmp_path / "run")) == before
    trainers.kill()
    with RunLock(tmp_path / "run", World(), stale_seconds=1e9) as lock:  # it does not wait
        holder = read_holder(tmp_path / "run" / "holder.json")
        assert holder is not None and holder.token == lock.holder.token


@pytest.mark.parametrize("flock", ["none", "ENOSYS"])  # kept to each machine, or not there
def test_a_holder_on_another_machine_is_watched_until_it_beats_or_is_gone(
    trainers: Ranks, tmp_path: Path, machine: Callable[[str], None], capsys: pytest.CaptureFixture[str], flock: str
) -> None:
    group = _hold(trainers, tmp_path / "run", flock, ELSEWHERE)
    await_that((group / "held-0").exists, "the folder is held")
    machine(flock)
    with pytest.raises(InputError, match=f"process .* on {ELSEWHERE}"), RunLock(tmp_path / "run", World()):
        pass
    assert f"on {ELSEWHERE}" in capsys.readouterr().out  # while it waits
    trainers.kill()
    with RunLock(tmp_path / "run", World(), stale_seconds=0.5):
        assert read_holder(tmp_path / "run" / "holder.json") is not None


def test_of_two_processes_that_start_at_once_without_locks_one_goes_on(trainers: Ranks, tmp_path: Path) -> None:
    group = _hold(trainers, tmp_path / "run", "ENOLCK", size=2)

    def refused() -> list[int]:
        return [rank for rank in range(2) if "belongs to a run" in (group / f"stderr-{rank}").read_text()]

    await_that(lambda: list(group.glob("held-*")) and refused(), "one holds the folder, and one is refused")
    (loser,) = refused()
    assert [path.name for path in group.glob("held-*")] == [f"held-{1 - loser}"]
    trainers.kill()


@pytest.mark.parametrize("since", ["1970-01-01 00:00:00 UTC", "2099-01-01 00:00:00 UTC"])  # clocks do not matter
def test_a_process_id_that_is_used_again_is_not_the_holder(tmp_path: Path, since: str) -> None:
    reused = replace(Holder.this_process(), pid=os.getppid(), started=1, since=since)
    (tmp_path / "holder.json").write_text(json.dumps(asdict(reused)))
    with RunLock(tmp_path, World(), stale_seconds=1e9) as lock:
        assert read_holder(tmp_path / "holder.json") == lock.holder


@pytest.mark.parametrize("content", [b"", b"\0" * 2048, b"{}", b'{"token": "1'])
def test_a_holder_file_that_a_power_failure_left_locks_nobody_out(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "holder.json").write_bytes(content)
    with RunLock(tmp_path, World(), stale_seconds=1e9):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_was_taken_for_lost_ends_when_it_wakes(
    trainers: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = _hold(trainers, tmp_path / "run", "none")
    await_that((group / "held-0").exists, "the folder is held")
    trainers.signal(0, signal.SIGSTOP)
    monkeypatch.setattr(socket, "gethostname", lambda: ELSEWHERE)
    monkeypatch.setattr(run_lock.fcntl, "flock", lambda descriptor, operation: None)
    with RunLock(tmp_path / "run", World(), stale_seconds=0.5):
        trainers.signal(0, signal.SIGCONT)
        (ended,) = trainers.wait(60)
    assert ended.status == 1
    assert f"was taken by process {os.getpid()} on {ELSEWHERE}" in ended.stderr


def test_a_folder_that_cannot_be_written_into_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match=r"cannot be written into.*choose"),
        RunLock(tmp_path / "file", World()),
    ):
        pass
    with RunLock(tmp_path / "new" / "run", World()):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
