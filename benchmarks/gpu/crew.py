"""Worker processes as the suite sees them: started ahead of time, given one case after another, ended reliably.

A spare worker does its imports while the current worker runs cases, so that the suite need not wait for a new process.
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
MOST_END_SECONDS = 10.0  # for a process to exit after its input was closed
STACKS_SECONDS = 0.5  # for a hung process to write the stacks of its threads
MOST_LOG_BYTES = 8 << 20  # size of workers.log; its end is kept

Message = dict[str, Any]


class Log:
    """The standard error of all workers, appended to one file. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("ab")

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.file.close()
        self._shorten()

    def size(self) -> int:
        """Return the file's size in bytes, which is a position for `read`."""
        return self.path.stat().st_size

    def write(self, line: str) -> None:
        """Append a line that the suite itself writes."""
        self.file.write(f"{line}\n".encode())
        self.file.flush()

    def read(self, start: int) -> list[str]:
        """Return the non-empty lines from a position on."""
        with self.path.open("rb") as file:
            file.seek(start)
            text = file.read().decode(errors="replace")
        return [line.rstrip() for line in text.splitlines() if line.strip()]

    def _shorten(self) -> None:
        """Drop the beginning of a file that is too large; no worker writes to it at this point."""
        if self.size() > MOST_LOG_BYTES:
            with self.path.open("rb") as file:
                file.seek(-MOST_LOG_BYTES, os.SEEK_END)
                end = file.read()
            self.path.write_bytes(end)


class Worker:
    """One worker process (`gpu/worker.py`) and the queue of its answers."""

    def __init__(self, log: Log, imports: tuple[str, ...]) -> None:
        # The process runs in another folder, and the commands that it starts in a third one: make paths absolute.
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
        """Wait until the imports are done, or the last case's memory is released; return False after `seconds`."""
        if not self.is_ready and not self.has_ended:
            with suppress(queue.Empty):
                self.has_ended = self.messages.get(timeout=max(0.0, seconds)) is None
                self.is_ready = not self.has_ended
        return self.is_ready

    def send(self, case: Case, job: dict[str, Any]) -> None:
        """Send a case to the process, which must be ready."""
        assert self.process.stdin and self.is_ready
        self.is_ready = False
        with suppress(BrokenPipeError):  # the process has ended: `answers` yields None
            self.process.stdin.write(json.dumps({"work": case.work, "job": job}) + "\n")
            self.process.stdin.flush()

    def answers(self, seconds: float) -> Iterator[Message | None]:
        """Yield the answers that come within `seconds`; yield None last if the process has ended.

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
        """Let the process exit, then kill its remaining children; return its exit status, 0 if it had to be killed."""
        assert self.process.stdin
        with suppress(BrokenPipeError):
            self.process.stdin.close()  # no more requests
        with suppress(subprocess.TimeoutExpired):
            status = self.process.wait(MOST_END_SECONDS)
            self.kill()  # children that still run
            return status
        self.kill()
        return 0  # it had answered all cases; only its exit took too long

    def kill(self, with_stacks: bool = False) -> None:
        """Kill the process and all processes that it has started.

        Args:
            with_stacks: first have it write the stacks of its threads to the log.
        """
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
    """Hands out workers. Use as a context manager, which ends the spare worker.

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

    def start_spare(self) -> None:
        """Start a spare worker, which imports torch and DALI in the background; do nothing if there is one."""
        if self.spare is None:
            self.spare = Worker(self.log, self.imports)

    def take_worker(self) -> Worker:
        """Return the spare worker, or a new one."""
        worker, self.spare = self.spare or Worker(self.log, self.imports), None
        return worker

    def wait_for_spare(self, seconds: float) -> None:
        """Wait until the spare worker's imports are done: they must not use a core while a case is timed."""
        if self.spare is not None:
            self.spare.wait_ready(seconds)
