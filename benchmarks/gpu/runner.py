"""Run the cases in their worker processes until the deadline; each outcome is on disk before the next case begins.

Statuses of a case:

* done: it has a result.
* failed: it has no result; the reason says why.
* crashed: its process ended, usually by a signal.
* hung: it ran longer than its own limit.
* cut: it ran into the suite's deadline.
* skipped: it was not started.

The figures that a case reported before it crashed, hung or was cut are kept as its result.
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
from gpu.kept import CaseRecords
from gpu.table import describe_case

from prep.errors import InputError

Outcome = dict[str, Any]

# A case is started only with this much time before the deadline: seconds, and a share of its estimate.
LEAST_SECONDS = 5.0
LEAST_SHARE = 0.5
MOST_START_SECONDS = 90.0  # for a worker's imports
INSTALLED = re.compile(r'"/[^"]*/(?:site-packages|python3\.\d+)/')
MOST_STDERR_LINES = 30  # of a crashed process, in its record


def run_cases(cases: list[Case], records: CaseRecords, crew: Crew, deadline: float) -> None:
    """Run the cases group by group. A group shares a worker process; if it ends, the rest of the group gets a new one.

    Args:
        cases: in the order in which they run; cases of one group are neighbours.
        records: where the outcomes are written.
        crew: hands out the workers.
        deadline: a time of time.monotonic(); nothing runs beyond it.
    """
    groups = [list(group) for _, group in groupby(cases, key=lambda case: case.group or case.stage)]
    for number, group in enumerate(groups):
        is_last = number == len(groups) - 1
        _Group(group, records, crew, deadline).run_all(starts_spare=not is_last)


class _Group:
    """The cases that share a worker process."""

    def __init__(self, cases: list[Case], records: CaseRecords, crew: Crew, deadline: float) -> None:
        self.cases, self.records, self.crew, self.deadline = cases, records, crew, deadline
        self.worker: Worker | None = None
        self.last: tuple[Case, dict[str, Any]] | None = None  # the last case that the worker ran, with its job

    def run_all(self, starts_spare: bool) -> None:
        """Run all cases; with `starts_spare` a spare worker starts at the same time, for the next group."""
        try:
            for case in self.cases:
                job, reason = self._find_job(case)
                if reason:
                    self._keep(case, job, skip(reason))
                else:
                    self._run_case(case, job, starts_spare)
        finally:
            self._end_worker()

    def _find_job(self, case: Case) -> tuple[dict[str, Any], str]:
        """Return the job, and the reason why the case cannot be started, "" if it can."""
        results = self.records.results
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
            return job, f"no time was left: {seconds_left:.0f} s, and it takes about {case.estimate:.0f} s"
        return job, ""

    def _run_case(self, case: Case, job: dict[str, Any], starts_spare: bool) -> None:
        # Get a worker that is ready.
        worker = self._find_worker()
        if worker is None:
            said = " ".join(self.crew.log.read(0)[-1:])
            self._keep(case, job, fail(f"its process did not start; workers.log ends with: {said}"))
            return

        # Start the next group's worker. A timed case waits for its imports, which would use a core.
        if starts_spare:
            self.crew.start_spare()
        if case.is_timed:
            self.crew.wait_for_spare(self._start_seconds())

        # Run the case and write its outcome.
        outcome = ask_worker(worker, case, job, self.deadline, lambda part: self._keep_part(case, job, part))
        self._keep(case, job, outcome)
        self.last = (case, job)
        if outcome["status"] not in ("done", "failed"):
            self.worker = None  # it gave no answer: its process has ended

    def _find_worker(self) -> Worker | None:
        """Return the group's worker, ready for a case: a new one if the last one has ended; None if it cannot start."""
        if self.worker and not self.worker.wait_ready(self._start_seconds()):
            self._end_worker()
        if self.worker is None:
            worker = self.crew.take_worker()
            if not worker.wait_ready(self._start_seconds()):
                worker.kill(with_stacks=True)
                return None
            self.worker = worker
        return self.worker

    def _start_seconds(self) -> float:
        return min(MOST_START_SECONDS, self.deadline - time.monotonic())

    def _keep_part(self, case: Case, job: dict[str, Any], part: dict[str, Any]) -> None:
        """Write the figures that a case has reported so far: the suite itself may be killed."""
        self._keep(case, job, {"status": "cut", "result": part, "reason": "the suite ended meanwhile"}, is_shown=False)

    def _keep(self, case: Case, job: dict[str, Any], outcome: Outcome, is_shown: bool = True) -> None:
        self.records.add(case, job, outcome)
        if is_shown:
            print(describe_case(case.name, outcome), file=sys.stderr, flush=True)

    def _end_worker(self) -> None:
        """End the worker. If it crashes while it exits, after all answers, write that to its last case's record."""
        if self.worker is None:
            return
        status, self.worker = self.worker.end(), None
        if status < 0 and self.last:
            case, job = self.last
            outcome = self.records.results[case.name] | {"end": f"its process ended by {signal.Signals(-status).name}"}
            self._keep(case, job, outcome)


def ask_worker(
    worker: Worker, case: Case, job: dict[str, Any], deadline: float, keep: Callable[[dict[str, Any]], None]
) -> Outcome:
    """Have a worker run a case; return the outcome. Without an answer, the worker's process has ended.

    Args:
        worker: is ready.
        case: its limit counts from now.
        job: the case's job, resolved.
        deadline: a time of time.monotonic().
        keep: called with the figures that the case has reported so far.
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
        # The limit or the deadline has come: kill the worker, keep the reported figures and the end of its log.
        worker.kill(with_stacks=True)
        status = "hung" if seconds == case.limit else "cut"
        reason = f"it ran over {'its limit of' if status == 'hung' else 'the deadline, after'} {seconds:.0f} s"
        lines = read_log(worker, log_start)[-MOST_STDERR_LINES:]
        outcome = {"status": status, "result": part, "reason": reason, "stderr": lines}
        return outcome | {"seconds": round(time.monotonic() - started, 1)}


def describe_crash(worker: Worker, log_start: int) -> Outcome:
    """Return the outcome of a process that ended without an answer: the signal, and the place from its stacks."""
    status = worker.process.wait()
    worker.kill()  # children that still run
    lines = read_log(worker, log_start)
    name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    fatal = next((i for i, line in enumerate(lines) if line.startswith("Fatal Python error")), None)
    place = lines[-1] if fatal is None else next((line for line in lines[fatal:] if line.startswith("  File ")), "")
    reason = f"{name}; {place.strip()}" if lines[1:] else f"{name}; nothing on standard error"
    return {"status": "crashed", "reason": reason, "stderr": lines[-MOST_STDERR_LINES:]}


def read_log(worker: Worker, start: int) -> list[str]:
    """Return the lines of the log from a position on; paths begin at the checkout or at the package."""
    return [INSTALLED.sub('"', line.replace(f"{CHECKOUT}/", "")) for line in worker.log.read(start)]


def fail(reason: str) -> Outcome:
    """Return the outcome of a case that has no result."""
    return {"status": "failed", "result": None, "reason": reason, "seconds": 0.0}


def skip(reason: str) -> Outcome:
    """Return the outcome of a case that was not started."""
    return {"status": "skipped", "result": None, "reason": reason, "seconds": 0.0}
