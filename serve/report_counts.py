"""Counts of a report, from predictions: accuracy of each class, confusions, the confusion matrix, calibration bins.

Pure functions between `serve/predict.py` and `serve/report_page.py`. A picture that cannot be decoded counts as wrong
in its class; it has no prediction, so it is in no confusion and in no calibration bin. K classes.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prep.calibration import Bin, sort_into_bins
from serve.predict import Prediction


@dataclass(frozen=True)
class ClassCount:
    """The hits of one class."""

    label: int
    num_hits: int
    num_top5: int
    num_images: int
    wrong_guess: int | None = None  # the most frequent one; None: all are right or cannot be decoded
    num_wrong_guess: int = 0

    @property
    def top1(self) -> float | None:
        """Top-1 accuracy in percent; None without images."""
        return 100 * self.num_hits / self.num_images if self.num_images else None

    @property
    def top5(self) -> float | None:
        """Top-5 accuracy in percent; None without images."""
        return 100 * self.num_top5 / self.num_images if self.num_images else None


@dataclass(frozen=True)
class Confusion:
    """All pictures of one class that were predicted as one other class."""

    label: int
    guess: int
    predictions: Sequence[Prediction]  # the most confident one first


def count_classes(predictions: Sequence[Prediction], num_classes: int) -> list[ClassCount]:
    """Return the hits of all classes: the worst first, ties by label, classes without images last."""
    images = Counter(each.label for each in predictions)
    hits = Counter(each.label for each in predictions if each.is_right)
    top5 = Counter(each.label for each in predictions if each.in_top5)

    # The most frequent wrong guess of each class; of equally frequent ones the lowest label.
    wrong: dict[int, tuple[int, int]] = {}
    for (label, guess), count in sorted(_count_wrong_pairs(predictions).items()):
        if count > wrong.get(label, (-1, 0))[1]:
            wrong[label] = (guess, count)
    counts = [
        ClassCount(label, hits[label], top5[label], images[label], *wrong.get(label, (None, 0)))
        for label in range(num_classes)
    ]
    return sorted(counts, key=lambda each: (each.top1 is None, each.top1, each.label))


def find_confusions(predictions: Sequence[Prediction], most: int) -> list[Confusion]:
    """Return the most frequent confusions. Those that are equally frequent are sorted by label, then by guess."""
    counts = _count_wrong_pairs(predictions)
    pairs = sorted(counts, key=lambda pair: (-counts[pair], pair))[:most]
    found: dict[tuple[int, int], list[Prediction]] = {pair: [] for pair in pairs}
    for each in predictions:
        if (each.label, each.guess) in found:
            found[each.label, each.guess].append(each)
    return [Confusion(*pair, sorted(found[pair], key=lambda each: -each.confidence)) for pair in pairs]


def _count_wrong_pairs(predictions: Sequence[Prediction]) -> Counter[tuple[int, int]]:
    return Counter((each.label, each.guess) for each in predictions if not each.is_right and each.guess >= 0)


def count_matrix(predictions: Sequence[Prediction], num_classes: int) -> np.ndarray:
    """Return the confusion matrix, int32 [K, K]: pictures of the row's class that were predicted as the column's."""
    matrix_KK = np.zeros((num_classes, num_classes), np.int32)
    labels = [each.label for each in predictions if each.guess >= 0]
    guesses = [each.guess for each in predictions if each.guess >= 0]
    np.add.at(matrix_KK, (labels, guesses), 1)
    return matrix_KK


def bin_confidences(predictions: Sequence[Prediction]) -> list[Bin]:
    """Return the calibration bins of the pictures that were decoded."""
    guessed = [each for each in predictions if each.guess >= 0]
    confidences_N = np.array([each.confidence for each in guessed])
    return sort_into_bins(confidences_N, np.array([each.is_right for each in guessed], dtype=bool))
