"""What a loader refuses before it reads anything: data, transforms and orders that cannot work, each in one line."""

import math
from collections.abc import Collection
from typing import get_args

from loaders.augment import MOST, OPS, AugmentConfig
from loaders.order import OrderKind, Sampling
from loaders.plan import SIZE_STEP, EvalTransform, TrainTransform, sizes
from prep.dataset import InputError, Split

MOST_SIZES = 5  # resolutions of a run: torch.compile recompiles for each, and gives up at its eighth


def check_request(split: Split, transform: TrainTransform | EvalTransform, sampling: Sampling) -> None:
    """Raises InputError for what cannot work."""
    if not len(split):
        raise InputError(f"{split.folder} holds no images: choose other data")
    if sampling.seed < 0:
        raise InputError(f"seed {sampling.seed} is negative: take 0 or more")
    if sampling.order not in get_args(OrderKind):
        raise InputError(f"there is no order {sampling.order}: choose from {', '.join(get_args(OrderKind))}")
    if sampling.repeats < 1:
        raise InputError(f"repeats {sampling.repeats} is too few: take 1 or more")
    if isinstance(transform, TrainTransform):
        _check_growth(transform)
        _check_augment(transform.augment)
    elif transform.resize < transform.size:
        raise InputError(f"cannot crop {transform.size} pixels from a short side of {transform.resize}: resize to more")


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


def check_lowered(backend: str, lowered: Collection[int], augment: AugmentConfig) -> None:
    """Raises InputError where an operation may be drawn that a backend cannot execute."""
    if missing := [op.name.lower() for op in OPS[augment.kind] if op not in lowered]:
        raise InputError(
            f"the backend {backend} has no {', '.join(missing)} here: take another backend or augment none"
        )
