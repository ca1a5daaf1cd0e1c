"""Run the tests that need a GPU; count each one as soon as it has ended.

pytest-xdist runs them in two workers: if a test crashes, only that test fails and a new worker continues. A file that
cannot be imported counts as a failed test. Warnings are not errors here, because the versions on the machine may be
untested. A test that hangs ends its worker.

The second half of this file is a plugin of pytest. It writes a line of JSON for each test, so that a run that is killed
keeps the outcomes until then: a JUnit report would be written only at the end. pytest imports it before any test, so it
must not need torch.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from worker import BENCHMARKS

from prep.errors import InputError

CHECKOUT = BENCHMARKS.parent
MARKER = "mark.gpu"
FINISHED = (0, 1)  # pytest's exit status after all tests ran, whether or not some failed
NUM_SLOWEST = 8  # tests whose durations are kept
OPTIONS = (
    *("-p", "no:cacheprovider", "-p", "gpu.marked", "-q"),
    *("-n", "2", "--dist", "load", "--max-worker-restart", "40", "--continue-on-collection-errors"),
    *("-o", "filterwarnings=default", "-o", "faulthandler_timeout=100", "-o", "faulthandler_exit_on_timeout=true"),
)
STREAM = "PENSTOCK_TEST_STREAM"  # environment variable: the descriptor that the plugin writes to
SUSPECTED = "roi"  # in the names of tests that may crash their process


def run_tests(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield how many tests passed, were skipped and failed, the reasons, and what the tests recorded.

    Only the files below tests/ that contain the marker are collected: others may need packages that this machine lacks.

    Raises:
        InputError: pytest failed before any test had ended.
    """
    files = sorted(str(path) for path in (CHECKOUT / "tests").rglob("test_*.py") if MARKER in path.read_text())
    folders = os.pathsep.join([str(BENCHMARKS), os.environ.get("PYTHONPATH", str(CHECKOUT))])
    # Without xdist's variables for its own workers: the suite may itself run in a test.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    read_end, write_end = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *OPTIONS, "-m", job["marker"], *files],
        cwd=CHECKOUT,
        env=inherited | {STREAM: str(write_end), "PYTHONPATH": folders},
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        pass_fds=[write_end],
    )
    os.close(write_end)
    rows: list[dict[str, Any]] = []
    with open(read_end) as lines:
        for line in lines:
            rows.append(json.loads(line))
            yield count_outcomes(rows)
    status = process.wait()
    if status not in FINISHED and not rows:
        raise InputError(f"pytest ended with status {status} before any test: see workers.log")
    note = {} if status in FINISHED else {"note": f"pytest ended with status {status} before all tests had run"}
    yield count_outcomes(rows) | note


def count_outcomes(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the counts, the failed tests with their reasons, and the properties that tests recorded."""
    failed = {row["test"]: row["reason"] for row in rows if row["outcome"] == "failed"}
    skipped = {row["test"] for row in rows if row["outcome"] == "skipped"}
    passed = {row["test"] for row in rows if row["outcome"] == "passed"} - failed.keys()
    slowest = sorted(rows, key=lambda row: row["seconds"], reverse=True)
    return {
        "num_passed": len(passed),
        "num_skipped": len(skipped),
        "failed": failed,
        "properties": {row["test"]: row["properties"] for row in rows if row["properties"]},
        "slowest_seconds": {row["test"]: row["seconds"] for row in slowest[:NUM_SLOWEST]},
    }


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests that may crash their process last."""
    items.sort(key=lambda item: SUSPECTED in item.name)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write a test's outcome: that of its call, or that of a setup or teardown that did not pass."""
    if report.when == "call" or not report.passed:
        write_row(report, round(report.duration, 2), dict(report.user_properties))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Write a file that cannot be collected, as a failed test."""
    if report.failed:
        write_row(report, 0.0, {})


def write_row(report: pytest.TestReport | pytest.CollectReport, seconds: float, properties: dict[str, object]) -> None:
    """Write a line; xdist's workers write nothing, because their controller gets all reports."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    name = report.nodeid.partition("::")[2] or report.nodeid  # without its file
    row: dict[str, Any] = {"test": name, "outcome": report.outcome, "seconds": seconds, "properties": properties}
    if not report.passed:
        lines = str(report.longrepr).strip().splitlines() or [""]
        row["reason"] = next((line for line in lines if line.startswith("E ")), lines[-1])[:300]
    os.write(int(os.environ[STREAM]), json.dumps(row).encode() + b"\n")
