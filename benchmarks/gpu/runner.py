"""Run the cases in their worker processes until the deadline; every outcome is on disk before the next case begins.

done: the case has answered. failed: it has said why not. crashed: a signal has ended its process. hung: it ran past its
own limit. cut: it ran into the suite's deadline. skipped: it was not begun. What a case had reported before it crashed,
hung or was cut is kept as its result.
"""

import re
import signal
import sys
import time
from collections.abc import Callable
from itertools import groupby
from typing import Any

from gpu.cases import Case, resolve_job
from gpu.crew import CHECKOUT, Crew, Worker
from gpu.kept import Kept
from gpu.table import describe_case

from prep.errors import InputError

Outcome = dict[str, Any]

LEAST_SECONDS = 5.0  # left before the deadline: less starts no case
LEAST_SHARE = 0.5  # of a case's estimate
MOST_START_SECONDS = 90.0  # for a worker's imports
INSTALLED = re.compile(r'"/[^"]*/(?:site-packages|python3\.\d+)/')
MOST_STDERR_LINES = 30  # of a process that has crashed, in its record


def run_cases(cases: list[Case], kept: Kept, crew: Crew, deadline: float) -> None:
    """Run the cases group by group, each group in one worker process for as long as that lives.

    Args:
        deadline: of time.monotonic(); nothing runs beyond it.
    """
    groups = [list(group) for _, group in groupby(cases, key=lambda case: case.group or case.stage)]
    for number, group in enumerate(groups):
        is_last = number == len(groups) - 1
        _Group(group, kept, crew, deadline).run(prepares=not is_last)


class _Group:
    """The cases that share a worker process."""

    def __init__(self, cases: list[Case], kept: Kept, crew: Crew, deadline: float) -> None:
        self.cases, self.kept, self.crew, self.deadline = cases, kept, crew, deadline
        self.worker: Worker | None = None
        self.last: tuple[Case, dict[str, Any]] | None = None  # that the worker has answered

    def run(self, prepares: bool) -> None:
        """Run all of them; with `prepares` a spare worker starts for the next group."""
        try:
            for case in self.cases:
                job, reason = self._find_job(case)
                if reason:
                    self._keep(case, job, skip(reason))
                else:
                    self._run_case(case, job, prepares)
        finally:
            self._end_worker()

    def _find_job(self, case: Case) -> tuple[dict[str, Any], str]:
        """Return the job, and the reason why the case cannot begin: empty where it can."""
        results = self.kept.results
        if case.unable:
            return case.job, case.unable
        if missing := [name for name in case.needs if results.get(name, {}).get("status") != "done"]:
            said = {name: results.get(name, {}).get("status", "not run") for name in missing}
            return case.job, "it needs " + ", ".join(f"{name} ({status})" for name, status in said.items())
        try:
            job = resolve_job(case, results)
        except InputError as error:
            return case.job, str(error)
        seconds_left = self.deadline - time.monotonic()
        if seconds_left < max(LEAST_SECONDS, LEAST_SHARE * case.estimate):
            return job, f"no time was left: {seconds_left:.0f} s, and it takes about {case.estimate:.0f}"
        return job, ""

    def _run_case(self, case: Case, job: dict[str, Any], prepares: bool) -> None:
        worker = self._find_worker()
        if worker is None:
            said = " ".join(self.crew.log.read(0)[-1:])
            self._keep(case, job, fail(f"its process did not start; workers.log ends with: {said}"))
            return
        if prepares:
            self.crew.prepare()
        if case.is_timed:
            self.crew.settle(self._start_seconds())
        outcome = ask(worker, case, job, self.deadline, lambda part: self._keep_part(case, job, part))
        self._keep(case, job, outcome)
        self.last = (case, job)
        if outcome["status"] not in ("done", "failed"):
            self.worker = None  # it gave no answer, and has ended

    def _find_worker(self) -> Worker | None:
        """Return the group's worker process, ready for a case: a new one where the last one has ended."""
        if self.worker and not self.worker.wait_ready(self._start_seconds()):
            self._end_worker()
        if self.worker is None:
            worker = self.crew.take()
            if not worker.wait_ready(self._start_seconds()):
                worker.kill(with_stacks=True)
                return None
            self.worker = worker
        return self.worker

    def _start_seconds(self) -> float:
        return min(MOST_START_SECONDS, self.deadline - time.monotonic())

    def _keep_part(self, case: Case, job: dict[str, Any], part: dict[str, Any]) -> None:
        """Write what a case has found so far: the suite itself may be killed."""
        self._keep(case, job, {"status": "cut", "result": part, "reason": "the suite ended meanwhile"}, is_shown=False)

    def _keep(self, case: Case, job: dict[str, Any], outcome: Outcome, is_shown: bool = True) -> None:
        self.kept.add(case, job, outcome)
        if is_shown:
            print(describe_case(case.name, outcome), file=sys.stderr, flush=True)

    def _end_worker(self) -> None:
        """End the worker. A crash at its very end, after all answers, stands in its last case's record."""
        if self.worker is None:
            return
        status, self.worker = self.worker.end(), None
        if status < 0 and self.last:
            case, job = self.last
            outcome = self.kept.results[case.name] | {"end": f"its process ended by {signal.Signals(-status).name}"}
            self._keep(case, job, outcome)


def ask(
    worker: Worker, case: Case, job: dict[str, Any], deadline: float, keep: Callable[[dict[str, Any]], None]
) -> Outcome:
    """Have a worker run a case; its process has ended where it gave no answer.

    Args:
        keep: is called with what the case has found so far.
    """
    started, log_start = time.monotonic(), worker.log.size()
    worker.log.write(f"== {case.name}")
    seconds = min(case.limit, deadline - started)
    part = None
    worker.send(case, job)
    try:
        for message in worker.answers(seconds):
            if message is None:
                outcome = describe_crash(worker, log_start) | {"result": part}
            elif "part" in message:
                part = message["part"]
                keep(part)
                continue
            elif "failed" in message:
                outcome = fail(message["failed"])
            else:
                outcome = {"status": "done", "result": message["result"], "reason": None}
            return outcome | {"seconds": round(time.monotonic() - started, 1)}
        raise AssertionError("a worker's answers end with an outcome")
    except TimeoutError:
        worker.kill(with_stacks=True)
        status = "hung" if seconds == case.limit else "cut"
        reason = f"it ran over {'its limit of' if status == 'hung' else 'the deadline, after'} {seconds:.0f} s"
        lines = read_log(worker, log_start)[-MOST_STDERR_LINES:]
        outcome = {"status": status, "result": part, "reason": reason, "stderr": lines}
        return outcome | {"seconds": round(time.monotonic() - started, 1)}


def describe_crash(worker: Worker, log_start: int) -> Outcome:
    """Return the outcome of a process that ended without an answer: the signal, and where it was by its own stacks."""
    status = worker.process.wait()
    worker.kill()  # what it has left behind
    lines = read_log(worker, log_start)
    name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    fatal = next((i for i, line in enumerate(lines) if line.startswith("Fatal Python error")), None)
    place = lines[-1] if fatal is None else next((line for line in lines[fatal:] if line.startswith("  File ")), "")
    reason = f"{name}; {place.strip()}" if lines[1:] else f"{name}; it said nothing"
    return {"status": "crashed", "reason": reason, "stderr": lines[-MOST_STDERR_LINES:]}


def read_log(worker: Worker, start: int) -> list[str]:
    """Return what was written to standard error from a position on; paths begin at the checkout or the package."""
    return [INSTALLED.sub('"', line.replace(f"{CHECKOUT}/", "")) for line in worker.log.read(start)]


def fail(reason: str) -> Outcome:
    """Return the outcome of a case that said why it has no result."""
    return {"status": "failed", "result": None, "reason": reason, "seconds": 0.0}


def skip(reason: str) -> Outcome:
    """Return the outcome of a case that was not begun."""
    return {"status": "skipped", "result": None, "reason": reason, "seconds": 0.0}
