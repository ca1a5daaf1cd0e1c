"""Loaders over the digits in a bucket, and what they give."""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from loaders import (
    Batch,
    Loader,
    LoaderConfig,
    OrderKind,
    Sampling,
    Split,
    TrainTransform,
    World,
    build_loader,
    open_splits,
)

URL = "s3://through/data/digits"
BATCH_SIZE, NUM_BATCHES = 8, 20
OTHER_RANK = World(0, 1, local_rank=1, local_size=2)  # it fills no cache
Batches = list[tuple[list[int], bytes, list[int]]]


def open_digits(cache: Path | str, name: str = "train", world: World | None = None) -> Split:
    (split,) = open_splits(URL, [name], cache, world or World())
    return split


def make_loader(split: Split, kind: OrderKind = "shuffle", backend: str = "reference") -> Loader:
    return build_loader(
        split, TrainTransform(size=24), BATCH_SIZE, sampling=Sampling(7, kind), config=LoaderConfig(backend)
    )


def take_batches(loader: Loader, num_batches: int = NUM_BATCHES) -> Batches:
    """Return rows, a digest of the pixels, and labels."""
    return [
        (
            batch.rows_B.tolist(),
            hashlib.sha256(batch.images_BCHW.contiguous().numpy().tobytes()).digest(),
            batch.labels_B.tolist(),
        )
        for batch in islice(loader, num_batches)
    ]


@contextmanager
def iterating(loader: Loader) -> Iterator[Iterator[Batch]]:
    """Iterate, and stop at the end of the context."""
    batches: Any = iter(loader)
    yield batches
    batches.close()


def await_that(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    given_up = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < given_up
        time.sleep(0.01)
