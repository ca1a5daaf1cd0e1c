"""What follows from the verdicts on all pictures: classes, confusions, calibration. For `serve/report.py`.

What cannot be decoded counts as wrong in its class, and is in no confusion and no bin: nothing was guessed of it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from serve.judge import Verdict

NUM_BINS = 15  # as in C. Guo et al., "On Calibration of Modern Neural Networks", 1706.04599


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


@dataclass(frozen=True)
class Bin:
    """The guesses of about one confidence."""

    num_images: int
    mean_confidence: float  # 0 to 1
    accuracy: float  # 0 to 1


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


def sort_into_bins(verdicts: Sequence[Verdict]) -> list[Bin]:
    """Fifteen bins of equal width of the confidence, those without images left out."""
    members: dict[int, list[Verdict]] = {}
    for each in verdicts:
        if each.guess >= 0:
            members.setdefault(min(int(each.confidence * NUM_BINS), NUM_BINS - 1), []).append(each)
    return [_to_bin(members[number]) for number in sorted(members)]


def _to_bin(members: Sequence[Verdict]) -> Bin:
    count = len(members)
    return Bin(count, sum(each.confidence for each in members) / count, sum(each.is_right for each in members) / count)


def expected_error(bins: Sequence[Bin]) -> float:
    """The expected calibration error in percent, equation 3 of 1706.04599."""
    num_images = sum(each.num_images for each in bins)
    return 100 * sum(each.num_images * abs(each.accuracy - each.mean_confidence) for each in bins) / max(1, num_images)
