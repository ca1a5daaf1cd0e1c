"""Whether a model is as sure as it is right: C. Guo et al., "On Calibration of Modern Neural Networks", 1706.04599."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NUM_BINS = 15  # as in the paper


@dataclass(frozen=True)
class Bin:
    """The images whose guess had a confidence in (low, high]."""

    low: float
    high: float
    num_images: int
    confidence_sum: float
    num_hits: int


def sort_into_bins(confidences_N: np.ndarray, hits_N: np.ndarray) -> list[Bin]:
    """Fifteen bins of equal width.

    Args:
        confidences_N: softmax of the guess, 0 to 1.
        hits_N: bool, whether the guess was right.
    """
    edges = np.arange(NUM_BINS + 1) / NUM_BINS
    bins_N = np.searchsorted(edges[1:-1], confidences_N, side="left")
    counts, sums, hits = (
        np.bincount(bins_N, weights, NUM_BINS) for weights in (None, confidences_N.astype(np.float64), hits_N)
    )
    columns = (edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), sums.tolist(), hits.astype(int).tolist())
    return [Bin(*values) for values in zip(*columns, strict=True)]


def expected_error(bins: Sequence[Bin]) -> float:
    """The expected calibration error in percent: the mean over the images of |accuracy - confidence| of their bin.

    Its equation 3, where a bin's share of the images cancels the division by its number.
    """
    num_images = sum(each.num_images for each in bins)
    return 100 * sum(abs(each.num_hits - each.confidence_sum) for each in bins) / max(1, num_images)
