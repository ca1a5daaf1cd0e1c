"""Decide where a run starts: at its newest checkpoint, from given weights, or from random weights.

Rank 0 decides (`find_start`). `train/origin.py` finds the weights from elsewhere.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prep.curves import METRICS
from prep.errors import InputError
from prep.json_lines import read_json_lines
from train.checkpoint import newest_complete, read_meta
from train.config import CHECKPOINTS, RECIPE, Recipe, complete, first_difference
from train.optim import lr_factor, peak_lr
from train.origin import Origin, check_origin, find_origin


@dataclass(frozen=True)
class Start:
    """The decision about the start of a run."""

    checkpoint: Path | None = None  # this run's newest complete one
    clock: int = 0  # images seen, of that checkpoint
    owes_evaluation: bool = False  # the run left during the evaluation at this clock; repeat it from its first image
    warnings: tuple[str, ...] = ()
    epochs: "EpochsChange | None" = None
    from_weights: Origin | None = None  # weights to load, in a new run
    origin: dict[str, Any] | None = None  # where the run's first weights came from

    def to_dict(self) -> dict[str, Any]:
        """Return what the run's `starts.jsonl` records about this start; empty for a usual one."""
        epochs = {"epochs_changed": self.epochs.to_dict()} if self.epochs else {}
        return epochs | ({"origin": self.origin} if self.origin else {})


@dataclass(frozen=True)
class EpochsChange:
    """A run that is resumed with another number of epochs; each pair holds the old and the new value."""

    clock: int
    epochs: tuple[float, float]
    progress: tuple[float, float]  # share of the run that is done
    lr: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Return the change as JSON can hold it."""
        return {name: list(getattr(self, name)) for name in ("epochs", "progress", "lr")} | {"clock": self.clock}

    def __str__(self) -> str:
        (old, new), (before, after), (lr, new_lr) = self.epochs, self.progress, self.lr
        return (
            f"epochs {old:g} -> {new:g}: at image {self.clock:,} progress is {before:.1%} -> {after:.1%}, "
            f"learning rate {lr:.4g} -> {new_lr:.4g}"
        )


def find_start(recipe: Recipe, epoch_size: int) -> Start:
    """Decide where a run starts. Only rank 0 needs to call this, while it holds the run folder.

    Args:
        epoch_size: images per epoch.

    Raises:
        InputError: the folder holds another run, one that cannot be extended like this, or a damaged log; or the
            weights that the run is to start from do not exist.
    """
    # What the run folder holds.
    metrics = read_json_lines(recipe.run_dir / METRICS, "kind", "clock")
    checkpoint, damaged = newest_complete(recipe.run_dir / CHECKPOINTS)
    meta = read_meta(checkpoint) if checkpoint else {}
    clock = meta.get("clock", 0)

    # The recipe must be the same, except for the number of epochs.
    theirs = read_recipe(recipe.run_dir) or (complete(meta["recipe"]) if meta else None)
    if theirs and (field := first_difference({**recipe.to_dict(), "epochs": theirs["epochs"]}, theirs)):
        raise InputError(f"{recipe.run_dir} holds a run of another recipe, {field} differs: choose another --run.dir")
    change = change_epochs(recipe, theirs["epochs"], epoch_size, clock) if theirs else None

    # A new run, or a resumed one.
    warnings = (*damaged, *([metrics.skipped] if metrics.skipped else []))
    if checkpoint is None:
        return Start(warnings=warnings, epochs=change, from_weights=find_origin(recipe))
    check_origin(recipe, meta.get("origin"))
    return Start(checkpoint, clock, meta.get("owes_evaluation", False), warnings, change, origin=meta.get("origin"))


def read_recipe(run_dir: Path) -> dict[str, Any] | None:
    """Return the recipe with which a run folder's run was last started; None if there is none that can be read."""
    try:
        return complete(json.loads((run_dir / RECIPE).read_text()))
    except (OSError, ValueError):
        return None


def change_epochs(recipe: Recipe, old: float, epoch_size: int, clock: int) -> EpochsChange | None:
    """Return what changes if a run is resumed with another number of epochs; None if the number is the same.

    Raises:
        InputError: the run is finished, with its learning rate at its lowest; or it has already trained for longer than
            the new number of epochs.
    """
    if recipe.epochs == old:
        return None
    totals = [round(epochs * epoch_size) for epochs in (old, recipe.epochs)]
    optim = recipe.optim
    if clock >= totals[0] and optim.schedule_epochs is None:  # a longer schedule goes on
        raise InputError(
            f"{recipe.run_dir} is finished after {old:g} epochs, its learning rate at its lowest: to train on from its "
            f"weights start a new run, --run.from {recipe.run_dir} with another --run.dir"
        )
    if clock >= totals[1]:
        least = math.ceil((clock + 1) / epoch_size * 100) / 100
        raise InputError(
            f"{recipe.run_dir} has trained for {clock:,} images, and --epochs {recipe.epochs:g} are {totals[1]:,}: "
            f"give --epochs {least:g} or more"
        )
    progress = [clock / total for total in totals]
    peak, schedules = (
        peak_lr(optim, recipe.batch_size),
        [optim.schedule_epochs or each for each in (old, recipe.epochs)],
    )
    rates = [
        peak * lr_factor(clock / round(each * epoch_size), optim.warmup_epochs / each, optim.schedule)
        for each in schedules
    ]
    return EpochsChange(clock, (old, recipe.epochs), (progress[0], progress[1]), (rates[0], rates[1]))
