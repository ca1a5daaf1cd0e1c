"""A run with --run.mirror outlives its machine: an empty folder resumes it with the same bits, whatever happened."""

import os
import random
import runpy
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.commands import CHECKOUT
from helpers.mirror_runs import FILES, MIRRORED, URL, Bucket
from helpers.ranks import Ranks
from helpers.swift_server import SECRET
from helpers.train_runs import (
    PATIENCE,
    SAVE_OFTEN,
    Run,
    assert_ended,
    assert_same_end,
    await_that,
    count_logs,
)

from train.checkpoint import find_fault
from train.preemption import LEFT_EARLY

NUM_SEEDS = int(os.environ.get("PENSTOCK_SOAK_MIRROR_KILLS", "1"))
Calm = Callable[[int], Run]


def leave_in_the_middle(trainers: Ranks, bucket: Bucket, run: Run, size: int) -> str:
    """Train some steps, then be asked to leave; what rank 0 printed."""
    group = bucket.start(trainers, run, size, held=True)
    await_that(lambda: len(list(group.glob("held-*"))) == size, "all ranks in the middle of the run")
    trainers.signal(size - 1, signal.SIGTERM)
    (group / "go").touch()
    assert_ended(trainers.wait(PATIENCE), LEFT_EARLY)
    return (group / "stdout-0").read_text()


@pytest.mark.parametrize("size", [1, 2])
def test_an_empty_folder_resumes_the_run_and_ends_in_the_same_bits(
    trainers: Ranks, bucket: Bucket, calm: Calm, digits: Path, tmp_path: Path, size: int
) -> None:
    first, second = (Run(digits, tmp_path / name, MIRRORED) for name in ("first", "second"))
    said = leave_in_the_middle(trainers, bucket, first, size)
    assert f"in {first.folder} and in {URL}; the same command resumes" in said
    assert bucket.read("continue.json") == (first.folder / "continue.json").read_bytes()
    (left,) = bucket.checkpoints().items()
    assert left == (f"{first.checkpoints[-1].name}-000001", FILES)

    said = bucket.finish(trainers, second, size)
    assert f"fetched {URL}/checkpoints/{left[0]}" in said
    assert_same_end(second, calm(size))
    objects = bucket.objects()
    assert "continue.json" not in objects
    for name in ("recipe.json", "starts.jsonl", "metrics.jsonl"):
        assert bucket.read(name) == (second.folder / name).read_bytes(), name
    for path in (second.folder / "tensorboard").iterdir():
        assert objects[f"tensorboard/{path.name}"] == path.stat().st_size
    assert len((second.folder / "starts.jsonl").read_text().splitlines()) == 2

    # What is kept there: the newest, and the best of all, which may be of the first machine.
    assert set(bucket.checkpoints()) >= {f"{path.name}-000002" for path in second.checkpoints[1:]}
    assert all(names == FILES for names in bucket.checkpoints().values())
    assert [(claim["number"], claim["clock"] > 0) for claim in bucket.claims()] == [(1, False), (2, True)]
    assert "is finished: nothing left to train" in bucket.finish(trainers, second, size)
    assert_no_secrets(bucket, tmp_path)


def assert_no_secrets(bucket: Bucket, folder: Path) -> None:
    """Neither the bucket nor a folder, with its logs and the output of the processes, holds a secret."""
    token = bucket.settings["AWS_SESSION_TOKEN"].encode()
    contents = {name: bucket.read(name) for name in bucket.objects()}
    contents |= {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert len(contents) > 20
    for name, content in contents.items():
        assert token not in content, name
        assert SECRET.encode() not in content, name


def test_the_command_fetches_a_run(
    trainers: Ranks, bucket: Bucket, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(digits, tmp_path / "run", (*MIRRORED, *SAVE_OFTEN))
    bucket.finish(trainers, run, 1)
    # In the bucket is what the folder keeps.
    assert list(bucket.checkpoints()) == [f"{path.name}-000001" for path in run.checkpoints]
    to = tmp_path / "fetched"
    monkeypatch.setattr(sys, "argv", ["train/mirror.py", f"{URL}/", "--to", str(to)])
    for _ in range(2):
        runpy.run_path(str(CHECKOUT / "train/mirror.py"), run_name="__main__")
        assert read_folder(to) == read_folder(run.folder)
        shutil.rmtree(to / "checkpoints" / run.checkpoints[0].name)  # only that comes again


def read_folder(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _kill_at_some_moment(trainers: Ranks, bucket: Bucket, run: Run, size: int, draw: random.Random) -> None:
    """After some steps, or in the middle of an upload."""
    group = bucket.start(trainers, run, size)
    num_logs, in_an_upload = draw.randint(1, 6), draw.random() < 0.7
    await_that(lambda: count_logs(group) >= num_logs, f"{num_logs} logs")
    if in_an_upload:
        await_that(bucket.has_partial, "an upload")
    assert_ended(trainers.kill(), -signal.SIGKILL)


@pytest.mark.parametrize("seed", range(NUM_SEEDS))
def test_a_run_that_is_killed_twice_and_moves_ends_in_the_same_bits(
    trainers: Ranks, bucket: Bucket, calm: Calm, digits: Path, tmp_path: Path, seed: int
) -> None:
    draw, size, folder = random.Random(seed), 1 + seed % 2, tmp_path / "run"
    for number in range(2):
        _kill_at_some_moment(trainers, bucket, Run(digits, folder, (*MIRRORED, *SAVE_OFTEN)), size, draw)
        bucket.assert_no_half(tmp_path / f"seen-{number}")
        if number == 1 or draw.random() < 0.7:
            folder = tmp_path / f"run-{number}"  # on another machine, else on the same one
    last = Run(digits, folder, (*MIRRORED, *SAVE_OFTEN))
    assert "damaged" not in bucket.finish(trainers, last, size)
    assert_same_end(last, calm(size))
    assert not bucket.has_partial()
    bucket.assert_no_half(tmp_path / "seen")
    assert not any(find_fault(path) for path in last.checkpoints)
