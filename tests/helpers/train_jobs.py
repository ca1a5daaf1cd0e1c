"""Jobs of ranks in tests of training, besides the command itself: see `ranks.py`."""

import errno
import fcntl
import importlib
import json
import os
import signal
import socket
import threading
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch

from helpers import rank_jobs
from helpers.commands import CHECKOUT
from helpers.rank_jobs import JOBS, run_script, take_place
from loaders import Batch, Split, World, select
from train import fit as trainer
from train import preemption, run_lock, transfer, watchdog
from train.arguments import parse_command
from train.batch_augment import BatchAugment, Mix
from train.dist import join_world
from train.metrics import Sums
from train.step import Step

STEPS_BEFORE_HOLD = 6  # of about 24: after two logs, and long before the end


def fit_interrupted(rank: int, size: int, group: Path, *, arguments: list[str], port: int, moment: str) -> None:
    """Train as train/main.py does; SIGTERM comes to the last rank when `fit` calls a function for the first time."""
    take_place(rank, size, port)
    call = getattr(trainer, moment)

    def interrupt(*values: Any, **named: Any) -> Any:
        setattr(trainer, moment, call)
        signal.raise_signal(signal.SIGTERM)
        return call(*values, **named)

    if rank == size - 1:
        setattr(trainer, moment, interrupt)
    with join_world("cpu") as world:
        assert not trainer.fit(parse_command(arguments).recipe, world)


def script_held(rank: int, size: int, group: Path, *, script: str, arguments: list[str], port: int) -> None:
    """Run train/main.py, but wait after STEPS_BEFORE_HOLD steps until the test writes `group/go`."""
    step, taken = Step.__call__, count(1)

    def hold(self: Step, batch: Batch, sums: Sums) -> None:
        step(self, batch, sums)
        if next(taken) == STEPS_BEFORE_HOLD:
            (group / f"held-{rank}").touch()
            await_file(group / "go")

    Step.__call__ = hold
    run_script(rank, size, group, script=script, arguments=arguments, port=port)


def script_mirrored(
    rank: int, size: int, group: Path, *, held: bool, settings: dict[str, Any], **arguments: Any
) -> None:
    """Run train/main.py with a mirror.

    Args:
        held: wait after some steps, as `script_held` does.
        settings: environment variables, and constants of modules such as `train.mirror_upload.FINISH_SECONDS`.
    """
    apply_settings(settings)
    (script_held if held else run_script)(rank, size, group, **arguments)


def script_on_nodes(
    rank: int, size: int, group: Path, *, settings: dict[str, Any], nodes: str, **arguments: Any
) -> None:
    """Run train/main.py as if each rank had a machine of its own, with the working directory `nodes`/RANK."""
    apply_settings(settings)
    os.chdir(Path(nodes) / str(rank))
    take = rank_jobs.take_place

    def take_alone(rank: int, size: int, port: int) -> None:
        take(rank, size, port)
        os.environ.update(LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")

    rank_jobs.take_place = take_alone
    script_held(rank, size, group, **arguments)


def fit_rivals(rank: int, size: int, group: Path, *, settings: dict[str, Any], arguments: list[str], port: int) -> None:
    """Train one run on two machines with one mirror: the second one starts when the first has done some steps.

    The first one goes on when the second one has ended.
    """
    apply_settings(settings)
    take_place(0, 1, port)
    recipe = parse_command(arguments).recipe
    recipe = replace(recipe, run=replace(recipe.run, dir=recipe.run_dir / str(rank)))
    step, taken = Step.__call__, count(1)

    def hold(self: Step, batch: Batch, sums: Sums) -> None:
        step(self, batch, sums)
        if next(taken) == STEPS_BEFORE_HOLD:
            (group / "held").touch()
            await_file(group / "go")

    if rank == 0:
        Step.__call__ = hold
    else:
        await_file(group / "held")
    with join_world("cpu") as world:
        assert trainer.fit(recipe, world)
    (group / "go").touch()


def apply_settings(settings: dict[str, Any]) -> None:
    """Set environment variables, and constants of modules by their dotted names."""
    for name, value in settings.items():
        module, _, constant = name.rpartition(".")
        if module:
            setattr(importlib.import_module(module), constant, value)
        else:
            os.environ[name] = value


def await_file(path: Path) -> None:
    """Wait until a file exists."""
    while not path.exists():
        time.sleep(0.01)


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
    augment = BatchAugment.__call__

    def poison(self: BatchAugment, images_BCHW: torch.Tensor, position: int) -> tuple[torch.Tensor, Mix]:
        augmented_BCHW, mix = augment(self, images_BCHW, position)
        return augmented_BCHW * (float("nan") if position >= first_bad else 1), mix

    BatchAugment.__call__ = poison
    with join_world("cpu") as world:
        trainer.fit(parse_command(arguments).recipe, world)


def fit_blind(rank: int, size: int, group: Path, *, arguments: list[str], port: int) -> None:
    """Train as train/main.py does; only rank 0 can read files of weights."""
    take_place(rank, size, port)

    def fail(path: Path) -> Any:
        raise AssertionError(f"rank {rank} reads {path}")

    if rank > 0:
        transfer.read_weights = fail
    with join_world("cpu") as world:
        assert trainer.fit(parse_command(arguments).recipe, world)


def fit_advised(rank: int, size: int, group: Path, *, arguments: list[str], port: int) -> None:
    """Train as train/main.py does; the last rank hears at the start that EC2 recommends to leave the instance."""
    take_place(rank, size, port)

    def advise(self: preemption.SpotWatch) -> preemption.SpotWatch:
        self.notify(preemption.Reason.REBALANCE)
        return self

    if rank == size - 1:
        preemption.SpotWatch.__enter__ = advise
    with join_world("cpu") as world:
        assert trainer.fit(parse_command(arguments).recipe, world)


def fit_killed(rank: int, size: int, group: Path, *, arguments: list[str], port: int) -> None:
    """Train as train/main.py does, up to the first save: killed by SIGKILL there."""
    take_place(rank, size, port)

    def die(*values: Any, **named: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    trainer.gather_facts = die
    with join_world("cpu") as world:
        trainer.fit(parse_command(arguments).recipe, world)


def evaluate_newest(rank: int, size: int, group: Path, *, arguments: list[list[str]], port: int) -> None:
    """Run train/evaluate.py, with other arguments on each rank."""
    run_script(rank, size, group, script=str(CHECKOUT / "train/evaluate.py"), arguments=arguments[rank], port=port)


class TickingEvent(threading.Event):
    """An event for which time passes when the test says so: `wait` returns when the number in `group/tick` grows.

    Each thread that waits writes down the tick that it has worked through, so that the test can wait for the threads.
    """

    group: ClassVar[Path]
    rank: ClassVar[int]

    @classmethod
    def read_tick(cls) -> int:
        """Return the number of ticks so far."""
        path = cls.group / "tick"
        return int(path.read_text() or 0) if path.exists() else 0  # it is empty for an instant while it is written

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for one tick, whatever the time."""
        assert timeout is not None
        waiting = self.group / f"waiting-{self.rank}-{threading.get_ident()}"
        tick = int(waiting.read_text()) + 1 if waiting.exists() else 0
        waiting.write_text(str(tick))
        while self.read_tick() <= tick and not self.is_set():
            time.sleep(0.005)
        return self.is_set()


def fit_ticking(rank: int, size: int, group: Path, *, arguments: list[str], port: int, pulse: float) -> None:
    """Train as train/main.py does, with a watchdog for which each tick of the test is `pulse` seconds."""
    take_place(rank, size, port)
    TickingEvent.group, TickingEvent.rank = group, rank
    clock = SimpleNamespace(monotonic=lambda: TickingEvent.read_tick() * pulse)
    threads = SimpleNamespace(Event=TickingEvent, Thread=threading.Thread)
    setattr(watchdog, "time", clock)  # noqa: B010  (pyright knows the modules that stand there)
    setattr(watchdog, "threading", threads)  # noqa: B010
    with join_world("cpu") as world:
        trainer.fit(parse_command(arguments).recipe, world)


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
JOBS.update({"fit-blind": fit_blind, "fit-ticking": fit_ticking, "script-held": script_held})
JOBS.update({"script-mirrored": script_mirrored, "script-on-nodes": script_on_nodes, "fit-rivals": fit_rivals})
JOBS.update({"fit-advised": fit_advised})
JOBS.update({"fit-killed": fit_killed, "hold-folder": hold_folder, "evaluate-newest": evaluate_newest})
