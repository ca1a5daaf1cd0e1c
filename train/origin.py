"""`--run.from PATH`: a new run that starts from the weights of another run, of a checkpoint or of an export.

The model takes its weights, the EMA its EMA; an export has one set of weights, for both. The clock starts at 0. All of
it is in the new run's own first checkpoint, so PATH is never needed again.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from prep.errors import InputError
from train.checkpoint import EMA, MODEL, OPTIMIZER, TrainState, read_meta
from train.config import Recipe
from train.restore import find_checkpoint

ARTIFACT = "artifact.json"  # what an export has beside its weights


@dataclass(frozen=True)
class Origin:
    """Where a run's first weights are from."""

    path: str  # a checkpoint's or an export's folder
    files: dict[str, str]  # SHA-256 by name
    clock: int  # images seen in their own training
    model: str  # timm's name
    classes_sha256: str | None  # of the names of their classes; None: not recorded
    asked: dict[str, Any]  # the flags, as `list_flags` gives them
    new_head: bool = False
    optimizer: str | None = None  # kind of the optimizer whose state is there

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)

    def __str__(self) -> str:
        head = "a new classifier" if self.new_head else "the classifier too"
        state = ", the optimizer's state" if self.asked["from_optimizer"] else ""
        return f"weights and EMA of {self.path}, image {self.clock:,} of its training; {head}{state}"


def check_paths(recipe: Recipe) -> None:
    """Raise InputError where a run would start from its own folder."""
    if recipe.run.start_from is None:
        return
    source, folder = recipe.run.start_from.resolve(), recipe.run_dir.resolve()
    if source == folder or folder in source.parents:
        raise InputError(
            f"--run.from {recipe.run.start_from} lies in this run's own folder: leave it out to continue that run, or "
            "choose another --run.dir for a new one"
        )


def list_flags(recipe: Recipe) -> dict[str, Any]:
    """Return the flags that decide what a new run starts with."""
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
    """Find what `--run.from` names; None without it.

    Raises:
        InputError: there is neither a whole checkpoint nor an export.
    """
    path, flags = recipe.run.start_from, list_flags(recipe)
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
        raise InputError(f"{path} is not a whole export ({error}): export it again") from error


def load_origin(origin: Origin, recipe: Recipe, class_names: Sequence[str], state: TrainState) -> Origin:
    """Put the weights, and the optimizer's state where that is asked for, into the state of a new run.

    Returns:
        The origin, with what became of the classifier.

    Raises:
        InputError: they are of another model, other classes or another optimizer.
    """
    folder = Path(origin.path)
    names = (MODEL, EMA if EMA in origin.files else MODEL)
    try:
        weights = [load_file(folder / name) for name in names]
        optimizer = _read_optimizer(origin) if recipe.run.from_optimizer else None
    except (OSError, SafetensorError) as error:  # a run that is in progress deletes its older checkpoints
        raise InputError(
            f"{folder} can no longer be read ({error}): start again, or give another --run.from"
        ) from error
    head = find_head(state.model)
    check_body(origin, recipe, state.model, weights[0])
    origin = replace(origin, new_head=choose_head(origin, recipe, class_names, state.model, weights[0]))
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
    """Return how the names of a classifier's tensors begin; a model may have two of them (distillation)."""
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    found = config.get("classifier") or ()
    return tuple(f"{name}." for name in ([found] if isinstance(found, str) else found))


def check_body(origin: Origin, recipe: Recipe, model: nn.Module, theirs: dict[str, torch.Tensor]) -> None:
    """Check that the weights are of such a model, whatever its classes; raise InputError where they are not."""
    head = find_head(model)
    shapes, their_shapes = (
        {name: tensor.shape for name, tensor in tensors.items() if not name.startswith(head or ("\0",))}
        for tensors in (model.state_dict(), theirs)
    )
    names = [*shapes, *their_shapes]
    if field := next((name for name in names if shapes.get(name) != their_shapes.get(name)), None):
        is_same = origin.model == recipe.model.name
        raise InputError(
            f"{origin.path} holds weights of {origin.model}, which do not fit --model.name {recipe.model.name} "
            f"({field} differs): give {'the settings of its own recipe' if is_same else f'--model.name {origin.model}'}"
        )


def choose_head(
    origin: Origin, recipe: Recipe, class_names: Sequence[str], model: nn.Module, theirs: dict[str, torch.Tensor]
) -> bool:
    """Return whether the classifier starts anew.

    Raises:
        InputError: it was to be kept and cannot be; or nothing was said, and the classes are not the same.
    """
    head = find_head(model)
    if recipe.run.from_head == "new":
        if not head:
            raise InputError(f"timm does not say which layer of {recipe.model.name} is its classifier: keep the head")
        if recipe.run.from_optimizer:
            raise InputError("the optimizer's state is of the old classifier too: leave out --run.from-optimizer")
        return True
    ours = {name: tensor.shape for name, tensor in model.state_dict().items() if name.startswith(head or ("\0",))}
    new = "give --run.from-head new to start with a new classifier"
    fits = all(name in theirs and theirs[name].shape == shape for name, shape in ours.items())
    if not fits:
        count = next((f"{len(theirs[name]):,}" for name in ours if name in theirs), "other")
        raise InputError(
            f"{origin.path} tells {count} classes apart, and this run's data has {len(class_names):,}: {new}"
        )
    if recipe.run.from_head == "keep" or origin.classes_sha256 in (None, hash_classes(class_names)):
        return False
    raise InputError(
        f"{origin.path} was trained on {len(class_names):,} classes of other names: {new}, or --run.from-head keep if "
        "its classes are meant"
    )


def _read_optimizer(origin: Origin) -> dict[str, Any]:
    if origin.optimizer is None:
        raise InputError(
            f"{origin.path} is an export, which has no optimizer: leave out --run.from-optimizer or give a run folder"
        )
    return torch.load(Path(origin.path) / OPTIMIZER, weights_only=True, map_location="cpu")["optimizer"]


def _load_optimizer(saved: dict[str, Any], origin: Origin, recipe: Recipe, optimizer: torch.optim.Optimizer) -> None:
    """Take the state of each parameter, not the settings: these are the new recipe's."""
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
            "leave out --run.from-optimizer"
        )
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
