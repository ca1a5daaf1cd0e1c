"""The loader's settings, and the checks of everything that a user passes to it.

`LoaderConfig` says how batches are produced; nothing in it changes which pixels a batch holds. The `check_` functions
run before anything is read. Each raises InputError with one line: what was expected, what was found, what to do.

This module imports neither torch nor DALI.
"""

import difflib
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from loaders.augment import MOST, OPS, AugmentConfig
from loaders.order import OrderKind, Sampling
from loaders.plan import EvalTransform, TrainTransform, sizes
from loaders.world import World
from prep.errors import InputError

if TYPE_CHECKING:
    from prep.dataset import Split

MAX_THREADS = 16  # default limit of decoding threads per process
MAX_SIZES = 7  # resolutions in training: torch.compile compiles for each and for evaluation, and gives up after eight
MAX_IMAGES = 1 << 53  # images seen in a run: far more than any run sees, and exact in JSON
STATE = (
    "dataset",
    "seed",
    "order",
    "position",
    "damaged",
)  # required keys of a loader's state; newer ones are optional
NO_CACHE = "none"  # in place of a cache's folder: read everything from the bucket
DecodeKind = Literal["auto", "roi", "full"]
PlacementKind = Literal["auto", "cpu", "gpu"]
SpliceKind = Literal["auto", "off"]


@dataclass(frozen=True)
class LoaderConfig:
    """The settings of how batches are produced."""

    backend: str = "dali"  # dali, reference (Pillow) or synthetic (the same batch every time)
    num_threads: int = 0  # decoding threads per process; 0: one per core of this process's share, at most 16
    batches_ahead: int = 2  # batches prepared in advance, at each of the stages read, decode and queue
    placement: PlacementKind = "auto"  # where images are decoded, independent of the model; auto: by GPU, then by cores
    decode: DecodeKind = "auto"  # only the window (roi) or the full image; auto: roi on the CPU, full on a GPU
    splice: SpliceKind = "auto"  # read and decode only the segments that training's windows need, if the split has them
    hw_decoder_load: float = 0.99  # share of JPEGs decoded by the GPU's hardware decoder, if it has one
    pin_threads: bool = False  # pin each decoding thread to one core of this process's share
    most_damaged: int = 100  # images that may fail to decode before the run ends; 0: end at the first one
    tuned: Path | None = None  # file from `benchmarks/throughput.py --tune`; its settings replace default values

    def check(self) -> None:
        """Raise InputError if a value is out of range."""
        if self.num_threads < 0:
            raise InputError(f"num_threads must be at least 1, or 0 for a share of the cores, got {self.num_threads}")
        if self.batches_ahead < 1:
            raise InputError(f"batches_ahead must be at least 1, got {self.batches_ahead}")
        if self.placement not in get_args(PlacementKind):
            choices = ", ".join(get_args(PlacementKind))
            raise InputError(f"placement must be one of {choices}, got {self.placement!r}")
        if self.decode not in get_args(DecodeKind):
            choices = ", ".join(get_args(DecodeKind))
            raise InputError(f"decode must be one of {choices}, got {self.decode!r}")
        if self.splice not in get_args(SpliceKind):
            raise InputError(f"splice must be one of {', '.join(get_args(SpliceKind))}, got {self.splice!r}")
        if not 0 <= self.hw_decoder_load <= 1:
            raise InputError(f"hw_decoder_load must be between 0 and 1, got {self.hw_decoder_load}")
        if self.most_damaged < 0:
            raise InputError(f"most_damaged must be at least 0, got {self.most_damaged}")


# The dataset's place.


def parse_root(root: str | os.PathLike[str]) -> Path | str:
    """Return the place of a dataset: a path for a folder, text for a URL such as s3://bucket/imagenet."""
    text = os.fspath(root)
    if text.startswith("s3:/") and "://" not in text:  # a Path that was made of a URL
        text = text.replace("s3:/", "s3://", 1)
    return text if "://" in text else Path(text)


# Cores and threads.


def share_cores(world: World) -> tuple[int, ...]:
    """Return this process's share of the cores that it may run on: neighbours, which share caches; at least one."""
    cores = sorted(os.sched_getaffinity(0))
    each = max(1, len(cores) // world.local_size)
    first = world.local_rank * each % len(cores)
    return tuple(cores[first : first + each])


def default_num_threads(world: World) -> int:
    """Return one decoding thread per core of this process's share, at most MAX_THREADS."""
    return min(MAX_THREADS, len(share_cores(world)))


# Checks of the dataset, the transform and the order.


def check_request(split: "Split", transform: TrainTransform | EvalTransform, sampling: Sampling) -> None:
    """Raise InputError if a loader for these cannot work."""
    if not isinstance(transform, TrainTransform | EvalTransform):
        raise InputError(
            f"transform must be a TrainTransform or an EvalTransform, got {_name_kind(transform)}: these tell the "
            "decoder what to do; apply torchvision's transforms to the batches, with dtype='uint8'"
        )
    if not len(split):
        raise InputError(f"{split.place} contains no images: choose another dataset")
    if sampling.seed < 0:
        raise InputError(f"seed must be at least 0, got {sampling.seed}")
    if sampling.order not in get_args(OrderKind):
        raise InputError(f"order must be one of {', '.join(get_args(OrderKind))}, got {sampling.order!r}")
    if sampling.repeats < 1:
        raise InputError(f"repeats must be at least 1, got {sampling.repeats}")
    _check_sizes(transform)
    if isinstance(transform, TrainTransform):
        _check_crops(transform)
        _check_growth(transform)
        _check_augment(transform.augment)
    elif transform.resize < transform.size:
        raise InputError(
            f"resize must be at least the crop's size, {transform.size} pixels, got {transform.resize}: resize to more"
        )


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
        raise InputError(f"hflip must be a probability from 0 to 1, got {transform.hflip!r}")


def _is_range(pair: object, most: float = math.inf) -> bool:
    """Return True for two numbers above 0, of which the second is not smaller than the first and at most `most`."""
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(each, Real) for each in pair):
        return False
    low, high = pair
    return 0 < low <= high <= most and low < math.inf


def _check_growth(transform: TrainTransform) -> None:
    """Check the resolutions of a progressive schedule."""
    if transform.first_size is None:
        return
    start, end = transform.grow
    if not 0 <= start < end:
        raise InputError(f"grow must be two epochs, the earlier one first, got {transform.grow}")
    for name in ("first_size", "size_step"):
        pixels = getattr(transform, name)
        if not is_kind(pixels, 1) or pixels < 1:
            raise InputError(f"{name} must be a whole number of at least 1 pixel, got {pixels!r}")
    if len(found := sizes(transform, end + 1)) > MAX_SIZES:
        named, most = ", ".join(map(str, found)), (MAX_SIZES - 1) * transform.size_step
        nearer = transform.size + (most if transform.first_size > transform.size else -most)
        step = math.ceil(abs(transform.size - transform.first_size) / (MAX_SIZES - 1))
        raise InputError(
            f"the resolution may take at most {MAX_SIZES} sizes in a run, got {len(found)} ({named}): "
            f"set first_size to {nearer}, or size_step to {step}"
        )


def _check_augment(augment: AugmentConfig) -> None:
    if not isinstance(augment, AugmentConfig):
        raise InputError(f"augment must be an AugmentConfig, got {augment!r}: for example AugmentConfig('rand')")
    if augment.kind not in OPS:
        raise InputError(f"augment must be one of {', '.join(OPS)}, got {augment.kind!r}")
    if augment.num_ops < 1:
        raise InputError(f"num_ops must be at least 1, got {augment.num_ops}: for no operations set augment to none")
    if not 0 <= augment.magnitude <= MOST:
        raise InputError(f"magnitude must be between 0 and {MOST:g}, got {augment.magnitude}")
    if not 0 <= augment.std < math.inf:
        raise InputError(f"std must be at least 0 and finite, got {augment.std}")
    if not 0 <= augment.probability <= 1:
        raise InputError(f"probability must be between 0 and 1, got {augment.probability}")


def check_ops_supported(backend: str, supported: Collection[int], augment: AugmentConfig) -> None:
    """Raise InputError if an operation may be drawn that the backend cannot execute."""
    if missing := [op.name.lower() for op in OPS[augment.kind] if op not in supported]:
        raise InputError(
            f"the backend {backend} does not support {', '.join(missing)} here: "
            "choose another backend, or set augment to none"
        )


# Checks of a saved state and of the arguments of `build`.


def check_state(state: object) -> None:
    """Raise InputError if `state` is not what `Loader.state_dict` returns."""
    expected = "a loader's state must be what its state_dict() returned"
    if not isinstance(state, Mapping):
        raise InputError(f"{expected}, got {_name_kind(state)}: load the file first, with torch.load or json.load")
    if missing := [name for name in STATE if name not in state]:
        # The user may have passed a complete checkpoint, which holds the state under some name.
        inner = [name for name, value in state.items() if isinstance(value, Mapping) and set(STATE) <= set(value)]
        advice = f"pass its entry {inner[0]!r}" if inner else f"it has {', '.join(map(str, state)) or 'nothing'}"
        raise InputError(f"{expected}, but this one has no {', '.join(missing)}: {advice}")
    if not is_kind(state["position"], 1) or not 0 <= state["position"] <= MAX_IMAGES:
        raise InputError(f"{expected}, but its position is {state['position']!r}: use a state that was not changed")
    if not isinstance(state["damaged"], list) or not all(isinstance(key, str) for key in state["damaged"]):
        raise InputError(f"{expected}, but its damaged is {state['damaged']!r}: use a state that was not changed")


def check_arguments(root: object, split: object, batch_size: object, options: Mapping[str, Any]) -> dict[str, Any]:
    """Check the arguments of `build`, and return its options with numpy's integers as Python's, which JSON can hold.

    Raises:
        InputError: an argument has the wrong type, or an option does not exist.
    """
    if not isinstance(root, str | os.PathLike) or not isinstance(split, str) or not split:
        raise InputError(f"root and split must be a folder and the name of a folder in it, got {root!r} and {split!r}")
    if Path(root).is_file():
        raise InputError(f"root must be the folder of a prepared dataset, but {root} is a file: pass its folder")
    if not is_kind(batch_size, 1) or not isinstance(batch_size, Integral) or batch_size < 1:
        raise InputError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")

    # The options are the fields of two dataclasses, each with the type of its default, and four of `build` itself.
    defaults = {field.name: field.default for kind in (Sampling, LoaderConfig) for field in fields(kind)}
    defaults["cache"] = None  # a path
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
    """Check whether `value` has the type of `default`: bool, whole number, number, string; a path if that is None."""
    if isinstance(default, bool) or isinstance(value, bool):  # bool is a subclass of int
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, int):
        return isinstance(value, Integral)
    if isinstance(default, float):
        return isinstance(value, Real)
    return isinstance(value, str) if isinstance(default, str) else value is None or isinstance(value, str | os.PathLike)


def _name_expected(default: object) -> str:
    kinds = {bool: "True or False", int: "a whole number", float: "a number", str: "a string"}
    return kinds.get(type(default), "a path")
