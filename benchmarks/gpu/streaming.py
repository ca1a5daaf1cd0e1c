"""A plugin of pytest: run tests of regions last, and write a line of JSON for each test as soon as it has ended.

So a run that is killed keeps the outcomes until then. A JUnit report would be written only at the end.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

STREAM = "PENSTOCK_TEST_STREAM"  # the file's path, in the environment
WORKER = "PYTEST_XDIST_WORKER"  # set in xdist's workers
SUSPECTED = "roi"  # in the names of tests that may crash their process


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests that may crash their process last."""
    items.sort(key=lambda item: SUSPECTED in item.name)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Append a test's outcome: that of its call, or that of a setup or teardown that did not pass."""
    if report.when == "call" or not report.passed:
        append(report, round(report.duration, 2), dict(report.user_properties))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Append a file that cannot be collected, as a failed test."""
    if report.failed:
        append(report, 0.0, {})


def append(report: pytest.TestReport | pytest.CollectReport, seconds: float, properties: dict[str, object]) -> None:
    """Append a line to the file; xdist's workers write nothing, because their controller gets all reports."""
    if WORKER in os.environ:
        return
    row: dict[str, Any] = {"test": report.nodeid, "outcome": report.outcome, "seconds": seconds}
    row["properties"] = properties
    if not report.passed:
        lines = str(report.longrepr).strip().splitlines() or [""]
        row["reason"] = next((line for line in lines if line.startswith("E ")), lines[-1])[:300]
    with Path(os.environ[STREAM]).open("a") as file:
        file.write(json.dumps(row) + "\n")
