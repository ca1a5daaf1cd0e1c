"""A model's predictions for a complete split, and the files that `train/evaluate.py --out DIR` writes of them.

scores.json  the summary that is also printed; written last, so a folder that has it is complete
images.csv  per_class.csv  confusions.csv  calibration.csv: tables; docs/evaluating.md explains their columns

N images in the order of the index, K classes, M models.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from loaders import Split
from prep.calibration import Bin, sort_into_bins
from prep.files import write_whole
from train.validate import NUM_FACTS, NUM_SCORES, PADDING, Scores

SCORES = "scores.json"
NUM_CONFUSIONS = 100  # rows of confusions.csv per model


@dataclass(frozen=True)
class Predictions:
    """One model's predictions for a complete split."""

    labels_N: np.ndarray  # int64
    damaged_N: np.ndarray  # bool: not decodable, so counted as wrong, whatever is predicted for the black image shown
    guesses_N: np.ndarray  # int64, predicted classes
    confidences_N: np.ndarray  # float32, softmax of the predicted class
    in_top5_N: np.ndarray  # bool
    losses_N: np.ndarray  # float32, nats

    def hits(self) -> np.ndarray:
        """Return whether each prediction counts as right, bool [N]."""
        return (self.guesses_N == self.labels_N) & ~self.damaged_N

    def top5_hits(self) -> np.ndarray:
        """Return whether one of five guesses counts as right, bool [N]."""
        return self.in_top5_N & ~self.damaged_N

    def scores(self) -> Scores:
        """Return the sums, added up in the order of the index, so that the number of processes does not matter."""
        return Scores(
            num_images=len(self.labels_N),
            num_damaged=int(self.damaged_N.sum()),
            num_top1=int(self.hits().sum()),
            num_top5=int(self.top5_hits().sum()),
            loss_sum=float(self.losses_N.sum(dtype=np.float64)),
        )

    def bins(self) -> list[Bin]:
        """Return the bins of the calibration, without damaged images: a prediction for a black image says nothing."""
        return sort_into_bins(self.confidences_N[~self.damaged_N], self.hits()[~self.damaged_N])

    def class_hits(self, num_classes: int) -> np.ndarray:
        """Return images, top-1 hits and top-5 hits of each class, int64 [K, 3]."""
        chosen = (np.ones_like(self.damaged_N), self.hits(), self.top5_hits())
        return np.stack([np.bincount(self.labels_N[each_N], minlength=num_classes) for each_N in chosen], axis=1)

    def confusions(self, num_classes: int, most: int) -> list[tuple[int, int, int]]:
        """Return the most frequent (label, wrong guess, images), without damaged images; ties are in order of label."""
        wrong_N = (self.guesses_N != self.labels_N) & ~self.damaged_N
        pairs_P, counts_P = np.unique((self.labels_N * num_classes + self.guesses_N)[wrong_N], return_counts=True)
        order_P = np.argsort(-counts_P, kind="stable")[:most]
        columns = (pairs_P[order_P] // num_classes, pairs_P[order_P] % num_classes, counts_P[order_P])
        return list(zip(*(column.tolist() for column in columns), strict=True))


ByModel = Mapping[str, Predictions]
Row = tuple[object, ...]


def to_predictions(names: Sequence[str], slots_SC: np.ndarray, labels_N: np.ndarray) -> dict[str, Predictions]:
    """Sort the result of `collect_predictions` into the order of the index, without padding.

    Args:
        names: of the models, in the order of the columns.
        slots_SC: float64, one row per slot.
        labels_N: of the split.

    Returns:
        The predictions of each model, by name.
    """
    # Every image must be there exactly once.
    slots_SC = slots_SC[slots_SC[:, 0] != PADDING]
    rows_NC = slots_SC[slots_SC[:, 0].argsort()]
    assert np.array_equal(rows_NC[:, 0], np.arange(len(labels_N))), "not every image once"

    # Split the columns by model.
    damaged_N, predictions = rows_NC[:, 1] > 0, {}
    for number, name in enumerate(names):
        first = NUM_FACTS + number * NUM_SCORES
        guesses_N, confidences_N, in_top5_N, losses_N = rows_NC[:, first : first + NUM_SCORES].T
        predictions[name] = Predictions(
            labels_N=labels_N.astype(np.int64),
            damaged_N=damaged_N,
            guesses_N=guesses_N.astype(np.int64),
            confidences_N=confidences_N.astype(np.float32),
            in_top5_N=in_top5_N > 0,
            losses_N=losses_N.astype(np.float32),
        )
    return predictions


def write_tables(folder: Path, split: Split, predictions: ByModel, summary: Mapping[str, Any]) -> None:
    """Write all files of an evaluation; each appears only when it is complete."""
    (folder / SCORES).unlink(missing_ok=True)  # an earlier one would belong to other tables
    tables = {
        "images.csv": _list_images(split, predictions),
        "per_class.csv": _list_classes(split.class_names, predictions),
        "confusions.csv": _list_confusions(split.class_names, predictions),
        "calibration.csv": _list_bins(predictions),
    }
    for name, rows in tables.items():
        write_whole(folder / name, _to_csv(rows))
    write_whole(folder / SCORES, (json.dumps(summary, indent=1) + "\n").encode())


def _to_csv(rows: Iterable[Row]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _list_images(split: Split, predictions: ByModel) -> Iterator[Row]:
    first = next(iter(predictions.values()))
    yield "key", "label", "damaged", *_headings(predictions, ("predicted", "confidence", "top5", "loss"))
    columns = [(o.guesses_N, o.confidences_N, o.top5_hits() * 1, o.losses_N) for o in predictions.values()]
    keys = split.keys(np.arange(len(split)))
    yield from zip(keys, first.labels_N, first.damaged_N * 1, *chain(*columns), strict=True)


def _list_classes(names: tuple[str, ...], predictions: ByModel) -> Iterator[Row]:
    yield "class", "name", "num_images", *_headings(predictions, ("num_top1", "num_top5", "top1", "top5"))
    by_model = [each.class_hits(len(names)).tolist() for each in predictions.values()]
    for number, (name, *counts) in enumerate(zip(names, *by_model, strict=True)):
        yield number, name, counts[0][0], *chain(*(_with_percent(*each) for each in counts))


def _with_percent(num_images: int, *hits: int) -> Row:
    """Return the counts, then each as a percentage of all images; empty cells if there are no images."""
    return *hits, *(100 * each / num_images if num_images else "" for each in hits)


def _list_confusions(names: tuple[str, ...], predictions: ByModel) -> Iterator[Row]:
    yield "model", "label", "label_name", "predicted", "predicted_name", "num_images"
    for model, each in predictions.items():
        for label, guess, num_images in each.confusions(len(names), NUM_CONFUSIONS):
            yield model, label, names[label], guess, names[guess], num_images


def _list_bins(predictions: ByModel) -> Iterator[Row]:
    yield "model", "above", "up_to", "num_images", "confidence_sum", "num_hits"
    for model, each in predictions.items():
        for b in each.bins():
            yield model, b.low, b.high, b.num_images, b.confidence_sum, b.num_hits


def _headings(predictions: ByModel, names: tuple[str, ...]) -> list[str]:
    return [f"{model}_{name}" for model in predictions for name in names]
