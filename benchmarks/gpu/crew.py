"""Worker processes as the suite sees them: started ahead of time, asked for one case after the other, ended for good.

One spare worker does its imports while the cases of the current one run, so that a new process costs no waiting.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from gpu.cases import Case

CHECKOUT = Path(__file__).resolve().parent.parent.parent
BENCHMARKS = CHECKOUT / "benchmarks"
SLOW_IMPORTS = ("torch", "timm", "stages.stepping", "loaders.dali")
MOST_END_SECONDS = 10.0  # for a process to leave once it is told that there is nothing more to do
STACKS_SECONDS = 0.5  # for a hung process to write the stacks of its threads
MOST_LOG_BYTES = 8 << 20  # of the workers' standard error; the end of it is kept

Message = dict[str, Any]


class Log:
    """The standard error of all workers, in one file that grows at its end. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("ab")

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.file.close()
        self._shorten()

    def size(self) -> int:
        """Return the number of bytes so far; a position for `read`."""
        return self.path.stat().st_size

    def write(self, line: str) -> None:
        """Append a line of the suite's own."""
        self.file.write(f"{line}\n".encode())
        self.file.flush()

    def read(self, start: int) -> list[str]:
        """Return the lines behind a position that are not empty."""
        with self.path.open("rb") as file:
            file.seek(start)
            text = file.read().decode(errors="replace")
        return [line.rstrip() for line in text.splitlines() if line.strip()]

    def _shorten(self) -> None:
        """Drop the beginning of a file that has become too large; no worker writes to it any more."""
        if self.size() > MOST_LOG_BYTES:
            with self.path.open("rb") as file:
                file.seek(-MOST_LOG_BYTES, os.SEEK_END)
                end = file.read()
            self.path.write_bytes(end)


class Worker:
    """One worker process (`gpu/worker.py`) and what it has answered."""

    def __init__(self, log: Log, imports: tuple[str, ...]) -> None:
        # The process starts in another folder, and its own commands in a third: relative paths would not hold there.
        folders = [str(CHECKOUT), *map(os.path.abspath, filter(None, os.environ.get("PYTHONPATH", "").split(":")))]
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gpu.worker", *imports],
            cwd=BENCHMARKS,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(folders))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.file,
            text=True,
            process_group=0,
        )
        self.messages: queue.Queue[Message | None] = queue.Queue()  # None: the process has closed its output
        self.is_ready = self.has_ended = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as lines:
            for line in lines:
                self.messages.put(json.loads(line))
        self.messages.put(None)

    def wait_ready(self, seconds: float) -> bool:
        """Wait until the imports are done, or the last case's memory is given back; return whether it is so."""
        if not self.is_ready and not self.has_ended:
            with suppress(queue.Empty):
                self.has_ended = self.messages.get(timeout=max(0.0, seconds)) is None
                self.is_ready = not self.has_ended
        return self.is_ready

    def send(self, case: Case, job: dict[str, Any]) -> None:
        """Ask for a case."""
        assert self.process.stdin and self.is_ready
        self.is_ready = False
        with suppress(BrokenPipeError):  # it has ended, which its missing answer tells
            self.process.stdin.write(json.dumps({"work": case.work, "job": job}) + "\n")
            self.process.stdin.flush()

    def answers(self, seconds: float) -> Iterator[Message | None]:
        """Yield what it answers within so many seconds; None at the end where the process has ended.

        Raises:
            TimeoutError: the time is over.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                message = self.messages.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise TimeoutError from None
            yield message
            if message is None:
                return

    def end(self) -> int:
        """Let the process leave, kill what is left of it; return its exit status."""
        assert self.process.stdin
        with suppress(BrokenPipeError):
            self.process.stdin.close()  # no more requests
        with suppress(subprocess.TimeoutExpired):
            status = self.process.wait(MOST_END_SECONDS)
            self.kill()  # what it has left behind
            return status
        self.kill()
        return 0  # it had answered, and only its end took too long

    def kill(self, with_stacks: bool = False) -> None:
        """End the process and all that it has started."""
        assert self.process.stdin
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        if with_stacks and self.process.poll() is None:
            self.process.send_signal(signal.SIGUSR1)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STACKS_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # a process that hangs in the driver cannot be killed
            self.process.wait(MOST_END_SECONDS)


class Crew:
    """Hands out workers. Use as a context manager: it ends the spare one.

    Args:
        imports: modules that each worker imports before its first case.
    """

    def __init__(self, log: Log, imports: tuple[str, ...] = SLOW_IMPORTS) -> None:
        self.log, self.imports = log, imports
        self.spare: Worker | None = None

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self.spare:
            self.spare.kill()

    def prepare(self) -> None:
        """Start a spare worker, which imports torch and DALI meanwhile."""
        if self.spare is None:
            self.spare = Worker(self.log, self.imports)

    def take(self) -> Worker:
        """Return the spare worker, or a new one."""
        worker, self.spare = self.spare or Worker(self.log, self.imports), None
        return worker

    def settle(self, seconds: float) -> None:
        """Wait until the spare worker's imports are done: they must not take a core from what is timed."""
        if self.spare is not None:
            self.spare.wait_ready(seconds)
