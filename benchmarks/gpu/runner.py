"""One case in a process of its own: its result, or in what way it came to none, which never ends the suite.

done: it answered; failed: it said why not; crashed: a signal ended it; hung: it ran past its own limit;
cut: it ran past the time that the suite had left.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpu.cases import Case
from race import last_line

BENCHMARKS = Path(__file__).resolve().parent.parent
SETTLED = ("done", "crashed", "hung")  # results; what failed for want of something, or of time, is tried again
Outcome = dict[str, Any]


def run_case(case: Case, job: dict[str, Any], seconds_left: float) -> Outcome:
    """Run it for as long as it may: status, seconds, result (None without one) and reason (None with one)."""
    limit, started = min(case.limit, seconds_left), time.monotonic()
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        status = wait(describe_words(case, job), BENCHMARKS if case.module else Path.cwd(), limit, (output, errors))
        seconds = time.monotonic() - started
        output.seek(0)
        errors.seek(0)
        outcome = judge(case, status, output.read(), errors.read())
    if status is None:
        outcome = {"status": "hung" if limit == case.limit else "cut", "result": None, "reason": f"over {limit:.0f} s"}
    return outcome | {"seconds": round(seconds, 1)}


def describe_words(case: Case, job: dict[str, Any]) -> list[str]:
    """The command; a module's is run in the folder benchmarks."""
    if case.command:
        return shlex.split(case.command)
    return [sys.executable, "-m", f"gpu.{case.module}", json.dumps(job)]


def wait(words: list[str], folder: Path, limit: float, streams: tuple[Any, Any]) -> int | None:
    """Its exit status, None past the limit; by then all that it started has ended."""
    output, errors = streams
    try:
        process = subprocess.Popen(
            words, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, process_group=0
        )
    except OSError as error:
        errors.write(f"{words[0]} cannot be started: {error.strerror}\n")
        return 127  # as a shell says it
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def judge(case: Case, status: int | None, output: str, errors: str) -> Outcome:
    """What a process that has ended came to."""
    result = read_result(case, output)
    if status == 0 and result is not None:
        return {"status": "done", "result": result, "reason": None}
    if status is not None and status < 0:  # maybe at its very end, after it had answered
        return {"status": "crashed", "result": result, "reason": f"{signal.Signals(-status).name}; {last_line(errors)}"}
    return {"status": "failed", "result": None, "reason": last_line(errors)}


def read_result(case: Case, output: str) -> dict[str, Any] | None:
    """What it printed last."""
    last = (output.strip().splitlines() or [""])[-1]
    if case.command:
        return {"last_line": last[-300:]}
    with suppress(ValueError):
        return json.loads(last)
    return None
