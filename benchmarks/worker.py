"""The parent side of the worker protocol: start a child process, ask it within a limit, pause it, measure it, end it.

The child is worker_main.py, in whichever interpreter its packages need. Readers, writers, certificates, GPU cases and
probes all run in such workers.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from machine import list_processes, read_cpu_seconds
from worker_main import END_SECONDS

from prep.errors import InputError

BENCHMARKS = Path(__file__).resolve().parent
WORKER_MAIN = BENCHMARKS / "worker_main.py"
LONGEST_END_SECONDS = END_SECONDS  # for a worker to end by itself after its input was closed, or after it was killed
FAILED_END_SECONDS = 2  # for one that failed, whose threads may still use the CPU while others are measured
LOOK_SECONDS = 0.01  # between looks whether a process has ended
COUNTED_MEMORY = ("Pss_Anon:", "Pss_Shmem:")  # kB not backed by files; shared memory is divided among its users


class FailedError(InputError):
    """A worker failed; the message is one line."""


class EndedError(FailedError):
    """A worker's process ended without an answer.

    Attributes:
        status: exit status, negative after a signal.
    """

    def __init__(self, reason: str, status: int) -> None:
        super().__init__(reason)
        self.status = status


class HungError(FailedError):
    """A worker did not answer within its limit, and was killed."""


class Worker:
    """A child process; `start_worker` opens and closes it.

    Args:
        command: the child's command line.
        errors: file for its standard error.
        environment: variables to set besides those of this process.
    """

    def __init__(self, command: list[str], errors: Path, environment: dict[str, str]) -> None:
        self.errors = errors
        self.is_killed = False  # it had not ended by itself when it was killed
        with errors.open("a") as file:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=os.environ | environment,
                # A process group in this session: if this process is killed, the kernel ends the stopped ones too.
                process_group=0,
            )
        # A thread reads the answers, because waiting for a line of a pipe has no time limit.
        self.lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._read_lines, daemon=True).start()

    def _read_lines(self) -> None:
        assert self.process.stdout
        with self.process.stdout as stdout:
            for line in stdout:
                self.lines.put(line)
        self.lines.put(b"")

    def ask(self, limit_seconds: float, request: Any = None, on_progress: Callable[[Any], None] | None = None) -> Any:
        """Send a request and return the answer.

        Args:
            limit_seconds: how long the answer may take.
            request: a value of JSON.
            on_progress: called with each value of progress before the answer.

        Raises:
            FailedError: the worker raised an exception; EndedError: it ended; HungError: it took too long.
        """
        self.send(request)
        return self.receive(limit_seconds, on_progress)

    def send(self, request: Any = None) -> None:
        """Send a request, and do not wait for the answer: `receive` does."""
        assert self.process.stdin
        self.signal(signal.SIGCONT)
        with suppress(BrokenPipeError):  # it has ended; the missing answer reports that
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()

    def receive(self, limit_seconds: float, on_progress: Callable[[Any], None] | None = None) -> Any:
        """Return the answer to the last request; arguments and errors are those of `ask`."""
        deadline = time.monotonic() + limit_seconds
        while True:
            try:
                line = self.lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                self.kill()
                raise HungError(f"no answer within {limit_seconds:.0f} s") from None
            if not line:
                status = self.close()  # waits for it, and ends child processes that still run
                status = -signal.SIGKILL if status is None else status
                raise EndedError(self.describe_end(status), status)
            message = json.loads(line)
            if "error" in message:
                if self.wait(FAILED_END_SECONDS) is None:
                    self.kill()
                    self.wait(LONGEST_END_SECONDS)  # it ends after the signal, and must not disturb the next window
                raise FailedError(message["error"])
            if "answer" in message:
                return message["answer"]
            if on_progress:
                on_progress(message["progress"])

    def describe_end(self, status: int) -> str:
        """Return why the process ended: the signal or the exit status, and the last line of its standard error."""
        errors = self.errors.read_text(errors="replace").strip()
        reasons = [signal.Signals(-status).name if status < 0 else f"status {status}"]
        if errors or status >= 0:
            reasons.append(last_line(errors))
        return "; ".join(reasons)

    def has_ended(self) -> bool:
        """Look whether the process has ended, and do not reap it: until then no stranger gets its group's number."""
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait(self, limit_seconds: float) -> int | None:
        """Wait until the process has ended, and kill the child processes that it left; return its exit status.

        Returns:
            The exit status, negative after a signal; None if the process still runs.
        """
        deadline = time.monotonic() + limit_seconds
        while self.process.returncode is None:
            if self.has_ended():
                self.signal(signal.SIGKILL)
                self.process.wait()
            elif time.monotonic() >= deadline:
                break
            else:
                time.sleep(LOOK_SECONDS)
        return self.process.returncode

    def pause(self) -> None:
        """Stop the process and its child processes, so that others can be measured; the next request continues them."""
        self.signal(signal.SIGSTOP)

    def kill(self) -> None:
        """Kill the process and its child processes, if it has not been reaped."""
        if self.process.returncode is None:
            self.is_killed = self.is_killed or not self.has_ended()
            self.signal(signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and its child processes; once it was reaped, its number may be a stranger's."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def cpu_seconds(self) -> float:
        """Return the user and system time of the process tree so far, including children that have ended."""
        return read_cpu_seconds(self.process.pid)

    def memory_bytes(self) -> int:
        """Return the anonymous and shared memory of the process tree; pages of files are not counted."""
        total_kib = 0
        for process in list_processes(self.process.pid):
            with suppress(OSError):  # the process has ended
                for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
                    name, _, value = line.partition(" ")
                    total_kib += int(value.split()[0]) if name in COUNTED_MEMORY else 0
        return total_kib * 1024

    def close(self) -> int | None:
        """Let the process end by itself, so that it frees its shared memory; kill it after LONGEST_END_SECONDS.

        A process that was killed before is only waited for.

        Returns:
            The exit status, negative after a signal; None for a process that hangs in a driver, which no signal ends.
        """
        assert self.process.stdin
        self.signal(signal.SIGCONT)
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        if not self.is_killed and self.wait(LONGEST_END_SECONDS) is None:
            self.kill()
        return self.wait(LONGEST_END_SECONDS)


@contextmanager
def start_worker(
    entry: str,
    job: dict[str, Any],
    python: str = sys.executable,
    environment: dict[str, str] | None = None,
    errors: Path | None = None,
) -> Iterator[Worker]:
    """Start a worker; close it when the block ends, kill it when the block raises.

    Args:
        entry: `module:function`, a generator; modules are found in benchmarks/.
        job: its argument.
        python: the interpreter that has its packages.
        environment: variables to set besides those of this process. TMPDIR is a folder that is deleted at the end.
        errors: file that its standard error is appended to; None: a temporary one.
    """
    with tempfile.TemporaryDirectory(prefix="penstock-", ignore_cleanup_errors=True) as temporary:
        command = [python, str(WORKER_MAIN), entry, json.dumps(job)]
        worker = Worker(command, errors or Path(temporary, "stderr"), {"TMPDIR": temporary} | (environment or {}))
        try:
            yield worker
        except BaseException:
            worker.kill()
            raise
        finally:
            worker.close()


def ask_once(entry: str, job: dict[str, Any], limit_seconds: float, python: str = sys.executable) -> Any:
    """Start a worker, return its first answer, and end it.

    Raises:
        FailedError: the worker failed, ended or hung.
    """
    with start_worker(entry, job, python) as worker:
        return worker.ask(limit_seconds)


def ask_all(
    workers: Sequence[Worker], limit_seconds: float, on_progress: Callable[[Any], None] | None = None
) -> list[Any]:
    """Send the processes of one world a request and return their answers; kill all as soon as one of them fails.

    They are waited for at the same time, because the others may wait for the one that failed.

    Args:
        on_progress: called with each value of progress, from one thread for each worker.

    Raises:
        FailedError: the message names the rank that failed first, and its reason.
    """
    with ThreadPoolExecutor(len(workers)) as threads:
        answers = [threads.submit(worker.ask, limit_seconds, None, on_progress) for worker in workers]
        try:
            for answer in as_completed(answers):
                if error := answer.exception():
                    raise FailedError(f"rank {answers.index(answer)} of {len(workers)}: {error}") from error
        except BaseException:  # also Ctrl-C: the threads wait until their processes have ended
            for worker in workers:
                worker.kill()
            raise
        return [answer.result() for answer in answers]


def last_line(errors: str) -> str:
    """Return the last line of a process's standard error: the reason why it failed."""
    lines = errors.strip().splitlines() or ["exited without an error message"]
    return " ".join(lines[-1].split())[-300:].removeprefix("error: ")
