"""Certificates of shuffling: classes per batch, and how far images move between epochs. Pure functions.

Both compare a stream with a uniform permutation. They reject a uniform permutation with a probability of at most
CHANCE. Shapes: N images of a split, M of an epoch, K classes, S sizes of classes, B batches.
"""

from itertools import pairwise

import numpy as np
from certificates.taken import Taken
from certificates.verdict import CHANCE, Certificate
from scipy.special import gammaln
from scipy.stats import kstwobign, norm, poisson

NUM_BINS = 50  # of the displacements' histogram, each 2% of an epoch wide


def certify_classes(epochs: list[Taken], labels_N: np.ndarray, batch_size: int) -> Certificate:
    """Compare the mean number of distinct classes per batch with its expectation; use batches within one epoch.

    Batches are treated as independent. Those of a permutation nearly are: if one batch has more images of a class, the
    others have fewer. This reduces the variance of the mean, so fewer permutations are rejected.
    """
    counts_B = np.concatenate([count_classes(taken, batch_size) for taken in epochs])
    name = "classes in a batch"
    if not len(counts_B):
        return Certificate(name, None, f"no batch of {batch_size:,} fits into an epoch", "", "")

    # Expected mean and deviation, and the probability of a mean as far away as the observed one. It is computed from
    # the classes that are absent, which are few in large batches.
    class_counts_K = np.bincount(labels_N)
    mean, deviation = expect_classes(class_counts_K, batch_size)
    p = find_chance(np.count_nonzero(class_counts_K) - counts_B, np.count_nonzero(class_counts_K) - mean, deviation)
    return Certificate(
        name,
        p >= CHANCE,
        f"mean {counts_B.mean():.2f} of {len(counts_B):,} batches of {batch_size:,}, p = {p:.2g}",
        f"{mean:.2f} ± {deviation / np.sqrt(len(counts_B)):.2f} (one batch: ± {deviation:.2f})",
        f"p ≥ {CHANCE:g}: a uniform permutation fails once in {1 / CHANCE:,.0f} at most (hypergeometric)",
        {
            "observed_mean": float(counts_B.mean()),
            "expected_mean": mean,
            "expected_deviation": deviation,
            "p": p,
            "batch_size": batch_size,
            "histogram": np.bincount(counts_B).tolist(),  # batches by their number of classes
        },
    )


def find_chance(absent_B: np.ndarray, expected: float, deviation: float) -> float:
    """Return the two-sided p-value, 0 to 1, of the numbers of absent classes under a uniform permutation.

    It uses the normal distribution of their mean. If less than one class is expected to be absent from a batch, the
    normal approximation is too coarse, and the Poisson distribution of their sum is used.

    Args:
        absent_B: number of classes absent from each batch.
        expected: expected number of absent classes per batch.
        deviation: its standard deviation.
    """
    if np.isclose(absent_B.mean(), expected, rtol=0, atol=1e-6):
        return 1.0  # also if all batches must have the same number, so that the deviation is only rounding
    if expected < 1:
        total, mean = int(absent_B.sum()), max(0.0, expected) * len(absent_B)
        tail = min(poisson.cdf(total, mean), poisson.sf(total - 1, mean))
    else:
        tail = norm.sf(abs(absent_B.mean() - expected) * np.sqrt(len(absent_B)) / max(deviation, 1e-12))
    return min(1.0, 2 * float(tail))


def count_classes(taken: Taken, batch_size: int) -> np.ndarray:
    """Return the number of distinct classes of each complete batch, int64 [B]."""
    labels = taken.labels_M[taken.first :]
    batches = np.sort(labels[: len(labels) // batch_size * batch_size].reshape(-1, batch_size), axis=1)
    return 1 + (np.diff(batches, axis=1) != 0).sum(axis=1)


def expect_classes(class_counts_K: np.ndarray, batch_size: int) -> tuple[float, float]:
    """Return the expected number of classes among `batch_size` of N images, and its standard deviation.

    The images are drawn without replacement.

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
    """Return C(N - n, b) / C(N, b) for each size n: the probability that the class is absent from a batch."""
    left = num_images - sizes
    possible = left >= batch_size
    left = np.where(possible, left, num_images)
    logs = gammaln(left + 1) - gammaln(left - batch_size + 1)
    logs -= gammaln(num_images + 1) - gammaln(num_images - batch_size + 1)
    return np.where(possible, np.exp(logs), 0.0)


def certify_displacement(epochs: list[Taken], num_images: int) -> Certificate:
    """Compare the distances that images move between successive epochs, as shares of an epoch, with a triangle.

    For two independent uniform places x and y, |x - y| has the density 2 (1 - d): a triangle with mean 1/3. The
    Kolmogorov-Smirnov limit is that of independent distances. Those of a permutation, which uses each place once,
    vary less, so fewer permutations are rejected. Of several pairs of epochs the worst decides; the limit is corrected
    for their number.
    """
    pairs = [measure_displacements(*pair, num_images) for pair in pairwise(epochs)]
    name, limit = "displacement between epochs", float(kstwobign.isf(CHANCE / len(pairs)))
    if not all(map(len, pairs)):
        return Certificate(name, None, "two successive epochs have no image in common", "", "")

    # The Kolmogorov-Smirnov statistic of each pair of epochs; the largest one decides.
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
    """Return |place in one epoch - place in the next| / N of each image that is in both, float64."""
    places = np.full((2, num_images), -1, np.int64)
    for place, taken in zip(places, (before, after), strict=True):
        place[taken.rows_M[taken.rows_M >= 0]] = np.flatnonzero(taken.rows_M >= 0)
    return np.abs(np.diff(places[:, (places >= 0).all(axis=0)], axis=0))[0] / num_images


def distance_to_triangle(distances: np.ndarray) -> float:
    """Return the largest distance between the empirical distribution and 2 d - d^2 (Kolmogorov-Smirnov)."""
    ordered, size = np.sort(distances), len(distances)
    expected = 2 * ordered - ordered**2
    above = (np.arange(1, size + 1) / size - expected).max()
    below = (expected - np.arange(size) / size).max()
    return float(max(above, below))
