"""`kill -9` at seeded random moments: a file with a final name is complete, and running again gives the same bytes.

PENSTOCK_SOAK_KILLS sets how many kills (3 unless told); with it, a part of Tiny ImageNet is killed at as well.
"""

import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.commands import CHECKOUT
from helpers.datasets import SHARED_DATA, tree
from helpers.restarts import CAN_TRANSCODE

SOAK = "PENSTOCK_SOAK_KILLS" in os.environ
NUM_KILLS = int(os.environ.get("PENSTOCK_SOAK_KILLS", "3"))
SECONDS_TO_DIE = 20.0  # how long to wait for orphans before calling them survivors
OF_ALL_SPLITS = ("_info.json", "README.md", "leaks.jsonl")  # about all splits, so not final before the last


@dataclass(frozen=True)
class Moment:
    """The moment to kill: `seconds` after that share of the missing shards has been written."""

    progress: float
    seconds_after: float


@dataclass(frozen=True)
class Run:
    """A command to kill, and how many shards it writes."""

    source: Path
    num_shards: int
    options: tuple[str, ...]


def _draw_moments(seed: int) -> list[Moment]:
    """While starting, between any two shards, while closing a split (of digits, the first has 36 of 45 shards)."""
    draw = random.Random(seed)
    kinds = [
        lambda: Moment(draw.random(), 0.0),
        lambda: Moment(draw.choice([0.8, 1.0]), draw.uniform(0, 0.03)),
        lambda: Moment(draw.random(), draw.uniform(0, 0.1)),
        lambda: Moment(0.0, draw.uniform(0, 4)),
    ]
    return [kinds[number % len(kinds)]() for number in range(NUM_KILLS)]


def _start(run: Run, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "prep/shard.py", "--source", str(run.source), "--out", str(out), *run.options]
    return subprocess.Popen(
        command, cwd=CHECKOUT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def _kill_at(moment: Moment, run: Run, out: Path) -> bool:
    """Start the command and kill its parent process alone; whether it was still at work then."""
    process = _start(run, out)
    present = len(list(out.glob("*/*.tar")))
    awaited = present + math.ceil(moment.progress * (run.num_shards - present))
    while process.poll() is None and len(list(out.glob("*/*.tar"))) < awaited:
        time.sleep(0.001)
    time.sleep(moment.seconds_after)
    at_work = process.poll() is None
    process.send_signal(signal.SIGKILL)  # the parent alone: its workers have to notice
    process.wait()
    deadline = time.monotonic() + SECONDS_TO_DIE
    while _living_in_session(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    survivors = _living_in_session(process.pid)
    for pid in survivors:
        os.kill(pid, signal.SIGKILL)
    assert not survivors
    return at_work


def _living_in_session(session: int) -> list[int]:
    """The processes of a session, from /proc, without those that are dead but not yet reaped."""
    living = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = stat.read_text().rpartition(") ")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        if int(its_session) == session and state not in "ZX":
            living.append(int(stat.parent.name))
    return living


def _assert_whole_or_hidden(out: Path, undisturbed: dict[str, bytes]) -> None:
    """Every file that is not hidden has its final bytes, except those about all splits."""
    for name, content in tree(out).items():
        if name in OF_ALL_SPLITS:
            assert content.endswith(b"\n") or not content
        elif not any(part.startswith(".") for part in Path(name).parts):
            assert content == undisturbed[name], name
    for tar in out.glob("*/*.tar"):
        assert tar.with_suffix(".idx").exists()
        assert tar.with_suffix(".seg").exists() == (tar.with_suffix(".seg").relative_to(out).as_posix() in undisturbed)


@pytest.fixture(scope="module", params=["digits", "tiny-imagenet"])
def run(request: pytest.FixtureRequest) -> Run:
    if request.param == "digits":  # 1,437 and 360, 40 a shard
        options = ("--images-per-shard", "40", "--workers", "2", *(["--restarts"] if CAN_TRANSCODE else []))
        return Run(request.getfixturevalue("digits_source"), 45, options)
    folder = SHARED_DATA / "tiny-imagenet"
    if not SOAK or not folder.is_dir():
        pytest.skip(f"minutes long: set PENSTOCK_SOAK_KILLS, and have Tiny ImageNet in {folder}")
    part = ("--allow-missing", "--splits", "train", "--limit", "20000", "--images-per-shard", "500", "--workers", "2")
    return Run(folder, 40, part)


@pytest.fixture(scope="module")
def undisturbed(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed")
    assert _start(run, out).wait() == 0
    files = tree(out)
    assert sum(name.endswith(".tar") for name in files) == run.num_shards
    assert not any(part.startswith(".") for name in files for part in Path(name).parts)  # nothing of the work is left
    return files


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(
    run: Run, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    landed = 0
    for number, moment in enumerate(_draw_moments(seed=1)):
        out = tmp_path / f"run{(number + 1) // 2}"  # the first kill by itself, then two in a row
        landed += _kill_at(moment, run, out)
        _assert_whole_or_hidden(out, undisturbed)
        if number % 2 == 0 or number == NUM_KILLS - 1:
            assert _start(run, out).wait() == 0
            assert tree(out) == undisturbed
    assert landed > 0
