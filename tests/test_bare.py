"""A bare checkout on PYTHONPATH: commands and tests run without the packages that they do not need.

Where a test needs a machine that lacks packages, it runs a process in which an import hook hides them.
"""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from helpers.commands import CHECKOUT, run_command, run_hiding
from helpers.packages import OPTIONAL
from PIL import Image

from prep.errors import run


def find_gpu_tests() -> list[Path]:
    """Return the test files that contain the marker."""
    paths = sorted((CHECKOUT / "tests").glob("**/test_*.py"))
    return [path for path in paths if re.search(r"mark\.gpu\b", path.read_text())]


def test_a_missing_package_ends_a_command_in_one_line() -> None:
    def main() -> None:
        raise ModuleNotFoundError("No module named 'simplejpeg'", name="simplejpeg")

    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == "error: the package simplejpeg is missing: pip install simplejpeg"


def test_a_missing_decoder_is_not_reported_as_damaged_images(
    digits_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worker processes start without the import hook, so a module that cannot be imported hides the package there."""
    (tmp_path / "hidden").mkdir()
    missing = "raise ModuleNotFoundError(\"No module named 'simplejpeg'\", name='simplejpeg')\n"
    (tmp_path / "hidden" / "simplejpeg.py").write_text(missing)
    for label in "ab":
        (tmp_path / "source" / "train" / label).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "source" / "train" / label / "one.jpg")
    shard = ("prep/shard.py", "--source", tmp_path / "source", "--out", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "hidden"), os.environ.get("PYTHONPATH", "")]))
        for command in (shard, ("prep/verify.py", digits_copy, "--decode", "all")):
            done = run_command(*command)
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr == "error: the package simplejpeg is missing: pip install simplejpeg\n"
    done = run_command(*shard)  # the failed run left nothing behind
    assert done.returncode == 0 and "2 offered = 2 kept + 0 repaired + 0 rejected" in done.stdout, done.stderr


@cache
def collect_gpu_tests(hidden: frozenset[str] = frozenset()) -> list[str]:
    done = run_hiding(
        hidden, *("-m", "pytest", "-m", "gpu", "--collect-only", "-p", "no:cacheprovider"), *find_gpu_tests()
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_the_tests_of_a_gpu_are_collected_without_what_they_do_not_need() -> None:
    tests = collect_gpu_tests()
    assert len(tests) > 30
    assert collect_gpu_tests(OPTIONAL - {"nvidia.dali"}) == tests


def test_what_may_crash_a_gpus_process_runs_last() -> None:
    tests = collect_gpu_tests()
    decodes_regions = [re.search(r"\[.*\broi\b", test) is not None for test in tests]
    assert any(decodes_regions) and decodes_regions == sorted(decodes_regions)


def test_the_tests_of_a_gpu_run_in_a_worker_that_can_be_replaced() -> None:
    """A crash fails only the test that was running; a warning about untested versions fails no test."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "-n", "1", "--dist=load"]
    command += ["-o", "filterwarnings=default", *map(str, find_gpu_tests()[:2])]  # two files: each import takes seconds
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("hidden", "file", "reason"),
    [
        (
            "webdataset",
            "prep/test_tar_reader.py",
            "needs webdataset, which is not installed",
        ),  # the test file imports it
        ("datasets", "prep/test_dataset.py", "needs datasets, which is not installed"),  # a fixture does
    ],
)
def test_a_test_that_lacks_a_package_is_skipped_and_says_so(hidden: str, file: str, reason: str) -> None:
    done = run_hiding([hidden], "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", f"tests/{file}")
    assert done.returncode in (0, 5), done.stdout + done.stderr
    assert reason in done.stdout and "failed" not in done.stdout


def test_a_test_that_lacks_what_every_machine_has_fails() -> None:
    done = run_hiding(["yaml"], "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "tests/test_environment.py")
    assert done.returncode not in (0, 5)
    assert "No module named 'yaml'" in done.stdout
