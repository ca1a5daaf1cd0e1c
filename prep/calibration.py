"""Calibration of a classifier: C. Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599.

`train/evaluate.py` and `serve/report.py` both measure it, so it is among the modules that all packages share. It needs
only numpy.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NUM_BINS = 15  # as in the paper


@dataclass(frozen=True)
class Bin:
    """Counts and sums over the images with a top-1 confidence in (low, high]."""

    low: float  # 0 to 1
    high: float
    num_images: int
    confidence_sum: float
    num_hits: int  # images with a correct top-1 prediction


def sort_into_bins(confidences_N: np.ndarray, hits_N: np.ndarray) -> list[Bin]:
    """Return 15 bins of equal width, empty ones included.

    Args:
        confidences_N: softmax probability of the top-1 class, 0 to 1.
        hits_N: bool, whether the top-1 class is the label.
    """
    edges = np.arange(NUM_BINS + 1) / NUM_BINS
    bins_N = np.searchsorted(edges[1:-1], confidences_N, side="left")
    counts, sums, hits = (
        np.bincount(bins_N, weights, NUM_BINS) for weights in (None, confidences_N.astype(np.float64), hits_N)
    )
    columns = (edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), sums.tolist(), hits.astype(int).tolist())
    return [Bin(*values) for values in zip(*columns, strict=True)]


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Return the expected calibration error in percent, equation 3 of the paper.

    It is the mean over the images of |accuracy - mean confidence| of their bin, where the bin's number of images
    cancels out.
    """
    num_images = sum(each.num_images for each in bins)
    return 100 * sum(abs(each.num_hits - each.confidence_sum) for each in bins) / max(1, num_images)
