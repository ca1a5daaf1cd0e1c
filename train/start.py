"""Where a run starts: at its newest checkpoint, from the weights of another run, or from nothing. Rank 0 decides."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prep.errors import InputError
from prep.json_lines import read_json_lines
from train.checkpoint import newest_whole, read_meta
from train.config import Recipe, complete, first_difference
from train.optim import lr_factor, peak_lr
from train.origin import Origin, find_origin, list_flags
from train.run_folder import CHECKPOINTS, METRICS, RECIPE


@dataclass(frozen=True)
class Start:
    """What is decided about the start of a run."""

    checkpoint: Path | None = None  # the newest whole one of this run
    clock: int = 0  # images seen, of that checkpoint
    owes_evaluation: bool = False  # an interrupted run left before it had evaluated
    warnings: tuple[str, ...] = ()
    epochs: "EpochsChange | None" = None
    found: Origin | None = None  # what to load weights from, in a new run
    origin: dict[str, Any] | None = None  # where the run's first weights were from

    def to_dict(self) -> dict[str, Any]:
        """What a run's `starts.jsonl` says of it; nothing of a usual start."""
        epochs = {"epochs_changed": self.epochs.to_dict()} if self.epochs else {}
        return epochs | ({"origin": self.origin} if self.origin else {})


@dataclass(frozen=True)
class EpochsChange:
    """A run that goes on with another number of epochs; each pair holds what was and what is."""

    clock: int
    epochs: tuple[float, float]
    progress: tuple[float, float]  # share of the run that is done
    lr: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {name: list(getattr(self, name)) for name in ("epochs", "progress", "lr")} | {"clock": self.clock}

    def __str__(self) -> str:
        (old, new), (before, after), (lr, new_lr) = self.epochs, self.progress, self.lr
        return (
            f"epochs {old:g} -> {new:g}: at image {self.clock:,} progress is {before:.1%} -> {after:.1%}, "
            f"learning rate {lr:.4g} -> {new_lr:.4g}"
        )


def find_start(recipe: Recipe, epoch_size: int) -> Start:
    """Decide where a run starts. Only rank 0 needs to, while it holds the run folder.

    Raises:
        InputError: the folder holds another run, one that cannot be extended like this, or a damaged log; or what the
            run is to start from is not there.
    """
    metrics = read_json_lines(recipe.run_dir / METRICS, "kind", "clock")
    checkpoint, damaged = newest_whole(recipe.run_dir / CHECKPOINTS)
    meta = read_meta(checkpoint) if checkpoint else {}
    clock = meta.get("clock", 0)
    theirs = read_recipe(recipe.run_dir) or (complete(meta["recipe"]) if meta else None)
    if theirs and (field := first_difference({**recipe.to_dict(), "epochs": theirs["epochs"]}, theirs)):
        raise InputError(f"{recipe.run_dir} holds a run of another recipe, {field} differs: choose another --run.dir")
    change = change_epochs(recipe, theirs["epochs"], epoch_size, clock) if theirs else None
    warnings = (*damaged, *([metrics.skipped] if metrics.skipped else []))
    if checkpoint is None:
        found = find_origin(recipe)
        return Start(warnings=warnings, epochs=change, found=found)
    check_origin(recipe, meta.get("origin"))
    return Start(checkpoint, clock, meta.get("owes_evaluation", False), warnings, change, origin=meta.get("origin"))


def read_recipe(run_dir: Path) -> dict[str, Any] | None:
    """Return the recipe that a run folder's run was last started with; None where there is none that can be read."""
    try:
        return complete(json.loads((run_dir / RECIPE).read_text()))
    except (OSError, ValueError):
        return None


def change_epochs(recipe: Recipe, old: float, epoch_size: int, clock: int) -> EpochsChange | None:
    """Return what changes where a run is to go on with another number of epochs; None where it is the same.

    Raises:
        InputError: the run is finished, or has trained for longer than it now shall.
    """
    if recipe.epochs == old:
        return None
    totals = [round(epochs * epoch_size) for epochs in (old, recipe.epochs)]
    if clock >= totals[0]:
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
    peak, optim = peak_lr(recipe.optim, recipe.batch_size), recipe.optim
    rates = [
        peak * lr_factor(done, optim.warmup_epochs / epochs, optim.schedule)
        for done, epochs in zip(progress, (old, recipe.epochs), strict=True)
    ]
    return EpochsChange(clock, (old, recipe.epochs), (progress[0], progress[1]), (rates[0], rates[1]))


def check_origin(recipe: Recipe, origin: dict[str, Any] | None) -> None:
    """Raise InputError where `--run.from` is given to a run that did not start so; without the flag it just goes on."""
    if recipe.run.start_from is None:
        return
    if origin is None:
        raise InputError(
            f"{recipe.run_dir} holds a run that did not start from {recipe.run.start_from}: choose another --run.dir, "
            "or leave out --run.from to continue it"
        )
    asked = origin["asked"]
    if field := next((name for name, value in list_flags(recipe).items() if asked[name] != value), None):
        raise InputError(
            f"{recipe.run_dir} holds a run that started from {asked['start_from']}, {field} differs: choose another "
            "--run.dir, or leave out --run.from to continue it"
        )
