"""Decide where a run starts: at its newest checkpoint, from the weights of another run, or from random weights.

Rank 0 decides (`find_start`). The first part of this file is about resuming, the second part about `--run.from PATH`:
a new run that starts from the weights of another run, of a checkpoint or of an export. The model takes that run's
model, the EMA its EMA; an export has one set of weights, for both. The clock starts at 0. Everything is also in the
new run's own first checkpoint, so PATH is never needed again.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from prep.curves import METRICS
from prep.errors import InputError
from prep.json_lines import read_json_lines
from train.checkpoint import EMA, MODEL, OPTIMIZER, TrainState, find_checkpoint, newest_complete, read_meta
from train.config import CHECKPOINTS, RECIPE, Recipe, complete, first_difference
from train.optim import lr_factor, peak_lr

ARTIFACT = "artifact.json"  # a file that every export has


@dataclass(frozen=True)
class Start:
    """The decision about the start of a run."""

    checkpoint: Path | None = None  # this run's newest complete one
    clock: int = 0  # images seen, of that checkpoint
    owes_evaluation: bool = False  # the run left during the evaluation at this clock; repeat it from its first image
    warnings: tuple[str, ...] = ()
    epochs: "EpochsChange | None" = None
    from_weights: "Origin | None" = None  # weights to load, in a new run
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
        InputError: the run is finished, or has already trained for longer than the new number of epochs.
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
    """Check that a resumed run started as `--run.from` says; without the flag there is nothing to check.

    Raises:
        InputError: it started from random weights, or from others.
    """
    if recipe.run.start_from is None:
        return
    if origin is None:
        raise InputError(
            f"{recipe.run_dir} holds a run that did not start from {recipe.run.start_from}: choose another --run.dir, "
            "or remove --run.from to continue it"
        )
    asked = origin["asked"]
    if field := next((name for name, value in list_origin_flags(recipe).items() if asked[name] != value), None):
        raise InputError(
            f"{recipe.run_dir} holds a run that started from {asked['start_from']}, {field} differs: choose another "
            "--run.dir, or remove --run.from to continue it"
        )


# Weights of another run: --run.from.


@dataclass(frozen=True)
class Origin:
    """The source of a run's first weights."""

    path: str  # folder of a checkpoint or an export
    files: dict[str, str]  # SHA-256 by name
    clock: int  # images seen in their own training
    model: str  # timm's name
    classes_sha256: str | None  # of the names of their classes; None: not recorded
    asked: dict[str, Any]  # the flags, as `list_origin_flags` returns them
    new_head: bool = False
    optimizer: str | None = None  # the optimizer with a saved state in the folder

    def to_dict(self) -> dict[str, Any]:
        """Return the origin as JSON can hold it."""
        return asdict(self)

    def __str__(self) -> str:
        head = "a new classifier" if self.new_head else "the classifier too"
        state = ", the optimizer's state" if self.asked["from_optimizer"] else ""
        return f"weights and EMA of {self.path}, image {self.clock:,} of its training; {head}{state}"


def check_origin_path(recipe: Recipe) -> None:
    """Check that a run does not start from its own folder; raise InputError if it would."""
    if recipe.run.start_from is None:
        return
    source, folder = recipe.run.start_from.resolve(), recipe.run_dir.resolve()
    if source == folder or folder in source.parents:
        raise InputError(
            f"--run.from {recipe.run.start_from} is in this run's own folder: remove it to continue that run, or "
            "choose another --run.dir for a new one"
        )


def list_origin_flags(recipe: Recipe) -> dict[str, Any]:
    """Return the flags that decide which weights a new run starts from."""
    run = recipe.run
    return {
        "start_from": run.start_from and str(run.start_from.resolve()),
        "from_optimizer": run.from_optimizer,
        "from_head": run.from_head,
    }


def hash_classes(names: Sequence[str]) -> str:
    """Return a digest of class names, in the order of their labels."""
    return hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()


def find_origin(recipe: Recipe) -> Origin | None:
    """Find what `--run.from` names; return None without the flag.

    Raises:
        InputError: the path holds neither a complete checkpoint nor an export.
    """
    path, flags = recipe.run.start_from, list_origin_flags(recipe)
    if path is None:
        return None
    if (path / ARTIFACT).is_file():
        return _read_export(path, flags)
    checkpoint = find_checkpoint(path)
    meta = read_meta(checkpoint)
    theirs = meta["recipe"]
    return Origin(
        path=str(checkpoint.resolve()),
        files=meta["files"],
        clock=meta["clock"],
        model=theirs["model"]["name"],
        classes_sha256=meta.get("classes_sha256"),
        asked=flags,
        optimizer=theirs["optim"].get("name", "sgd"),
    )


def _read_export(path: Path, flags: dict[str, Any]) -> Origin:
    try:
        about = json.loads((path / ARTIFACT).read_text())
        digest = hashlib.sha256((path / MODEL).read_bytes()).hexdigest()
        if digest != about["weights_sha256"]:
            raise ValueError(f"{MODEL} has changed")
        classes = hash_classes(about["class_names"]) if about["class_names"] else None
        return Origin(str(path.resolve()), {MODEL: digest}, about["images_seen"], about["architecture"], classes, flags)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is not a complete export ({error}): export it again") from error


def load_origin(origin: Origin, recipe: Recipe, class_names: Sequence[str], state: TrainState) -> Origin:
    """Load the weights, and if asked for the optimizer's state, into the state of a new run.

    Returns:
        The origin, which now records whether the classifier is new.

    Raises:
        InputError: they belong to another model, other classes or another optimizer.
    """
    # Read the files.
    folder = Path(origin.path)
    names = (MODEL, EMA if EMA in origin.files else MODEL)
    try:
        weights = [load_file(folder / name) for name in names]
        optimizer = _read_optimizer(origin) if recipe.run.from_optimizer else None
    except (OSError, SafetensorError) as error:  # a run in progress deletes its older checkpoints
        raise InputError(
            f"{folder} can no longer be read ({error}): start again, or give another --run.from"
        ) from error

    # Check that they fit, and decide about the classifier.
    head = find_head(state.model)
    check_body(origin, recipe, state.model, weights[0])
    origin = replace(origin, new_head=needs_new_head(origin, recipe, class_names, state.model, weights[0]))

    # Load them; a new classifier keeps its random weights.
    for module, theirs in zip((state.model, state.ema), weights, strict=True):
        tensors = theirs
        if origin.new_head:
            own = {name: tensor for name, tensor in module.state_dict().items() if name.startswith(head)}
            tensors = {name: tensor for name, tensor in theirs.items() if not name.startswith(head)} | own
        module.load_state_dict(tensors, strict=True)
    if optimizer is not None:
        _load_optimizer(optimizer, origin, recipe, state.optimizer)
    return origin


def find_head(model: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of the names of a classifier's tensors; a model may have two classifiers (distillation)."""
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    found = config.get("classifier") or ()
    return tuple(f"{name}." for name in ([found] if isinstance(found, str) else found))


def check_body(origin: Origin, recipe: Recipe, model: nn.Module, theirs: dict[str, torch.Tensor]) -> None:
    """Check that the weights are of this model, whatever its classes; raise InputError if they are not."""
    head = find_head(model)
    shapes, their_shapes = (
        {name: tensor.shape for name, tensor in tensors.items() if not name.startswith(head or ("\0",))}
        for tensors in (model.state_dict(), theirs)
    )
    names = [*shapes, *their_shapes]
    if field := next((name for name in names if shapes.get(name) != their_shapes.get(name)), None):
        is_same = origin.model == recipe.model.name
        remedy = "the settings of its own recipe" if is_same else f"--model.name {origin.model}"
        raise InputError(
            f"{origin.path} holds weights of {origin.model}, which do not fit --model.name {recipe.model.name} "
            f"({field} differs): give {remedy}"
        )


def needs_new_head(
    origin: Origin, recipe: Recipe, class_names: Sequence[str], model: nn.Module, theirs: dict[str, torch.Tensor]
) -> bool:
    """Return True if the classifier starts with new weights.

    Raises:
        InputError: it is to be kept and cannot be; or the flags do not say, and the classes are not the same.
    """
    head = find_head(model)
    if recipe.run.from_head == "new":
        if not head:
            raise InputError(f"timm does not say which layer of {recipe.model.name} is its classifier: keep the head")
        if recipe.run.from_optimizer:
            raise InputError(
                "the optimizer's state is of the old classifier too: remove --run.from-optimizer to start a new one"
            )
        return True

    # The number of classes.
    ours = {name: tensor.shape for name, tensor in model.state_dict().items() if name.startswith(head or ("\0",))}
    new = "give --run.from-head new to start with a new classifier"
    fits = all(name in theirs and theirs[name].shape == shape for name, shape in ours.items())
    if not fits:
        count = next((f"{len(theirs[name]):,}" for name in ours if name in theirs), "other")
        raise InputError(f"{origin.path} has {count} classes, and this run's data has {len(class_names):,}: {new}")

    # Their names.
    if recipe.run.from_head == "keep" or origin.classes_sha256 in (None, hash_classes(class_names)):
        return False
    raise InputError(
        f"{origin.path} was trained on {len(class_names):,} classes of other names: {new}, or --run.from-head keep if "
        "its classes are meant"
    )


def _read_optimizer(origin: Origin) -> dict[str, Any]:
    if origin.optimizer is None:
        raise InputError(
            f"{origin.path} is an export, which has no optimizer: remove --run.from-optimizer or give a run folder"
        )
    return torch.load(Path(origin.path) / OPTIMIZER, weights_only=True, map_location="cpu")["optimizer"]


def _load_optimizer(saved: dict[str, Any], origin: Origin, recipe: Recipe, optimizer: torch.optim.Optimizer) -> None:
    """Load the state of each parameter, but not the settings: the new recipe's apply."""
    kind = asdict(recipe.optim).get("name", "sgd")
    groups = optimizer.state_dict()["param_groups"]
    parameters = [group["params"] for group in groups]
    if (
        kind != origin.optimizer
        or parameters != [group["params"] for group in saved["param_groups"]]
        or set(saved["state"]) != {index for each in parameters for index in each}
    ):
        raise InputError(
            f"the optimizer's state in {origin.path} ({origin.optimizer}) does not fit this run's ({kind}): "
            "remove --run.from-optimizer"
        )
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
