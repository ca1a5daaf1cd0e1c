"""Run a model over the pictures of a source, and count how often it is right.

Between `serve/image_sources.py` and `serve/accuracy_check.py`, `serve/selection.py`. B pictures per batch, K classes.
"""

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from serve.accuracy_check import Count
from serve.artifact import Served
from serve.pictures import Encoded, Source, decode_image
from serve.preprocess import show_crop, to_tensor

BATCH_SIZE = 32


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

    @property
    def is_right(self) -> bool:
        """True if the guess is the label."""
        return self.guess == self.label


def predict_rows(served: Served, source: Source, rows: Container[int]) -> list[Prediction]:
    """Return the predictions for some rows of a source, by row. An undecodable picture is wrong, as in evaluation."""
    batches = _split_into_batches(source.read(rows))
    predictions = [each for batch in batches for each in _predict_batch(served, batch)]
    return sorted(predictions, key=lambda each: each.row)


def _split_into_batches(encoded: Iterable[Encoded]) -> Iterator[list[Encoded]]:
    left = iter(encoded)
    while batch := list(islice(left, BATCH_SIZE)):
        yield batch


def _predict_batch(served: Served, encoded: list[Encoded]) -> Iterator[Prediction]:
    # Decode; pictures that cannot be decoded get a prediction that is never right.
    pictures = [decode_image(each.content) for each in encoded]
    decoded = [(each, picture) for each, picture in zip(encoded, pictures, strict=True) if picture is not None]
    for each, picture in zip(encoded, pictures, strict=True):
        if picture is None:
            yield Prediction(each.row, each.key, each.label, guess=-1)
    if not decoded:
        return

    # Predict all others in one batch.
    crops = [show_crop(picture, served.preprocessing) for _, picture in decoded]
    images_BCHW = torch.stack([to_tensor(crop, served.preprocessing) for crop in crops])
    probabilities_BK = predict_probabilities(served, images_BCHW)
    top_BT = probabilities_BK.topk(min(5, served.num_classes)).indices.tolist()
    for (each, _), row_K, top_T in zip(decoded, probabilities_BK, top_BT, strict=True):
        best, true = row_K[top_T[0]].item(), row_K[each.label].item()
        yield Prediction(each.row, each.key, each.label, top_T[0], best, true, each.label in top_T)


def predict_probabilities(served: Served, images_BCHW: torch.Tensor) -> torch.Tensor:
    """Return the softmax probabilities of preprocessed images, float32 [B, K] on the CPU."""
    device = next(served.model.parameters()).device
    with torch.inference_mode():
        return served.model(images_BCHW.to(device)).float().softmax(1).cpu()


def count_hits(predictions: list[Prediction]) -> Count:
    """Return the top-1 hits over all pictures that were read."""
    return Count(sum(each.is_right for each in predictions), len(predictions))


def choose_rows(num_images: int, limit: int | None, seed: int) -> Container[int]:
    """Return all rows, or `limit` of them drawn at random: the first rows of sorted data would cover few classes."""
    if limit is None or limit >= num_images:
        return range(num_images)
    return set(np.random.default_rng(seed).choice(num_images, limit, replace=False).tolist())
