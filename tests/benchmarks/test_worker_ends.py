"""How workers end: with the command that started them, after an error, and without harm to strangers."""

import importlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.commands import CHECKOUT

from prep.errors import InputError

ENTRIES = '''
import os, signal, subprocess, threading, time
from pathlib import Path
from worker_main import Progress
def compute(job):
    """Compute without an end, next to a child process."""
    yield Progress([os.getpid(), subprocess.Popen(["sleep", "1000"]).pid])
    while True:
        time.sleep(0.01)
def fail(job):
    """Raise an exception while a thread continues."""
    yield Progress(os.getpid())
    threading.Thread(target=time.sleep, args=(1000,)).start()
    raise ValueError("the reason")
def leave_child(job):
    """Die without a word while a child process continues."""
    yield Progress(subprocess.Popen(["sleep", "1000"]).pid)
    os.kill(os.getpid(), signal.SIGTERM)
    yield
def hold(job):
    """Take a while to free what is used when the input ends."""
    try:
        yield
    finally:
        time.sleep(0.5)
        Path(job["held"]).unlink()
'''
COMMAND = """
from worker import start_worker
with start_worker("entries:compute", {}) as worker:
    worker.ask(1000, on_progress=lambda pids: print(*pids, flush=True))
"""
LIMIT = 60  # seconds, far more than anything here takes
Start = Callable[..., AbstractContextManager[Any]]


@pytest.fixture
def path(tmp_path: Path) -> str:
    """PYTHONPATH of a command, with the module of ENTRIES."""
    (tmp_path / "entries.py").write_text(ENTRIES)
    return os.pathsep.join(map(str, (tmp_path, CHECKOUT, CHECKOUT / "benchmarks")))


@pytest.fixture
def start(path: str) -> Start:
    """Start a worker with one of ENTRIES."""
    environment = {"PYTHONPATH": path}
    return lambda entry, **job: importlib.import_module("worker").start_worker(
        f"entries:{entry}", job, environment=environment
    )


@pytest.fixture
def command(path: str) -> Iterator["subprocess.Popen[str]"]:
    """A command that waits for `compute`, and prints the ids of its worker and of the child process."""
    words, environment = [sys.executable, "-c", COMMAND], os.environ | {"PYTHONPATH": path}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as started:
        yield started
        started.kill()


def check_ended(pid: int) -> None:
    """Check that a process ends, or has ended and waits for its parent."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([handle], [], [], LIMIT)[0], f"{psutil.Process(pid)} outlived its parent"
    finally:
        os.close(handle)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_worker_that_computes_ends_with_its_command(number: signal.Signals, command: Any) -> None:
    pids = list(map(int, command.stdout.readline().split()))
    assert len(pids) == 2
    command.send_signal(number)
    for pid in pids:
        check_ended(pid)


def test_a_worker_that_failed_has_gone_before_the_error_is_told(start: Start) -> None:
    pids: list[int] = []
    with start("fail") as worker:
        with pytest.raises(InputError, match="ValueError: the reason"):
            worker.ask(LIMIT, on_progress=pids.append)
        check_ended(*pids)


def test_a_process_that_dies_takes_its_children_along(start: Start) -> None:
    pids: list[int] = []
    with start("leave_child") as worker:
        with pytest.raises(InputError) as caught:
            worker.ask(LIMIT, on_progress=pids.append)
        assert (str(caught.value), vars(caught.value)) == ("SIGTERM", {"status": -signal.SIGTERM})
        check_ended(*pids)


def test_an_idle_worker_ends_by_itself(start: Start, tmp_path: Path) -> None:
    (tmp_path / "held").touch()
    with start("hold", held=str(tmp_path / "held")) as worker:
        worker.ask(LIMIT)
    assert worker.process.returncode == 0 and not (tmp_path / "held").exists()


def test_a_process_that_was_reaped_gets_no_signals(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "held").touch()
    with start("hold", held=str(tmp_path / "held")) as worker:
        worker.ask(LIMIT)
    sent: list[Any] = []
    monkeypatch.setattr(os, "killpg", lambda *arguments: sent.append(arguments))
    worker.pause()
    worker.kill()
    assert worker.close() == 0 and sent == []


def test_a_signal_without_a_word_is_told_alone(tmp_path: Path) -> None:
    errors = tmp_path / "errors"
    worker = importlib.import_module("worker").Worker([sys.executable, "-c", ""], errors, {})
    worker.close()
    assert worker.describe_end(-signal.SIGKILL) == "SIGKILL"
    assert worker.describe_end(1) == "status 1; exited without an error message"
    errors.write_text("Traceback\nerror: no memory\n")
    assert worker.describe_end(-signal.SIGABRT) == "SIGABRT; no memory"


def test_a_long_error_keeps_its_reason() -> None:
    describe_error = importlib.import_module("worker_main").describe_error
    frames = "\n".join(f'  File "reader.py", line {number}, in read' for number in range(100))
    error = RuntimeError(
        f"Caught OSError in DataLoader worker process 0.\nOriginal Traceback:\n{frames}\nOSError: the disk"
    )
    told = describe_error(error)
    assert told.startswith("RuntimeError: Caught OSError in DataLoader worker process 0.") and len(told) < 450
    assert told.endswith("OSError: the disk") and "\n" not in told
    # The advice at the end of CUDA's errors does not hide the reason at their start.
    advice = "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n" * 10
    told = describe_error(RuntimeError(f"CUDA error: an illegal memory access was encountered\n{advice}"))
    assert "an illegal memory access was encountered" in told
