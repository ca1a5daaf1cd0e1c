"""A run that is killed and started again ends in the same bits as one that was left alone."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHECKOUT

FLAGS = [
    *("--epochs", "1.5"),
    *("--batch-size", "32"),
    *("--transform.size", "16"),
    *("--evaluation.size", "16"),
    *("--evaluation.resize", "16"),
    *("--optim.warmup-epochs", "0.5"),
    *("--run.save-every", "0.25"),
    *("--device", "cpu"),
]
TIMINGS = ("images_per_second", "data_wait_percent")
PATIENCE = 120.0  # seconds


def _start(data: Path, run: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "train/main.py", "demo", "--data.root", str(data), "--run.dir", str(run), *FLAGS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=CHECKOUT, env=environment, stdout=subprocess.DEVNULL)


def _kill_after_a_checkpoint(process: subprocess.Popen[bytes], run: Path, delay: float) -> None:
    deadline = time.monotonic() + PATIENCE
    while not list(run.glob("checkpoints/step_*")):
        assert process.poll() is None and time.monotonic() < deadline, "the run never saved a checkpoint"
        time.sleep(0.02)
    time.sleep(delay)
    process.kill()
    assert process.wait(PATIENCE) == -signal.SIGKILL, "the run ended before it was killed"


def _metrics(run: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in entry.items() if name not in TIMINGS} for entry in entries]


def _last(run: Path) -> Path:
    return max((run / "checkpoints").glob("step_*"))


@pytest.fixture(scope="module")
def runs(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The run folders of an undisturbed run and of one that was killed and run again."""
    folder = tmp_path_factory.mktemp("resume")
    calm, killed = folder / "calm", folder / "killed"
    undisturbed, disturbed = _start(digits, calm), _start(digits, killed)
    try:
        _kill_after_a_checkpoint(disturbed, killed, random.Random(113).uniform(0, 1.5))
        disturbed = _start(digits, killed)
        assert disturbed.wait(PATIENCE) == undisturbed.wait(PATIENCE) == 0
    finally:
        for process in (undisturbed, disturbed):
            process.kill()
            process.wait()
    return calm, killed


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors"])
def test_resumed_weights_are_the_same_bytes(runs: tuple[Path, Path], name: str) -> None:
    calm, killed = map(_last, runs)
    assert calm.name == killed.name
    assert (calm / name).read_bytes() == (killed / name).read_bytes()


def test_resumed_momentum_is_equal(runs: tuple[Path, Path]) -> None:
    ours, theirs = (torch.load(_last(run) / "optimizer.pt", weights_only=True)["optimizer"] for run in runs)
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys() != set()
    for index, state in ours["state"].items():
        assert torch.equal(state["momentum_buffer"], theirs["state"][index]["momentum_buffer"])


def test_resumed_metrics_are_equal_but_for_timings(runs: tuple[Path, Path]) -> None:
    calm, killed = map(_metrics, runs)
    assert [entry["kind"] for entry in calm] == ["train", "validation"] * 2
    assert calm == killed
