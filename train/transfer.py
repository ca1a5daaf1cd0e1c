"""Load weights from elsewhere into a new run: read them, check that they fit, decide about the classifier.

For rank 0 (`load_origin`); the other ranks read no file, they receive the tensors (`share_state`). Nothing is adapted
without a phrase in the line that the run prints.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from loaders import World
from prep.blur import BLUR_KERNEL, is_blurred
from prep.errors import InputError, list_some
from prep.weight_files import read_content
from prep.weights import (
    Weights,
    check_finite,
    describe_misfit,
    describe_network,
    find_weights,
    guess_weights,
    read_weights,
)
from train.checkpoint import EMA, MODEL, OPTIMIZER, TrainState
from train.config import Recipe
from train.dist import broadcast_from_rank0, broadcast_tensors
from train.freeze import find_head
from train.model import size_options
from train.origin import Origin, hash_classes
from train.pretrained import convert_file, convert_published, describe_conversion

IMAGENET_CLASSES = 1000


def load_origin(origin: Origin, recipe: Recipe, class_names: Sequence[str], state: TrainState) -> Origin:
    """Load the weights, and if asked for the optimizer's state, into the state of a new run. For rank 0.

    Returns:
        The origin, which now records whether the classifier is new, and what was changed or assumed.

    Raises:
        InputError: they belong to another model, other classes or another optimizer.
    """
    # Read the files, and check that they fit.
    weights, optimizer, found = _read_files(origin, recipe, state.model)
    origin = replace(origin, notes=(*origin.notes, *found))
    if origin.continues:
        check_body(origin, recipe, state.model, weights[0])
    else:
        adapted, notes = adapt_weights(origin, recipe, state.model, weights[0])
        weights, origin = [adapted, adapted], replace(origin, notes=(*origin.notes, *notes))
    for each in weights:
        check_finite(each, origin.path)

    # Decide about the classifier.
    is_new, note = decide_head(origin, recipe, class_names, state.model, weights[0])
    notes = (*([note] if note else []), *origin.notes, *compare_normalization(origin, recipe))
    origin = replace(origin, new_head=is_new, notes=notes)

    # Load them. What they do not have keeps its first value: a new classifier, BatchNorm's counters, kernels of blurs.
    head = find_head(state.model) if is_new else ()
    for module, theirs in zip((state.model, state.ema), weights, strict=True):
        module.load_state_dict({**module.state_dict(), **take_body(theirs, head)}, strict=True)
    if optimizer is not None:
        load_optimizer(optimizer, origin, recipe, state.optimizer)
    return origin


def share_state(state: TrainState, with_optimizer: bool, world: World) -> None:
    """Copy rank 0's weights, EMA and, if asked for, optimizer to the other ranks, which have read no file."""
    for module in (state.model, state.ema):
        broadcast_tensors(module.state_dict().values(), world)
    if with_optimizer:
        # Sent as tensors of the CPU: those of a GPU would be rebuilt on the first GPU by every process.
        saved = state.optimizer.state_dict()
        on_cpu = {
            index: {name: each.cpu() if isinstance(each, torch.Tensor) else each for name, each in values.items()}
            for index, values in saved["state"].items()
        }
        state.optimizer.load_state_dict(broadcast_from_rank0({**saved, "state": on_cpu}, world))


def _read_files(
    origin: Origin, recipe: Recipe, model: nn.Module
) -> tuple[list[Weights], dict[str, Any] | None, tuple[str, ...]]:
    """Return the weights of the model and of the EMA, the optimizer's state if it was asked for, and phrases."""
    path = Path(origin.path)
    own, averaged = path / MODEL, path / (EMA if EMA in origin.files else MODEL)
    files = [path] if path.is_file() else [own, averaged] if origin.continues else [averaged]
    try:
        if missing := next((each for each in files if not each.exists()), None):
            raise FileNotFoundError(f"{missing.name} is gone")
        optimizer = _read_optimizer(origin) if recipe.run.from_optimizer else None
        if path.is_file():
            weights, notes = find_foreign(path, model)
            return [weights], optimizer, notes
        return [read_weights(each) for each in files], optimizer, ()
    except OSError as error:  # a run in progress deletes its older checkpoints
        flag = "--run.from" if origin.continues else "--model.init"
        raise InputError(f"{path} can no longer be read ({error}): start again, or give another {flag}") from error


def find_foreign(path: Path, model: nn.Module) -> tuple[Weights, tuple[str, ...]]:
    """Return the weights in any trainer's file that fit a model, whatever their classes, and phrases about the choice.

    If none fit as they are, the most likely ones are returned: timm may know how to convert them.

    Raises:
        InputError: it is not a file of weights, or different ones in it fit equally.
    """
    content, own = read_content(path), model.state_dict()
    head = find_head(model)
    optional = [name for name in own if name.startswith(head) or name.endswith(BLUR_KERNEL)]
    network = describe_network(own, [name.rstrip(".") for name in head], optional)
    found = find_weights(content, network, path)
    if found is None:
        return guess_weights(content, path), ()
    left = (f"{list_some(found.others)} of the file left out",) if found.others else ()
    return found.weights, (*found.notes, *left)


def take_body(tensors: Weights, head: tuple[str, ...]) -> Weights:
    """Return the tensors without the classifier's."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(head)}


def describe_body_misfit(own: Weights, theirs: Weights, head: tuple[str, ...]) -> str:
    """Return what does not fit, whatever the classes; empty if all fits. Kernels of blurs may be missing."""
    needed = {name: tensor for name, tensor in own.items() if name in theirs or not name.endswith(BLUR_KERNEL)}
    return describe_misfit(take_body(needed, head), take_body(theirs, head))


def check_body(origin: Origin, recipe: Recipe, model: nn.Module, theirs: Weights) -> None:
    """Check that the weights of another run are of this model, whatever its classes; raise InputError if not."""
    head = find_head(model)
    shapes, their_shapes = (
        {name: tensor.shape for name, tensor in take_body(tensors, head).items()}
        for tensors in (model.state_dict(), theirs)
    )
    names = [*shapes, *their_shapes]
    if field := next((name for name in names if shapes.get(name) != their_shapes.get(name)), None):
        remedy, blurs = "the settings of its own recipe", is_blurred(theirs)
        if origin.model != recipe.model.name:
            remedy = f"--model.name {origin.model}"
        elif blurs != recipe.model.blur_first:
            remedy = "--model.blur-first" if blurs else "--model.no-blur-first"
        raise InputError(
            f"{origin.path} holds weights of {origin.model}{' with blur' if blurs else ''}, which do not fit "
            f"--model.name {recipe.model.name} ({field} differs): give {remedy}"
        )


def adapt_weights(origin: Origin, recipe: Recipe, model: nn.Module, theirs: Weights) -> tuple[Weights, tuple[str, ...]]:
    """Return weights from elsewhere under this model's names and in its shapes, and a phrase for each change.

    They are returned as they are if they fit. Otherwise, and always for published weights, timm converts them: names
    of other sources, position embeddings of another resolution. The classifier may be of other classes.

    Raises:
        InputError: they do not fit this model, also after the conversion.
    """
    own, head = model.state_dict(), find_head(model)
    converted, notes = theirs, ()
    misfit = describe_body_misfit(own, theirs, head)
    if recipe.model.pretrained or misfit:
        try:
            converted = _convert(origin, recipe, theirs, head)
            notes = describe_conversion(theirs, converted)
            misfit = describe_body_misfit(own, converted, head)
        except Exception as error:  # networks raise all kinds of errors
            misfit = misfit or " ".join(str(error).split())[:200]
    if misfit:
        of = f"weights of {origin.model}, which do" if origin.model else "weights that do"
        settings = "--model.blur-first" if is_blurred(theirs) and not recipe.model.blur_first else "the settings"
        raise InputError(
            f"{origin.path} holds {of} not fit --model.name {recipe.model.name} ({misfit}): give the --model.name and "
            f"{settings} of these weights; torchvision's names are timm's in ResNet and few other networks"
        )

    # Other differences that loading would hide.
    if any(name.endswith(BLUR_KERNEL) and name not in converted for name in own):
        notes = (*notes, "trained without blur")
    if any(tensor.is_floating_point() and tensor.dtype != torch.float32 for tensor in converted.values()):
        notes = (*notes, "converted to 32 bits")
    return {name: tensor for name, tensor in converted.items() if name in own}, notes


def _convert(origin: Origin, recipe: Recipe, theirs: Weights, head: tuple[str, ...]) -> Weights:
    """Let timm convert weights to this model's names and shapes; raise any exception if it cannot."""
    name, options = recipe.model.name, size_options(recipe.model, recipe.image_sizes())
    if recipe.model.pretrained:
        return convert_published(name, (origin.model or "").partition(".")[2], options, theirs)
    # Under another name, the classifier is one of ImageNet's classes; or there is none.
    biases = [tensor for each, tensor in theirs.items() if each.startswith(head) and tensor.ndim == 1]
    if biases:
        return convert_file(name, len(biases[0]), options, theirs)
    try:
        return convert_file(name, IMAGENET_CLASSES, options, theirs)
    except Exception:  # networks raise all kinds of errors
        return convert_file(name, 0, options, theirs)


def decide_head(
    origin: Origin, recipe: Recipe, class_names: Sequence[str], model: nn.Module, theirs: Weights
) -> tuple[bool, str]:
    """Return True if the classifier starts with new weights, and the reason if it is worth a note.

    Raises:
        InputError: it is to be kept and cannot be; or the flags do not say, and the classes are not the same.
    """
    head, asked = find_head(model), recipe.run.from_head
    if asked == "new":
        if not head:
            raise InputError(f"timm does not say which layer of {recipe.model.name} is its classifier: keep the head")
        if recipe.run.from_optimizer:
            raise InputError(
                "the optimizer's state is of the old classifier too: remove --run.from-optimizer to start a new one"
            )
        return True, ""

    # The number of classes. Another one needs a new classifier: `--run.from` must be told so.
    ours = {name: tensor.shape for name, tensor in model.state_dict().items() if name.startswith(head)}
    new = "give --run.from-head new to start with a new classifier"
    if not all(name in theirs and theirs[name].shape == shape for name, shape in ours.items()):
        count = next((f"{len(theirs[name]):,}" for name in ours if name in theirs), "other")
        if origin.continues or asked == "keep":
            raise InputError(f"{origin.path} has {count} classes, and this run's data has {len(class_names):,}: {new}")
        return True, f"{count} classes there, {len(class_names):,} here".replace("other classes", "no classifier")

    # Their names.
    if asked == "keep" or origin.classes_sha256 == hash_classes(class_names):
        return False, ""
    if origin.classes_sha256 is None:
        note = f"it has {len(class_names):,} classes as this run has, whose names are not recorded"
        return False, "" if origin.continues else note
    raise InputError(
        f"{origin.path} was trained on {len(class_names):,} classes of other names: {new}, or --run.from-head keep if "
        "its classes are meant"
    )


def compare_normalization(origin: Origin, recipe: Recipe) -> tuple[str, ...]:
    """Return a phrase if the weights were trained on images that were normalized in another way."""
    if origin.normalization in (None, (recipe.model.mean, recipe.model.std)):
        return ()
    mean, std = (" ".join(f"{value:g}" for value in values) for values in origin.normalization or ())
    return (f"trained on images normalized with --model.mean {mean} --model.std {std}, unlike here",)


def _read_optimizer(origin: Origin) -> dict[str, Any]:
    if origin.optimizer is None:
        raise InputError(
            f"{origin.path} is an export, which has no optimizer: remove --run.from-optimizer or give a run folder"
        )
    return torch.load(Path(origin.path) / OPTIMIZER, weights_only=True, map_location="cpu")["optimizer"]


def find_shape(state: dict[str, Any]) -> torch.Size | None:
    """Return the shape of a parameter's state, such as its momentum; None if it has only single numbers."""
    found = [each.shape for each in state.values() if isinstance(each, torch.Tensor) and each.ndim]
    return max(found, key=lambda shape: shape.numel(), default=None)


def load_optimizer(saved: dict[str, Any], origin: Origin, recipe: Recipe, optimizer: torch.optim.Optimizer) -> None:
    """Load the state of each parameter, but not the settings: the new recipe's apply."""
    kind = recipe.optim.name
    groups = optimizer.state_dict()["param_groups"]
    parameters = [group["params"] for group in groups]
    # Shapes, because other frozen parts can leave the same number of parameters.
    indices = [index for each in parameters for index in each]
    shapes = [each.shape for group in optimizer.param_groups for each in group["params"]]
    if (
        kind != origin.optimizer
        or parameters != [group["params"] for group in saved["param_groups"]]
        or set(saved["state"]) != set(indices)
        or any(
            find_shape(saved["state"][index]) not in (None, shape) for index, shape in zip(indices, shapes, strict=True)
        )
    ):
        raise InputError(
            f"the optimizer's state in {origin.path} ({origin.optimizer}) does not fit this run's ({kind}): "
            "remove --run.from-optimizer"
        )
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
