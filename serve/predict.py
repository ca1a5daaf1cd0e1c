"""Run a model over the pictures of a source, and count how often it is right.

Between `serve/image_sources.py` and `serve/accuracy_check.py`, `serve/selection.py`. Threads decode pictures a few
batches ahead of the model (Pillow releases the GIL); the batches are the same for every number of threads, and so are
the predictions. Memory holds those batches and one small record per picture. B pictures per batch, K classes.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import torch

from prep.errors import InputError
from prep.progress import Meter
from serve.accuracy_check import Count
from serve.artifact import Served
from serve.pictures import Encoded, Source, decode_image
from serve.preprocess import Preprocessing, show_crop, to_tensor

BATCH_SIZE = 32
Item = TypeVar("Item")
Result = TypeVar("Result")
BATCHES_AHEAD = 2  # decoded or being decoded while the model computes one; 20 MB each at 224 pixels


@dataclass(frozen=True)
class Prediction:
    """The model's prediction for one picture."""

    row: int  # in its source
    key: str
    label: int
    guess: int  # predicted label; -1: the picture cannot be decoded
    confidence: float = 0.0  # softmax of the guess
    true_confidence: float = 0.0  # softmax of the label
    in_top5: bool = False
    second: int = -1  # the second guess; -1: it is not known
    second_confidence: float = 0.0  # softmax of the second guess

    @property
    def is_right(self) -> bool:
        """True if the guess is the label."""
        return self.guess == self.label


@dataclass(frozen=True)
class Decoded:
    """A picture as the network's input, without its file."""

    row: int
    key: str
    label: int
    size_bytes: int  # of the file
    image_CHW: torch.Tensor | None  # None: it cannot be decoded


def predict_rows(
    served: Served,
    source: Source,
    rows: Collection[int],
    *,
    workers: int | None = None,
    show_progress: bool = False,
    label: str = "measuring",
) -> list[Prediction]:
    """Return the predictions for some rows of a source, by row. An undecodable picture is wrong, as in evaluation.

    Args:
        workers: threads that decode; None: as many as this process has CPUs. The predictions do not depend on it.
        show_progress: show images/s and the time left on standard error.
        label: what the progress calls it.
    """
    predictions: list[Prediction] = []
    with ExitStack() as stack:
        meter = stack.enter_context(Meter(label, len(rows))) if show_progress else None
        decoded = decode_ahead(source.read(rows), served.preprocessing, workers or count_cpus())
        for batch in _split_into_batches(stack.enter_context(closing(decoded))):
            predictions += _predict_batch(served, batch)
            if meter:
                meter.add(len(batch), sum(each.size_bytes for each in batch))
    return sorted(predictions, key=lambda each: each.row)


def count_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decode_ahead(encoded: Iterable[Encoded], preprocessing: Preprocessing, workers: int) -> Generator[Decoded]:
    """Yield pictures in their order, while threads decode those that follow."""
    return map_ahead(lambda each: _decode(each, preprocessing), encoded, workers, BATCHES_AHEAD * BATCH_SIZE + workers)


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, num_ahead: int
) -> Generator[Result]:
    """Yield `function` of each item, in order, while threads compute at most `num_ahead` of those that follow.

    Close the generator to end its threads; items that wait then are not computed.
    """
    waiting: deque[Future[Result]] = deque()
    threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for each in items:
            waiting.append(threads.submit(function, each))
            if len(waiting) > num_ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)


def _decode(encoded: Encoded, preprocessing: Preprocessing) -> Decoded:
    picture = decode_image(encoded.content)
    image_CHW = None if picture is None else to_tensor(show_crop(picture, preprocessing), preprocessing)
    return Decoded(encoded.row, encoded.key, encoded.label, len(encoded.content), image_CHW)


def _split_into_batches(decoded: Iterable[Decoded]) -> Iterator[list[Decoded]]:
    left = iter(decoded)
    while batch := list(islice(left, BATCH_SIZE)):
        yield batch


def _predict_batch(served: Served, batch: list[Decoded]) -> Iterator[Prediction]:
    # Pictures that cannot be decoded get a prediction that is never right.
    decoded = [(each, each.image_CHW) for each in batch if each.image_CHW is not None]
    for each in batch:
        if each.image_CHW is None:
            yield Prediction(each.row, each.key, each.label, guess=-1)
    if not decoded:
        return

    # Predict all others in one batch.
    probabilities_BK = predict_probabilities(served, torch.stack([image_CHW for _, image_CHW in decoded]))
    top_BT = probabilities_BK.topk(min(5, served.num_classes)).indices.tolist()
    for (each, _), row_K, top_T in zip(decoded, probabilities_BK, top_BT, strict=True):
        best, true = row_K[top_T[0]].item(), row_K[each.label].item()
        second = top_T[1] if len(top_T) > 1 else -1
        likely = row_K[second].item() if second >= 0 else 0.0
        yield Prediction(each.row, each.key, each.label, top_T[0], best, true, each.label in top_T, second, likely)


def predict_probabilities(served: Served, images_BCHW: torch.Tensor) -> torch.Tensor:
    """Return the softmax probabilities of preprocessed images, float32 [B, K] on the CPU.

    Raises:
        InputError: the logits contain NaN or infinity, which would be counted as wrong predictions.
    """
    device = next(served.model.parameters()).device
    with torch.inference_mode():
        probabilities_BK = served.model(images_BCHW.to(device)).float().softmax(1).cpu()
    if not probabilities_BK.isfinite().all():
        raise InputError(
            f"{served.name} computes NaN or infinity: its weights or its preprocessing are damaged; "
            "check --mean and --std, or use other weights"
        )
    return probabilities_BK


def count_hits(predictions: list[Prediction]) -> Count:
    """Return the top-1 hits over all pictures that were read."""
    return Count(sum(each.is_right for each in predictions), len(predictions))


def choose_rows(num_images: int, limit: int | None, seed: int) -> Collection[int]:
    """Return all rows, or `limit` of them drawn at random: the first rows of sorted data would cover few classes."""
    if limit is None or limit >= num_images:
        return range(num_images)
    return set(np.random.default_rng(seed).choice(num_images, limit, replace=False).tolist())
