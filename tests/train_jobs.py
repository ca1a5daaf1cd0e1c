"""What ranks do in tests of training, beside the command itself: see `ranks.py`."""

import errno
import fcntl
import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import torch
from conftest import CHECKOUT
from rank_jobs import JOBS, run_script, take_place

from loaders import Batch, Split, World, select
from train import fit as trainer
from train import run_lock
from train.arguments import parse_command
from train.augment import Augment
from train.dist import join_world
from train.mix import Mix
from train.step import Step, Sums


def fit_interrupted(rank: int, size: int, group: Path, *, arguments: list[str], port: int, moment: str) -> None:
    """Train as train/main.py does; SIGTERM comes to the last rank when `fit` calls a function for the first time."""
    take_place(rank, size, port)
    call = getattr(trainer, moment)

    def interrupt(*values: Any) -> Any:
        setattr(trainer, moment, call)
        signal.raise_signal(signal.SIGTERM)
        return call(*values)

    if rank == size - 1:
        setattr(trainer, moment, interrupt)
    with join_world("cpu") as world:
        assert not trainer.fit(parse_command(arguments).recipe, world)


def fit_recorded(rank: int, size: int, group: Path, *, arguments: list[str], port: int) -> None:
    """Train as train/main.py does, and log the images of each batch that was trained on."""
    take_place(rank, size, port)
    recipe = parse_command(arguments).recipe
    split, step = select(Split(recipe.data.root, recipe.data.train), recipe.data.fraction), Step.__call__
    with join_world("cpu") as world, open(group / f"log-{rank}", "ab", buffering=0) as log:

        def record(self: Step, batch: Batch, sums: Sums) -> None:
            step(self, batch, sums)
            log.write(json.dumps({"position": batch.position, "images": split.keys(batch.rows_B)}).encode() + b"\n")

        Step.__call__ = record
        assert trainer.fit(recipe, world)


def fit_poisoned(rank: int, size: int, group: Path, *, arguments: list[str], port: int, first_bad: int) -> None:
    """Train as train/main.py does, on images that are not finite from a position in the stream on."""
    take_place(rank, size, port)
    augment = Augment.__call__

    def poison(self: Augment, images_BCHW: torch.Tensor, position: int) -> tuple[torch.Tensor, Mix]:
        augmented_BCHW, mix = augment(self, images_BCHW, position)
        return augmented_BCHW * (float("nan") if position >= first_bad else 1), mix

    Augment.__call__ = poison
    with join_world("cpu") as world:
        trainer.fit(parse_command(arguments).recipe, world)


def fit_killed(rank: int, size: int, group: Path, *, arguments: list[str], port: int) -> None:
    """Train as train/main.py does, up to the first save: killed by SIGKILL there."""
    take_place(rank, size, port)

    def die(*values: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    trainer.gather_facts = die
    with join_world("cpu") as world:
        trainer.fit(parse_command(arguments).recipe, world)


def evaluate_newest(rank: int, size: int, group: Path, *, arguments: list[list[str]], port: int) -> None:
    """Run train/evaluate.py, with other arguments on each rank."""
    run_script(rank, size, group, script=str(CHECKOUT / "train/evaluate.py"), arguments=arguments[rank], port=port)


def hold_folder(rank: int, size: int, group: Path, *, run_dir: str, flock: str, host: str | None) -> None:
    """Hold a run folder, each rank for itself, until this process is killed.

    Args:
        flock: kernel for the real one, none for one that locks nothing, or the name of the error that it fails with.
        host: another name of this machine.
    """
    change_machine(flock, host)
    run_lock.BEAT_SECONDS = 0.1
    if size == 1:  # no other one that starts in the same moment
        run_lock.RACE_SECONDS = 0.0
    with run_lock.RunLock(Path(run_dir), World()) as lock:
        lock.confirm()
        (group / f"held-{rank}").touch()
        signal.pause()


def change_machine(flock: str, host: str | None) -> None:
    """Make this process see another file system and another name of its machine; see `hold_folder`."""

    def fail(descriptor: int, operation: int) -> None:
        if flock != "none":
            raise OSError(getattr(errno, flock), os.strerror(getattr(errno, flock)))

    if flock != "kernel":
        fcntl.flock = fail
    if host is not None:
        socket.gethostname = lambda: host


JOBS.update({"fit-interrupted": fit_interrupted, "fit-recorded": fit_recorded, "fit-poisoned": fit_poisoned})
JOBS.update({"fit-killed": fit_killed, "hold-folder": hold_folder, "evaluate-newest": evaluate_newest})
