"""Small training runs of the demo recipe as users start them, to be disturbed and then compared bit by bit."""

import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from helpers.commands import CHECKOUT, free_port
from helpers.ranks import Ended, Ranks
from train.checkpoint import TrainState

FLAGS = [
    *("--batch-size", "48"),
    *("--model.name", "test_resnet"),
    *("--data.fraction", "0.4"),
    *("--epochs", "2"),
    *("--transform.size", "16"),
    *("--evaluation.size", "16"),
    *("--evaluation.resize", "16"),
    *("--optim.warmup-epochs", "0.5"),
    *("--run.log-every", "96"),
    *("--device", "cpu"),
]
SAVE_OFTEN = ("--run.save-every", "0.1")  # epochs: after about every second step
TIMINGS = ("images_per_second", "data_wait_percent", "cached_percent")
PATIENCE = 60.0  # seconds


@dataclass(frozen=True)
class Run:
    """The arguments of a run."""

    data: Path
    folder: Path
    flags: tuple[str, ...] = ()
    recipe: str = "demo"

    @property
    def arguments(self) -> list[str]:
        """The arguments of train/main.py."""
        return [self.recipe, "--data.root", str(self.data), "--run.dir", str(self.folder), *FLAGS, *self.flags]

    @property
    def checkpoints(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.folder.glob("checkpoints/step_*"))

    def metrics(self) -> list[dict[str, Any]]:
        """Return what it logged, without what depends on time."""
        entries = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return [{name: value for name, value in entry.items() if name not in TIMINGS} for entry in entries]


def start(ranks: Ranks, run: Run, size: int, job: str = "script", **arguments: Any) -> Path:
    """Start train/main.py in `size` processes, or another job with its arguments; the group's folder."""
    port = free_port()
    if job.startswith("script"):
        arguments["script"] = str(CHECKOUT / "train/main.py")
    groups = run.folder.parent / f"{run.folder.name}-{ranks.num_groups}"
    return ranks.start(job, size, groups, arguments=run.arguments, port=port, **arguments)


def finish(ranks: Ranks, run: Run, size: int) -> None:
    """Train to the end."""
    start(ranks, run, size)
    assert_ended(ranks.wait(PATIENCE), 0)


def assert_ended(ended: list[Ended], status: int) -> None:
    """All of them so, and without a traceback."""
    for rank in ended:
        assert rank.status == status, rank
        assert "Traceback" not in rank.stderr, rank.stderr


def torchrun(run: Run, size: int, *options: str) -> subprocess.Popen[str]:
    """Start torchrun with train/main.py."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(size), *options]
    return subprocess.Popen(
        [*launcher, "train/main.py", *run.arguments],
        cwd=CHECKOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def find_workers(launcher: subprocess.Popen[str]) -> dict[int, int]:
    """The process of each rank that torchrun started."""
    workers = {}
    for pid in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
        variables = dict(each.split("=", 1) for each in Path(f"/proc/{pid}/environ").read_text().split("\0") if each)
        if "RANK" in variables:
            workers[int(variables["RANK"])] = int(pid)
    return workers


def await_that(holds: Callable[[], Any], what: str) -> None:
    """Wait until something holds."""
    given_up = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < given_up, f"never: {what}"
        time.sleep(0.002)


def count_logs(group: Path) -> int:
    """Return how often rank 0 of a group has logged training: after every second step."""
    path = group / "stdout-0"
    return path.read_text().count("  train  ") if path.exists() else 0


def assert_same_end(ours: Run, theirs: Run) -> None:
    """Model, EMA, optimizer, clock and metrics of two runs are the same bits."""
    a, b = ours.checkpoints[-1], theirs.checkpoints[-1]
    assert a.name == b.name
    for name in ("model.safetensors", "ema.safetensors"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    one, two = (torch.load(path / "optimizer.pt", weights_only=True)["optimizer"] for path in (a, b))
    assert one["param_groups"] == two["param_groups"]
    assert one["state"].keys() == two["state"].keys() != set()
    for index, state in one["state"].items():
        assert state.keys() == two["state"][index].keys() != set()
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(two["state"][index][name])), name
    assert ours.metrics() == theirs.metrics() != []


def small_state(seed: int = 0, width: int = 3) -> TrainState:
    """A model with a running statistic, one step into its training."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width))
    ema = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    return TrainState(model, ema, optimizer, torch.amp.GradScaler("cpu", enabled=False))
