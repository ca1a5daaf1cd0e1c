"""The worker protocol with real child processes: answers, progress, the ways to fail, and what the parent measures."""

import importlib
import os
import select
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import pytest

from prep.errors import InputError

ENTRIES = '''
import os, signal, subprocess, sys
from worker_main import Progress
class InputError(Exception):
    """Known by its name, because a peer's environment does not have prep."""
def echo(job):
    request = yield job
    while True:
        request = yield ["asked", request]
def count(job):
    print("a library's line")
    yield from map(Progress, range(job["num"]))
    yield subprocess.run(["echo", "a program's line"]).returncode
def fail(job):
    yield Progress("before")
    raise {"ValueError": ValueError, "InputError": InputError}[job["kind"]](job["text"])
def crash(job):
    print("about to crash", file=sys.stderr)
    yield os.kill(os.getpid(), signal.SIGSEGV)
def hang(job):
    with open(job["fifo"], "w") as held:
        child = subprocess.Popen(["sleep", "60"], stdout=held)
        yield child.pid
        child.wait()
def work(job):
    yield "ready"
    kept = b"x" * job["num_bytes"]
    subprocess.run([sys.executable, "-c", "import time\\nwhile time.process_time() < 0.3: pass"], check=True)
    yield len(kept)
'''
LIMIT = 60  # seconds, far more than an answer takes
Start = Callable[..., AbstractContextManager[Any]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Start a worker with one of ENTRIES, and its standard error in tmp_path/errors."""
    (tmp_path / "entries.py").write_text(ENTRIES)
    places: dict[str, Any] = {"environment": {"PYTHONPATH": str(tmp_path)}, "errors": tmp_path / "errors"}
    return lambda entry, **job: importlib.import_module("worker").start_worker(f"entries:{entry}", job, **places)


def failure_of(child: Any, limit: float = LIMIT) -> tuple[str, str]:
    """Return the class and the text of the error that the next request ends in."""
    with pytest.raises(InputError) as failure:
        child.ask(limit)
    return type(failure.value).__name__, str(failure.value)


def test_answers_come_in_the_order_of_requests_and_a_request_ends_a_pause(start: Start) -> None:
    with start("echo", name="job") as child:
        assert child.ask(LIMIT, "only starts it") == {"name": "job"}
        assert [child.ask(LIMIT, request) for request in (1, None, [2])] == [["asked", it] for it in (1, None, [2])]
        child.pause()
        stat, deadline = Path(f"/proc/{child.process.pid}/stat"), time.monotonic() + 20
        while stat.read_text().rpartition(") ")[2][0] != "T":
            assert time.monotonic() < deadline, "it is not stopped"
        assert child.ask(LIMIT, "go on") == ["asked", "go on"]
    assert child.close() == 0


def test_progress_comes_before_its_answer_and_prints_disturb_neither(start: Start, tmp_path: Path) -> None:
    seen: list[int] = []
    with start("count", num=3) as child:
        assert child.ask(LIMIT, on_progress=seen.append) == 0 and seen == [0, 1, 2]
        assert failure_of(child) == ("FailedError", "RuntimeError: it was asked for more answers than it gives")
    assert {"a library's line", "a program's line"} < set((tmp_path / "errors").read_text().splitlines())


@pytest.mark.parametrize(
    ("kind", "told"), [("ValueError", f"ValueError: {'v ' * 50} … {' v' * 150}"), ("InputError", "v " * 299 + "v")]
)
def test_an_exception_is_one_line_and_only_a_users_mistake_is_whole(start: Start, kind: str, told: str) -> None:
    with start("fail", kind=kind, text="v\n" * 299 + "v") as child:
        assert failure_of(child) == ("FailedError", told)
    assert child.close() == 1


def test_a_crash_has_the_name_and_the_status_of_its_signal(start: Start) -> None:
    with start("crash") as child, pytest.raises(InputError, match=r"^SIGSEGV; about to crash$") as ended:
        child.ask(LIMIT)
    assert vars(ended.value) == {"status": -signal.SIGSEGV}


def test_a_hang_ends_the_child_and_its_own_child(start: Start, tmp_path: Path) -> None:
    """Both hold the writing end of a fifo, which is at its end when both are gone."""
    os.mkfifo(tmp_path / "fifo")
    with open(os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK), "rb") as reading:
        with start("hang", fifo=str(tmp_path / "fifo")) as child:
            assert psutil.Process(child.ask(LIMIT)).ppid() == child.process.pid
            assert not select.select([reading], [], [], 0)[0]
            assert failure_of(child, 0.1) == ("HungError", "no answer within 0 s")
            assert select.select([reading], [], [], 20)[0] and reading.read() == b""
        assert child.close() == -signal.SIGKILL


def test_cpu_time_and_memory_count_the_whole_tree(start: Start) -> None:
    with start("work", num_bytes=1 << 26) as child:
        child.ask(LIMIT)
        seconds, memory = child.cpu_seconds(), child.memory_bytes()
        child.ask(LIMIT)
        assert child.cpu_seconds() - seconds > 0.25
        assert 0.9 < (child.memory_bytes() - memory) / (1 << 26) < 1.5
