"""What a loader refuses before it reads anything: data, transforms and orders that cannot work, each in one line."""

import difflib
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, get_args

import numpy as np

from loaders.augment import MOST, OPS, AugmentConfig
from loaders.config import LoaderConfig
from loaders.order import OrderKind, Sampling
from loaders.plan import SIZE_STEP, EvalTransform, TrainTransform, sizes
from prep.dataset import Split
from prep.errors import InputError

STATE = ("dataset", "seed", "order", "position", "damaged")  # what a loader's state holds, besides later additions
MOST_IMAGES = 1 << 53  # seen in a run: far beyond any, and what JSON keeps exactly
MOST_SIZES = 5  # resolutions of a run: torch.compile recompiles for each, and gives up at its eighth


def check_request(split: Split, transform: TrainTransform | EvalTransform, sampling: Sampling) -> None:
    """Raises InputError for what cannot work."""
    if not isinstance(transform, TrainTransform | EvalTransform):
        raise InputError(
            f"transform must be a TrainTransform or an EvalTransform, got {_name_kind(transform)}: these say what the "
            "decoder does; apply torchvision's transforms to the batches, with dtype='uint8'"
        )
    if not len(split):
        raise InputError(f"{split.folder} holds no images: choose other data")
    if sampling.seed < 0:
        raise InputError(f"seed {sampling.seed} is negative: take 0 or more")
    if sampling.order not in get_args(OrderKind):
        raise InputError(f"there is no order {sampling.order}: choose from {', '.join(get_args(OrderKind))}")
    if sampling.repeats < 1:
        raise InputError(f"repeats {sampling.repeats} is too few: take 1 or more")
    _check_sizes(transform)
    if isinstance(transform, TrainTransform):
        _check_crops(transform)
        _check_growth(transform)
        _check_augment(transform.augment)
    elif transform.resize < transform.size:
        raise InputError(f"cannot crop {transform.size} pixels from a short side of {transform.resize}: resize to more")


def _name_kind(value: object) -> str:
    return f"the class {value.__name__} itself" if isinstance(value, type) else f"a {type(value).__name__}"


def _check_sizes(transform: TrainTransform | EvalTransform) -> None:
    for name in ("size", "resize"):
        pixels = getattr(transform, name, 1)
        if not is_kind(pixels, 1) or pixels < 1:
            raise InputError(f"{name} must be a whole number of at least 1 pixel, got {pixels!r}")


def _check_crops(transform: TrainTransform) -> None:
    if not _is_range(transform.scale, most=1):
        raise InputError(f"scale must be two shares of an image's area, the smaller one first, got {transform.scale}")
    if not _is_range(transform.ratio):
        raise InputError(f"ratio must be two ratios of width to height, the smaller one first, got {transform.ratio}")
    if not isinstance(transform.hflip, Real) or not 0 <= transform.hflip <= 1:
        raise InputError(f"hflip must be a probability of 0 to 1, got {transform.hflip!r}")


def _is_range(pair: object, most: float = math.inf) -> bool:
    """Whether this is two numbers above 0, the second one not smaller than the first and not above `most`."""
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(each, Real) for each in pair):
        return False
    low, high = pair
    return 0 < low <= high <= most and low < math.inf


def _check_growth(transform: TrainTransform) -> None:
    if transform.first_size is None:
        return
    start, end = transform.grow
    if not 0 <= start < end:
        raise InputError(f"resolution cannot grow between the epochs {transform.grow}: give a first and a later one")
    for size in (transform.first_size, transform.size):
        if size < 1 or size % SIZE_STEP:
            nearest = max(1, round(size / SIZE_STEP)) * SIZE_STEP
            raise InputError(f"a resolution that grows cannot be {size}: take a multiple of {SIZE_STEP}, as {nearest}")
    if len(found := sizes(transform, end + 1)) > MOST_SIZES:
        named, step = ", ".join(map(str, found)), (MOST_SIZES - 1) * SIZE_STEP
        nearer = transform.size + (step if transform.first_size > transform.size else -step)
        raise InputError(
            f"resolution goes through {len(found)} sizes ({named}), more than {MOST_SIZES}: take first_size {nearer}"
        )


def _check_augment(augment: AugmentConfig) -> None:
    if not isinstance(augment, AugmentConfig):
        raise InputError(f"augment must be an AugmentConfig, got {augment!r}: for example AugmentConfig('rand')")
    if augment.kind not in OPS:
        raise InputError(f"there is no augment {augment.kind}: choose from {', '.join(OPS)}")
    if augment.num_ops < 1:
        raise InputError(f"num_ops {augment.num_ops} is too few: take 1 or more, or augment none")
    if not 0 <= augment.magnitude <= MOST:
        raise InputError(f"magnitude {augment.magnitude} is out of range: take 0 to {MOST:g}")
    if not 0 <= augment.std < math.inf:
        raise InputError(f"std {augment.std} is out of range: take 0 or more")
    if not 0 <= augment.probability <= 1:
        raise InputError(f"probability {augment.probability} is out of range: take 0 to 1")


def check_state(state: object) -> None:
    """Raises InputError for what is not the state of a loader, as `Loader.state_dict` gives it."""
    expected = "a loader's state must be what its state_dict() gave"
    if not isinstance(state, Mapping):
        raise InputError(f"{expected}, got {_name_kind(state)}: load the file first, with torch.load or json.load")
    if missing := [name for name in STATE if name not in state]:
        # Whole checkpoints hold it under some name.
        inner = [name for name, value in state.items() if isinstance(value, Mapping) and set(STATE) <= set(value)]
        advice = f"give its entry {inner[0]!r}" if inner else f"it has {', '.join(map(str, state)) or 'nothing'}"
        raise InputError(f"{expected}, and this has no {', '.join(missing)}: {advice}")
    if not is_kind(state["position"], 1) or not 0 <= state["position"] <= MOST_IMAGES:
        raise InputError(f"{expected}, and its position is {state['position']!r}: give one that was not changed")
    if not isinstance(state["damaged"], list) or not all(isinstance(key, str) for key in state["damaged"]):
        raise InputError(f"{expected}, and its damaged is {state['damaged']!r}: give one that was not changed")


def check_lowered(backend: str, lowered: Collection[int], augment: AugmentConfig) -> None:
    """Raises InputError where an operation may be drawn that a backend cannot execute."""
    if missing := [op.name.lower() for op in OPS[augment.kind] if op not in lowered]:
        raise InputError(
            f"the backend {backend} has no {', '.join(missing)} here: take another backend or augment none"
        )


def check_arguments(root: object, split: object, batch_size: object, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `build`, whole numbers as Python's own, which a saved state can hold.

    Raises:
        InputError: an argument is of a wrong kind, or there is no such option.
    """
    if not isinstance(root, str | os.PathLike) or not isinstance(split, str) or not split:
        raise InputError(f"root and split must be a folder and the name of a folder in it, got {root!r} and {split!r}")
    if Path(root).is_file():
        raise InputError(f"root must be the folder of a prepared dataset, and {root} is a file: give its folder")
    if not is_kind(batch_size, 1) or not isinstance(batch_size, Integral) or batch_size < 1:
        raise InputError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
    defaults = {field.name: field.default for kind in (Sampling, LoaderConfig) for field in fields(kind)}
    known = [*defaults, "device", "rank", "world_size"]
    for name, value in options.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            advice = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}"
            raise InputError(f"build has no option {name}: {advice}")
        if name in defaults and not is_kind(value, defaults[name]):
            raise InputError(f"{name} must be {_name_expected(defaults[name])}, got {value!r}")
    return {name: int(value) if isinstance(value, np.integer) else value for name, value in options.items()}


def is_kind(value: object, default: object) -> bool:
    """Whether a value can stand where `default` does: a bool, a whole number, a number, a word, or a path for None."""
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, int):
        return isinstance(value, Integral)
    if isinstance(default, float):
        return isinstance(value, Real)
    return isinstance(value, str) if isinstance(default, str) else value is None or isinstance(value, str | os.PathLike)


def _name_expected(default: object) -> str:
    kinds = {bool: "True or False", int: "a whole number", float: "a number", str: "a word"}
    return kinds.get(type(default), "a path")
