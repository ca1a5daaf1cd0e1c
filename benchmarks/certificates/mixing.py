"""Certificates of shuffling: classes in a batch, and how far images move between epochs. Pure functions.

Both hold a stream against a uniform permutation, which they refuse by chance once in 1 / CHANCE times at most.
Shapes: N images of a split, M of an epoch, K classes, S sizes of classes, B batches.
"""

from itertools import pairwise

import numpy as np
from certificates.taken import Taken
from certificates.verdict import CHANCE, Certificate
from scipy.special import gammaln
from scipy.stats import kstwobign, norm

NUM_BINS = 50  # of the displacements' histogram, each 2% of an epoch wide


def certify_classes(epochs: list[Taken], labels_N: np.ndarray, batch_size: int) -> Certificate:
    """The mean number of different classes in the batches that lie within an epoch, against its expectation.

    The z value takes batches for independent. Those of a permutation nearly are: what they share is that classes that
    one batch has more of, the others have less of, which makes their mean vary less, so that fewer are refused.
    """
    counts_B = np.concatenate([count_classes(taken, batch_size) for taken in epochs])
    name, limit = "classes in a batch", norm.isf(CHANCE / 2)
    if not len(counts_B):
        return Certificate(name, None, f"no batch of {batch_size:,} lies within an epoch", "", "")
    mean, deviation = expect_classes(np.bincount(labels_N), batch_size)
    error = deviation / np.sqrt(len(counts_B))
    observed = float(counts_B.mean())
    # Where all batches have all classes, nothing but rounding is left of the deviation.
    z = 0.0 if np.isclose(observed, mean, rtol=0, atol=1e-6) else (observed - mean) / max(error, 1e-12)
    return Certificate(
        name,
        bool(abs(z) <= limit),
        f"mean {observed:.2f} of {len(counts_B):,} batches of {batch_size:,}, z = {z:+.2f}",
        f"{mean:.2f} ± {error:.2f} (one batch: ± {deviation:.2f})",
        f"|z| ≤ {limit:.2f}: a uniform permutation fails once in {1 / CHANCE:,.0f} at most (hypergeometric)",
        {
            "observed_mean": observed,
            "expected_mean": mean,
            "expected_deviation": deviation,
            "z": float(z),
            "p": float(2 * norm.sf(abs(z))),
            "batch_size": batch_size,
            "histogram": np.bincount(counts_B).tolist(),  # batches by their number of classes
        },
    )


def count_classes(taken: Taken, batch_size: int) -> np.ndarray:
    """The number of different classes of each whole batch, int64 [B]."""
    labels = taken.labels_M[taken.first :]
    batches = np.sort(labels[: len(labels) // batch_size * batch_size].reshape(-1, batch_size), axis=1)
    return 1 + (np.diff(batches, axis=1) != 0).sum(axis=1)


def expect_classes(class_counts_K: np.ndarray, batch_size: int) -> tuple[float, float]:
    """Mean and standard deviation of the number of classes among `batch_size` of N images drawn without replacement.

    Hypergeometric: a class of n images is absent with probability C(N - n, b) / C(N, b), two classes of n and m
    are both absent with C(N - n - m, b) / C(N, b). Classes of one size are handled together.
    """
    sizes_S, times_S = np.unique(class_counts_K[class_counts_K > 0], return_counts=True)
    num_images = int(class_counts_K.sum())
    absent_S = _absent(sizes_S, num_images, batch_size)
    both_SS = _absent(sizes_S[:, None] + sizes_S, num_images, batch_size)
    covariances_SS = both_SS - absent_S[:, None] * absent_S
    pairs_SS = times_S[:, None] * times_S - np.diag(times_S)  # of different classes
    variance = (times_S * absent_S * (1 - absent_S)).sum() + (pairs_SS * covariances_SS).sum()
    return float((times_S * (1 - absent_S)).sum()), float(np.sqrt(max(0.0, variance)))


def _absent(sizes: np.ndarray, num_images: int, batch_size: int) -> np.ndarray:
    """C(N - n, b) / C(N, b)."""
    left = num_images - sizes
    possible = left >= batch_size
    left = np.where(possible, left, num_images)
    logs = gammaln(left + 1) - gammaln(left - batch_size + 1)
    logs -= gammaln(num_images + 1) - gammaln(num_images - batch_size + 1)
    return np.where(possible, np.exp(logs), 0.0)


def certify_displacement(epochs: list[Taken], num_images: int) -> Certificate:
    """How far images stand in two successive epochs from where they stood, as a share of an epoch.

    For two independent uniform places x and y, |x - y| has the density 2 (1 - d): a triangle with mean 1/3. The
    Kolmogorov-Smirnov limit is that of independent distances. Those of a permutation, whose places are all taken once,
    vary less, so fewer are refused. Of several pairs of epochs the worst is judged, at a limit that allows for it.
    """
    pairs = [measure_displacements(*pair, num_images) for pair in pairwise(epochs)]
    name, limit = "displacement between epochs", float(kstwobign.isf(CHANCE / len(pairs)))
    if not all(map(len, pairs)):
        return Certificate(name, None, "two successive epochs have no image in common", "", "")
    scaled = [np.sqrt(len(each)) * distance_to_triangle(each) for each in pairs]
    distances, mean = np.concatenate(pairs), float(np.concatenate(pairs).mean())
    worst = int(np.argmax(scaled))
    distance, allowed = scaled[worst] / np.sqrt(len(pairs[worst])), limit / np.sqrt(len(pairs[worst]))
    return Certificate(
        name,
        bool(scaled[worst] <= limit),
        f"mean {mean:.4f} of an epoch, KS distance {distance:.4f}",
        "mean 0.3333, the triangle 2 (1 - d)",
        f"KS ≤ {allowed:.4f}: a uniform permutation fails once in {1 / CHANCE:,.0f} at most (Kolmogorov)",
        {
            "observed_mean": mean,
            "expected_mean": 1 / 3,
            "ks_distance": float(distance),
            "ks_limit": allowed,
            "p": float(min(1.0, len(pairs) * kstwobign.sf(scaled[worst]))),
            "histogram": np.histogram(distances, NUM_BINS, (0, 1))[0].tolist(),
        },
    )


def measure_displacements(before: Taken, after: Taken, num_images: int) -> np.ndarray:
    """|place in one epoch - place in the next| / N of each image that both have, float64."""
    places = np.full((2, num_images), -1, np.int64)
    for place, taken in zip(places, (before, after), strict=True):
        place[taken.rows_M[taken.rows_M >= 0]] = np.flatnonzero(taken.rows_M >= 0)
    return np.abs(np.diff(places[:, (places >= 0).all(axis=0)], axis=0))[0] / num_images


def distance_to_triangle(distances: np.ndarray) -> float:
    """The largest distance between the empirical distribution and 2 d - d^2 (Kolmogorov-Smirnov)."""
    ordered, size = np.sort(distances), len(distances)
    expected = 2 * ordered - ordered**2
    above = (np.arange(1, size + 1) / size - expected).max()
    below = (expected - np.arange(size) / size).max()
    return float(max(above, below))
