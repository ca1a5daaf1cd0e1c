"""Run the tests that need a GPU; count each one as soon as it has ended.

pytest-xdist runs them in two workers: if a test crashes, only that test fails and a new worker continues. A file that
cannot be imported counts as a failed test. Warnings are not errors here, because the versions on the machine may be
untested. A test that hangs ends its worker.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from answer import Job
from gpu.crew import BENCHMARKS, CHECKOUT
from gpu.streaming import STREAM
from gpu.worker import Report

from prep.errors import InputError

MARKER = "mark.gpu"
FINISHED = (0, 1)  # pytest's exit status after all tests ran, whether or not some failed
SECONDS_BETWEEN_LOOKS = 0.5
NUM_SLOWEST = 8  # tests whose durations are kept
OPTIONS = (
    *("-p", "no:cacheprovider", "-p", "gpu.streaming", "-q"),
    *("-n", "2", "--dist", "load", "--max-worker-restart", "40", "--continue-on-collection-errors"),
    *("-o", "filterwarnings=default", "-o", "faulthandler_timeout=100", "-o", "faulthandler_exit_on_timeout=true"),
)


def run_tests(job: Job, report: Report) -> dict[str, Any]:
    """Return how many tests passed, were skipped and failed, the reasons, and what the tests recorded.

    Only the files below tests/ that contain the marker are collected: others may need packages that this machine lacks.

    Raises:
        InputError: pytest failed before any test had ended.
    """
    files = sorted(str(path) for path in (CHECKOUT / "tests").rglob("test_*.py") if MARKER in path.read_text())
    with tempfile.TemporaryDirectory(prefix="penstock-") as temporary:
        stream = Path(temporary) / "tests.jsonl"
        stream.touch()
        folders = os.pathsep.join([str(BENCHMARKS), os.environ.get("PYTHONPATH", str(CHECKOUT))])
        # Without xdist's variables for its own workers: the suite may itself run in a test.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *OPTIONS, "-m", job["marker"], *files],
            cwd=CHECKOUT,
            env=inherited | {STREAM: str(stream), "PYTHONPATH": folders},
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
        )
        # Report whenever another test has ended.
        num_reported = 0
        while process.poll() is None:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            rows = read_rows(stream)
            if len(rows) > num_reported:
                num_reported = len(rows)
                report(count_outcomes(rows))
        result = count_outcomes(read_rows(stream))
    if process.returncode in FINISHED:
        return result
    if not num_reported:
        raise InputError(f"pytest ended with status {process.returncode} before any test: see workers.log")
    return result | {"note": f"pytest ended with status {process.returncode} before all tests had run"}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a file that is being written, parsed as JSON."""
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def count_outcomes(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the counts, the failed tests with their reasons, and the properties that tests recorded."""
    failed = {name_test(row): row["reason"] for row in rows if row["outcome"] == "failed"}
    skipped = {name_test(row) for row in rows if row["outcome"] == "skipped"}
    passed = {name_test(row) for row in rows if row["outcome"] == "passed"} - failed.keys()
    slowest = sorted(rows, key=lambda row: row["seconds"], reverse=True)
    return {
        "num_passed": len(passed),
        "num_skipped": len(skipped),
        "failed": failed,
        "properties": {name_test(row): row["properties"] for row in rows if row["properties"]},
        "slowest_seconds": {name_test(row): row["seconds"] for row in slowest[:NUM_SLOWEST]},
    }


def name_test(row: dict[str, Any]) -> str:
    """Return the name of a test without its file."""
    return row["test"].partition("::")[2] or row["test"]
