"""A disk that is too small, full or read-only, a worker that is killed: one line, and the next run continues."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import assert_clean, start_command
from helpers.datasets import tree
from helpers.disks import Disk
from PIL import Image

from prep.store import LocalStore

SIDE, NUM_IMAGES = 256, 120


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Black and white noise: PNGs of one bit per pixel, which become JPEGs many times their size."""
    folder = tmp_path_factory.mktemp("noise")
    draw = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        path = folder / "train" / ("even", "odd")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 2, (SIDE, SIDE)).astype(bool)).save(path)
    return folder


@pytest.fixture(scope="module")
def undisturbed(noise: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed")
    assert_clean(_start(noise, out))
    return tree(out)


def _start(source: Path, out: Path) -> subprocess.Popen[str]:
    return start_command("prep/shard.py", "--source", source, "--out", out, "--images-per-shard", 10, "--workers", 2)


def _refusal(process: subprocess.Popen[str]) -> str:
    """The one line that a failing command says."""
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stdout) == (1, ""), stderr
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1, stderr
    return stderr.removeprefix("error: ").rstrip()


def _assert_whole_or_hidden(out: Path, undisturbed: dict[str, bytes]) -> None:
    for name, content in tree(out).items():
        assert any(part.startswith(".") for part in Path(name).parts) or content == undisturbed[name], name


def test_what_does_not_fit_is_refused_before_anything_is_written(
    digits_source: Path, disk: Callable[[str], Disk]
) -> None:
    small = disk("1m")
    line = _refusal(_start(digits_source, small.seen / "out"))
    assert line.startswith(f"{small.seen / 'out'} has 1.0 MB free, about ")
    assert line.endswith(
        " MB are needed: free some, choose another --out, or make the images smaller (--max-side 500 --quality 90)"
    )
    assert not list(small.seen.iterdir())


@pytest.mark.parametrize("size", ["2m", "3100k"])
def test_a_disk_that_fills_is_told_and_the_next_run_goes_on(
    size: str, noise: Path, undisturbed: dict[str, bytes], disk: Callable[[str], Disk]
) -> None:
    small = disk(size)
    line = _refusal(_start(noise, small.seen))
    assert line.startswith(f"{small.seen}/train/")
    assert line.endswith(": no space left on device: free some space, then run the same command again")
    assert not (small.seen / "train" / "manifest.json").exists()
    _assert_whole_or_hidden(small.seen, undisturbed)
    small.remount("size=64m")
    assert_clean(_start(noise, small.seen))
    assert tree(small.seen) == undisturbed


def test_a_small_file_that_does_not_fit_is_named(disk: Callable[[str], Disk]) -> None:
    small = disk("1m")
    with pytest.raises(OSError, match=f"No space left on device: '{small.seen}/manifest.json'"):
        LocalStore(small.seen).write("manifest.json", bytes(2_000_000))
    assert not (small.seen / "manifest.json").exists()


def test_a_folder_that_cannot_be_written_is_told(noise: Path, disk: Callable[[str], Disk]) -> None:
    small = disk("64m")
    small.remount("ro")
    assert _refusal(_start(noise, small.seen)).startswith(f"{small.seen} cannot be written (a read-only file system, ")


def test_a_file_in_the_place_of_the_folder_is_told(noise: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("years of work")
    line = _refusal(_start(noise, tmp_path / "out"))
    assert f"{tmp_path / 'out'}" in line
    assert (tmp_path / "out").read_text() == "years of work"


def test_a_killed_worker_is_told_and_the_next_run_goes_on(
    noise: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    process = _start(noise, tmp_path)
    while process.poll() is None and not list(tmp_path.glob("train/*.tar")):
        time.sleep(0.005)
    os.kill(_workers(process.pid)[0], signal.SIGKILL)
    line = _refusal(process)
    assert line == "a worker process was killed (out of memory?): run the same command again"
    _assert_whole_or_hidden(tmp_path, undisturbed)
    assert_clean(_start(noise, tmp_path))
    assert tree(tmp_path) == undisturbed


def _workers(parent: int) -> list[int]:
    children = Path(f"/proc/{parent}/task").glob("*/children")
    pids = [int(pid) for path in children for pid in path.read_text().split()]
    return [pid for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
