"""A bare checkout on PYTHONPATH: commands and tests run without the packages that they do not need.

A process in which an import hook hides packages stands for a machine that lacks them.
"""

import os
import re
import subprocess
import sys
from collections.abc import Collection
from functools import cache
from pathlib import Path

import pytest
from conftest import CHECKOUT, OPTIONAL, is_installed, run_command
from PIL import Image

from prep.errors import run

# Runs the script argv[2], or the module behind "-m", as Python does, with the packages in argv[1] hidden.
HIDE = """
import os, runpy, sys

class Hidden:
    packages = frozenset(sys.argv[1].split(","))

    def find_spec(self, name, path=None, target=None):
        if name in self.packages:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
is_module = sys.argv[2] == "-m"
del sys.argv[: 3 if is_module else 2]
if is_module:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
COMMANDS = (
    *("prep/verify.py", "prep/adopt.py", "train/main.py", "train/evaluate.py", "train/export.py", "train/curves.py"),
    *("serve/gradcam_viz.py", "benchmarks/throughput.py", "benchmarks/certify.py", "benchmarks/gpu_suite.py"),
    *("benchmarks/gpu_pack.py", "benchmarks/results.py"),
)
NEEDED = {"train/main.py": "tyro"}  # its command line


def run_hiding(packages: Collection[str], *arguments: object, cwd: Path = CHECKOUT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", HIDE, ",".join(packages), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def find_gpu_tests() -> list[Path]:
    """The test files that hold the marker."""
    return [
        path for path in sorted((CHECKOUT / "tests").glob("test_*.py")) if re.search(r"mark\.gpu\b", path.read_text())
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_starts_without_what_it_does_not_need(command: str, tmp_path: Path) -> None:
    needed = NEEDED.get(command)
    if needed and not is_installed(needed):
        pytest.skip(f"needs {needed}, which is not installed")
    done = run_hiding(OPTIONAL - {needed}, CHECKOUT / command, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


def test_a_missing_package_ends_a_command_in_one_line() -> None:
    def main() -> None:
        raise ModuleNotFoundError("No module named 'simplejpeg'", name="simplejpeg")

    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == "error: the package simplejpeg is missing: pip install simplejpeg"


def test_a_missing_decoder_is_no_damage_to_images(
    digits_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worker processes are new ones: a module that cannot be imported hides the package there too."""
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
    done = run_command(*shard)  # nothing of the failure was kept
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
    assert len(tests) > 40
    assert collect_gpu_tests(OPTIONAL - {"nvidia.dali"}) == tests


def test_what_may_crash_a_gpus_process_runs_last() -> None:
    tests = collect_gpu_tests()
    decodes_regions = [re.search(r"\[.*\broi\b", test) is not None for test in tests]
    assert any(decodes_regions) and decodes_regions == sorted(decodes_regions)


def test_the_tests_of_a_gpu_run_in_a_worker_that_can_be_replaced() -> None:
    """A crash costs the one test that runs; a warning of untried versions costs none."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "-n", "1", "--dist=load"]
    command += ["-o", "filterwarnings=default", *map(str, find_gpu_tests())]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("hidden", "file", "reason"),
    [
        ("webdataset", "test_tar_reader.py", "needs webdataset, which is not installed"),  # the test file imports it
        ("datasets", "test_dataset.py", "needs datasets, which is not installed"),  # a fixture does
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
