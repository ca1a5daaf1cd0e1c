"""What follows from the verdicts on all pictures: classes, confusions, calibration. For `serve/report.py`.

What cannot be decoded counts as wrong in its class, and is in no confusion and no bin: nothing was guessed of it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prep.calibration import Bin, sort_into_bins
from serve.judge import Verdict


@dataclass(frozen=True)
class ClassCount:
    """One class."""

    label: int
    num_hits: int
    num_images: int

    @property
    def top1(self) -> float:
        """Percent."""
        return 100 * self.num_hits / self.num_images


def count_classes(verdicts: Sequence[Verdict]) -> list[ClassCount]:
    """The classes that have images, the worst first; equally good ones by label."""
    images = Counter(each.label for each in verdicts)
    hits = Counter(each.label for each in verdicts if each.is_right)
    return sorted((ClassCount(label, hits[label], count) for label, count in images.items()), key=_by_accuracy)


def _by_accuracy(each: ClassCount) -> tuple[float, int]:
    return each.top1, each.label


def find_confusions(verdicts: Sequence[Verdict], most: int) -> list[tuple[int, int, list[Verdict]]]:
    """The most frequent (label, wrong guess) with their verdicts, the surest first; equally frequent ones by label."""
    pairs: dict[tuple[int, int], list[Verdict]] = {}
    for each in verdicts:
        if not each.is_right and each.guess >= 0:
            pairs.setdefault((each.label, each.guess), []).append(each)
    ordered = sorted(pairs.items(), key=lambda item: (-len(item[1]), item[0]))[:most]
    return [(*pair, sorted(found, key=lambda each: -each.confidence)) for pair, found in ordered]


def bin_confidences(verdicts: Sequence[Verdict]) -> list[Bin]:
    """Return the calibration bins of the pictures that were decoded."""
    guessed = [each for each in verdicts if each.guess >= 0]
    confidences_N = np.array([each.confidence for each in guessed])
    return sort_into_bins(confidences_N, np.array([each.is_right for each in guessed], dtype=bool))
