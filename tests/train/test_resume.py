"""A run that is killed at any moment and started again ends in the same bits as one that was left alone.

PENSTOCK_SOAK_TRAIN_KILLS sets how many runs are killed, each twice (2 unless told).
"""

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.ranks import Ranks
from helpers.train_runs import (
    PATIENCE,
    SAVE_OFTEN,
    Run,
    assert_ended,
    assert_same_end,
    await_that,
    count_logs,
    finish,
    start,
)
from safetensors.torch import load_file

from train.checkpoint import PARTIAL, newest_complete, read_meta

NUM_SEEDS = int(os.environ.get("PENSTOCK_SOAK_TRAIN_KILLS", "2"))
SIZE = 2  # processes


def _kill_at_some_moment(trainers: Ranks, run: Run, draw: random.Random) -> None:
    """After some steps, or in the middle of a save; all processes at once, or one, which ends the others."""
    group, checkpoints = start(trainers, run, SIZE), run.folder / "checkpoints"
    num_logs, in_a_save = draw.randint(1, 4), draw.random() < 0.5
    await_that(lambda: count_logs(group) >= num_logs, f"{num_logs} logs")
    if in_a_save:
        await_that(lambda: any(checkpoints.glob(f"{PARTIAL}*")), "a save")
    if draw.random() < 0.5:
        assert_ended(trainers.kill(), -signal.SIGKILL)
        return
    killed = draw.randrange(SIZE)
    trainers.signal(killed, signal.SIGKILL)
    for rank, ended in enumerate(trainers.wait(PATIENCE)):
        assert ended.status == (-signal.SIGKILL if rank == killed else 1), ended
        assert rank == killed or ended.stderr.startswith(f"rank {rank}: another process ended"), ended


@pytest.mark.parametrize("seed", range(NUM_SEEDS))
def test_a_run_that_is_killed_twice_ends_in_the_same_bits(
    trainers: Ranks, calm: Callable[[int], Run], digits: Path, tmp_path: Path, seed: int
) -> None:
    run, draw = Run(digits, tmp_path / "run", SAVE_OFTEN), random.Random(seed)
    for _ in range(2):
        _kill_at_some_moment(trainers, run, draw)
    assert newest_complete(run.folder / "checkpoints")[1] == []  # nothing is there that is damaged
    finish(trainers, run, SIZE)
    assert_same_end(run, calm(SIZE))
    assert not list((run.folder / "checkpoints").glob(f"{PARTIAL}*"))


# quick_24 in small: its loss, average, decay and schedule, and sizes that grow from 16 to 32 pixels at two borders.
QUICK = (
    *("--amp", "none"),
    *("--epochs", "3"),
    *("--data.fraction", "0.2"),
    *("--optim.schedule-epochs", "3.6"),
    *("--transform.size", "32"),
    *("--transform.first-size", "16"),
    *("--transform.size-step", "8"),
    *("--transform.grow", "0", "2"),
    *("--ema-every", "3"),
    *("--ema-half-life", "300"),
    *("--run.log-every", "48"),
)


@pytest.mark.parametrize("seed", range(NUM_SEEDS))
def test_a_run_of_quick_that_is_killed_twice_ends_in_the_same_bits(
    trainers: Ranks, digits: Path, tmp_path: Path, seed: int
) -> None:
    run, left_alone = (
        Run(digits, tmp_path / name, (*SAVE_OFTEN, *QUICK), recipe="quick_24") for name in ("killed", "alone")
    )
    finish(trainers, left_alone, SIZE)
    draw = random.Random(seed)
    for _ in range(2):
        _kill_at_some_moment(trainers, run, draw)
    finish(trainers, run, SIZE)
    assert_same_end(run, left_alone)
    recipe = read_meta(run.checkpoints[-1])["recipe"]
    assert (recipe["loss"], recipe["ema_every"], recipe["optim"]["decoupled"]) == ("bce", 3, True)


def _kill_and_compare(trainers: Ranks, digits: Path, tmp_path: Path, flags: tuple[str, ...], seed: int) -> Run:
    """Return a run that was killed and resumed, and whose end is that of a run that was left alone."""
    run, left_alone = (Run(digits, tmp_path / name, (*SAVE_OFTEN, *flags)) for name in ("killed", "alone"))
    finish(trainers, left_alone, SIZE)
    _kill_at_some_moment(trainers, run, random.Random(seed))
    assert run.checkpoints
    finish(trainers, run, SIZE)
    assert_same_end(run, left_alone)
    return run


def test_a_run_with_blur_that_is_killed_ends_in_the_same_bits(trainers: Ranks, digits: Path, tmp_path: Path) -> None:
    run = _kill_and_compare(trainers, digits, tmp_path, ("--model.blur-first",), seed=3)
    # The kernels are as they were, in the model and in its average.
    for name in ("model.safetensors", "ema.safetensors"):
        kernels = [
            tensor for key, tensor in load_file(run.checkpoints[-1] / name).items() if key.endswith("blur_kernel")
        ]
        expected_33 = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16
        assert len(kernels) == 3 and all(torch.equal(each, expected_33.expand_as(each)) for each in kernels)


@pytest.mark.skipif(not os.environ.get("PENSTOCK_SOAK_OPTIMIZERS"), reason="a soak: PENSTOCK_SOAK_OPTIMIZERS=1")
def test_a_run_with_adamw_that_is_killed_ends_in_the_same_bits(trainers: Ranks, digits: Path, tmp_path: Path) -> None:
    flags = ("--optim.name", "adamw", "--optim.lr", "0.004", "--optim.betas", "0.9", "0.95")
    _kill_and_compare(trainers, digits, tmp_path, flags, seed=7)
