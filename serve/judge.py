"""What a model says of each picture of a source, and how often it is right.

Between `serve/images.py` and `serve/honesty.py`, `serve/choose.py`. B pictures of a batch, K classes.
"""

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from serve.artifact import Served
from serve.honesty import Count
from serve.preprocess import show_crop, to_tensor
from serve.source import Encoded, Source, decode

BATCH_SIZE = 32


@dataclass(frozen=True)
class Verdict:
    """On one picture."""

    row: int  # of its source
    key: str
    label: int
    guess: int  # -1: it cannot be decoded
    confidence: float = 0.0  # softmax of the guess
    true_confidence: float = 0.0  # softmax of the label
    in_top5: bool = False

    @property
    def is_right(self) -> bool:
        """Whether the guess is the label."""
        return self.guess == self.label


def judge(served: Served, source: Source, rows: Container[int]) -> list[Verdict]:
    """Verdicts on some rows of a source, in their order. What cannot be decoded counts as wrong, as in evaluation."""
    verdicts = [verdict for batch in _batches(source.read(rows)) for verdict in _judge_batch(served, batch)]
    return sorted(verdicts, key=lambda verdict: verdict.row)


def _batches(encoded: Iterable[Encoded]) -> Iterator[list[Encoded]]:
    left = iter(encoded)
    while batch := list(islice(left, BATCH_SIZE)):
        yield batch


def _judge_batch(served: Served, encoded: list[Encoded]) -> Iterator[Verdict]:
    pictures = [decode(each.content) for each in encoded]
    whole = [(each, picture) for each, picture in zip(encoded, pictures, strict=True) if picture is not None]
    for each, picture in zip(encoded, pictures, strict=True):
        if picture is None:
            yield Verdict(each.row, each.key, each.label, guess=-1)
    if not whole:
        return
    crops = [show_crop(picture, served.preprocessing) for _, picture in whole]
    probabilities_BK = predict(served, torch.stack([to_tensor(crop, served.preprocessing) for crop in crops]))
    top_BT = probabilities_BK.topk(min(5, served.num_classes)).indices.tolist()
    for (each, _), row_K, top_T in zip(whole, probabilities_BK, top_BT, strict=True):
        best, true = row_K[top_T[0]].item(), row_K[each.label].item()
        yield Verdict(each.row, each.key, each.label, top_T[0], best, true, each.label in top_T)


def predict(served: Served, images_BCHW: torch.Tensor) -> torch.Tensor:
    """Probabilities, float32 [B, K], on the CPU."""
    device = next(served.model.parameters()).device
    with torch.inference_mode():
        return served.model(images_BCHW.to(device)).float().softmax(1).cpu()


def count_hits(verdicts: list[Verdict]) -> Count:
    """Top-1 over all that was read."""
    return Count(sum(each.is_right for each in verdicts), len(verdicts))


def choose_rows(num_images: int, limit: int | None, seed: int) -> Container[int]:
    """All rows, or so many of them drawn at random: the first ones of sorted data would be of few classes."""
    if limit is None or limit >= num_images:
        return range(num_images)
    return set(np.random.default_rng(seed).choice(num_images, limit, replace=False).tolist())
