"""`python -m gpu.marked JOB`: the tests that need a GPU, counted, with what they recorded."""

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from answer import Job, answer
from race import last_line

from prep.dataset import InputError

CHECKOUT = Path(__file__).resolve().parent.parent.parent
MARKER = "mark.gpu"
SOME_FAILED = 1  # pytest's status


def run_tests(job: Job) -> dict[str, Any]:
    """Runs those files of tests/ that hold the marker: others may want packages that this machine lacks."""
    files = sorted(str(path) for path in (CHECKOUT / "tests").glob("test_*.py") if MARKER in path.read_text())
    with tempfile.TemporaryDirectory(prefix="penstock-") as temporary:
        report = Path(temporary) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += ["-m", job["marker"], f"--junitxml={report}", *files]
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
        sys.stderr.write(done.stdout[-4000:] + done.stderr[-4000:])
        if done.returncode not in (0, SOME_FAILED):
            raise InputError(f"pytest ended with status {done.returncode}: {last_line(done.stderr or done.stdout)}")
        return count(report.read_text())


def count(report: str) -> dict[str, Any]:
    """Passed, skipped and failed tests of a JUnit report, the failed ones by name, and the recorded properties."""
    tests = list(ET.fromstring(report).iter("testcase"))
    skipped = [test for test in tests if test.find("skipped") is not None]
    failed = [test for test in tests if test.find("failure") is not None or test.find("error") is not None]
    return {
        "num_passed": len(tests) - len(skipped) - len(failed),
        "num_skipped": len(skipped),
        "failed": [test.get("name") for test in failed],
        "properties": {
            test.get("name"): {each.get("name"): each.get("value") for each in test.iter("property")}
            for test in tests
            if test.find("properties") is not None
        },
    }


if __name__ == "__main__":
    answer(run_tests)
