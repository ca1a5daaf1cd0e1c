"""Run the cases one after another in a separate process, which can be killed at the deadline.

A separate process, because a compilation that hangs or a kernel that never ends cannot be stopped from inside. One
process for all cases, because starting it takes seconds: it is started again only after a case that broke it.
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
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from modelling.cases import CRASHED, CUT, DONE, HUNG, SKIPPED, Case, Outcome, Results

from prep.errors import InputError

BENCHMARKS = Path(__file__).resolve().parent.parent
WORKER = (sys.executable, "-m", "modelling.worker")
SHARE_TO_END = 0.03  # share of --minutes that is reserved for ending the process, writing and printing
LONGEST_END = 10.0  # seconds
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")  # set to an empty folder, so that compilation is measured


@dataclass(frozen=True)
class Options:
    """The command line's options."""

    device: str
    minutes: float
    seconds: float  # approximate length of a repetition
    repetitions: int
    batch_size: int | None  # None: each case's own, small on a CPU
    size: int | None
    arguments: tuple[str, ...]  # the words of the command line

    @property
    def job(self) -> dict[str, Any]:
        """The job that the process gets at its start."""
        kept = {"device": self.device, "seconds": self.seconds, "repetitions": self.repetitions}
        return kept | {"arguments": list(self.arguments), "parent": os.getpid()}


class Worker:
    """The process that measures. Use as a context manager, which kills it and all processes that it started."""

    def __init__(self, options: Options, caches: Path) -> None:
        environment = os.environ | dict.fromkeys(CACHES, str(caches))
        paths = [str(BENCHMARKS), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        self.errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  (closed in __exit__)
        self.process = subprocess.Popen(
            [*WORKER, json.dumps(options.job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment,
            process_group=0,
        )
        self.answers: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        """Queue each answer, then None at the end of the output."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with suppress(ValueError):  # an incomplete last line
                self.answers.put(json.loads(line))
        self.answers.put(None)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # a process that hangs in the driver cannot be killed at once
            self.process.wait(LONGEST_END)
        self.reader.join(LONGEST_END)
        assert self.process.stdin is not None and self.process.stdout is not None
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            with suppress(BrokenPipeError):
                stream.close()

    def ask(self, case: Case) -> None:
        """Send a case to the process; if the process has died, `receive` returns None."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(asdict(case)) + "\n")
            self.process.stdin.flush()

    def receive(self, seconds: float) -> dict[str, Any] | None:
        """Return the next answer, None if the process has died.

        Raises:
            queue.Empty: no answer came within `seconds`.
        """
        return self.answers.get(timeout=max(0.0, seconds))

    def describe_death(self) -> str:
        """Return how the process ended, with the last line of its standard error."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(LONGEST_END)
        status = self.process.returncode
        how = signal.Signals(-status).name if status is not None and status < 0 else f"status {status}"
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines() or ["nothing on standard error"]
        return f"{how}; {' '.join(lines[-1].split())[-300:]}"


@dataclass
class Runner:
    """Measures cases until a deadline, and calls `keep` after each one."""

    options: Options
    caches: Path  # empty folder for the compilers' caches
    started: float  # the command's start, a time of time.monotonic()
    keep: Callable[["Runner", str], None]  # called with the name of each case that has an outcome
    results: Results = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)
    device: str = ""
    start_seconds: float = 0.0  # from the command's start to the process's first answer

    @property
    def seconds_left(self) -> float:
        """Seconds until the deadline for measuring; after it there is time to end everything."""
        given = 60 * self.options.minutes
        return self.started + given * (1 - SHARE_TO_END) - time.monotonic()

    @property
    def content(self) -> dict[str, Any]:
        """The record, in its present state."""
        given = {name: getattr(self.options, name) for name in ("minutes", "seconds", "repetitions")}
        about = {"device": self.device, "is_rehearsal": self.device != "cuda", "seconds_to_start": self.start_seconds}
        return {"what": "gpu model", **self.origin, **about, **given, "cases": self.results}

    def run_cases(self, cases: list[Case]) -> None:
        """Measure the cases until the deadline; the others are skipped.

        Raises:
            InputError: the process cannot measure at all.
        """
        waiting, reason = list(cases), ""
        while waiting and not reason:
            if self.seconds_left < self.start_seconds:
                reason = "no time was left to start the measuring process again"
                break
            with Worker(self.options, self.caches) as worker:
                reason = self._start(worker)
                if not reason:
                    waiting = self._measure_cases(worker, waiting)
        for case in waiting:
            self._add(case, skip(reason))

    def _start(self, worker: Worker) -> str:
        """Wait until the process is ready; return why it cannot be used, "" if it can.

        Raises:
            InputError: it is the first process, and without it nothing can be recorded.
        """
        # Wait for the first answer.
        began, first = time.monotonic(), None
        try:
            first = worker.receive(self.seconds_left)
        except queue.Empty:
            reason = f"the measuring process was not ready after {time.monotonic() - began:.1f} s: give more --minutes"
        else:
            if first is None:
                reason = f"the measuring process ended at its start ({worker.describe_death()})"
            else:
                reason = first.get("error", "")

        # A process that was started again only has to be ready; the first one also tells device and origin.
        if self.origin:
            return reason
        if reason or first is None:
            raise InputError(reason)
        self.device, self.origin = first["device"], first["origin"]
        self.start_seconds = round(time.monotonic() - self.started, 2)
        return ""

    def _measure_cases(self, worker: Worker, cases: list[Case]) -> list[Case]:
        """Measure cases until one breaks the process; return the cases after that one."""
        for number, each in enumerate(cases, 1):
            case = self._resize(each)
            if reason := self._find_obstacle(case):
                self._add(case, skip(reason))
                continue
            outcome, is_alive = self._measure(worker, case)
            self._add(case, outcome)
            if not is_alive:
                return cases[number:]
        return []

    def _resize(self, case: Case) -> Case:
        return case.resized(self.options.batch_size, self.options.size, self.device == "cuda")

    def _find_obstacle(self, case: Case) -> str:
        """Return why a case cannot be started, "" if it can."""
        if case.graph and self.device != "cuda":
            return "a CUDA graph needs a GPU"
        if case.needs:
            needed = self.results[case.needs]
            if needed["status"] != DONE:
                return f"{case.needs} is {needed['status']}: {needed['reason']}"
        if self.seconds_left < case.expected_seconds:
            return f"it takes about {case.expected_seconds:.0f} s, {max(0.0, self.seconds_left):.0f} s were left"
        return ""

    def _measure(self, worker: Worker, case: Case) -> tuple[Outcome, bool]:
        """Return a case's outcome, and whether the process can run more cases."""
        began, left = time.monotonic(), self.seconds_left
        limit = min(case.limit_seconds(self.device == "cuda"), left)
        worker.ask(case)
        try:
            outcome = worker.receive(limit)
        except queue.Empty:
            status, what = (CUT, "the deadline came") if limit == left else (HUNG, "its limit")
            return {"status": status, "result": None, "reason": f"{what} after {limit:.1f} s", "seconds": limit}, False
        if outcome is None:
            seconds = round(time.monotonic() - began, 2)
            return {"status": CRASHED, "result": None, "reason": worker.describe_death(), "seconds": seconds}, False
        return outcome, not outcome.pop("is_broken", False)

    def _add(self, case: Case, outcome: Outcome) -> None:
        self.results[case.name] = outcome | {"settings": self._resize(case).settings}
        self.keep(self, case.name)


def skip(reason: str) -> Outcome:
    """Return the outcome of a case that was not started."""
    return {"status": SKIPPED, "result": None, "reason": reason, "seconds": 0.0}
