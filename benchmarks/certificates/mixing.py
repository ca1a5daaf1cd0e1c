"""Certificates of the order: each image once per epoch, ranks that share nothing, classes per batch, displacement.

Pure functions of what was taken, and a picture of the last two. These compare a stream with a uniform permutation, and
reject a uniform permutation with a probability of at most CHANCE. Shapes: N images of a split, M of an epoch, K
classes, S sizes of classes, B batches.
"""

from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from certificates.epochs import Certificate, Taken
from scipy.stats import hypergeom, kstest, kstwobign, norm, poisson, triang

from prep.curves import STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHANCE = 1e-4  # probability that a statistical certificate rejects a uniform permutation
NUM_BINS = 50  # of the displacements' histogram, each 2% of an epoch wide
COUNTED = "none may differ: an epoch is each image once, by definition"

# The picture.
ROW_INCHES, WIDTH_INCHES, DPI = 1.9, 10.0, 160
OUR_COLOUR, PEER_COLOUR, INK = "C0", "C1", "#1f2933"


def certify_coverage(epochs: list[Taken], labels_N: np.ndarray) -> Certificate:
    """Check that each image comes exactly once in each epoch, with its label in the sample index.

    Args:
        epochs: epochs of a world of one rank.
        labels_N: labels of the sample index.
    """
    faults = [find_faults(taken, labels_N) for taken in epochs]
    totals = {name: sum(each[name] for each in faults) for name in faults[0]}
    num_taken = sum(len(taken.rows_M) for taken in epochs)
    found = ", ".join(f"{count:,} {name}" for name, count in totals.items() if count)
    return Certificate(
        "every image once an epoch",
        not found,
        f"{num_taken:,} images in {len(epochs)} epochs: {found or 'none missing, repeated, foreign or mislabelled'}",
        f"{len(labels_N):,} images in each epoch, each with its label",
        COUNTED,
        {"num_taken": num_taken, "epochs": faults},
    )


def find_faults(taken: Taken, labels_N: np.ndarray) -> dict[str, int]:
    """Count the images of an epoch that are missing, repeated, not in the index, or have a wrong label."""
    known_M = (taken.rows_M >= 0) & (taken.rows_M < len(labels_N))
    rows_K = taken.rows_M[known_M]
    counts_N = np.bincount(rows_K, minlength=len(labels_N))
    return {
        "missing": int((counts_N == 0).sum()),
        "repeated": int((counts_N > 1).sum()),
        "foreign": int((~known_M).sum()),
        "mislabelled": int((labels_N[rows_K] != taken.labels_M[known_M]).sum()),
    }


def certify_ranks(worlds: dict[int, list[Taken]], num_images: int) -> Certificate:
    """Check that in one epoch each image goes to exactly one rank.

    Args:
        worlds: by number of ranks, the images that each rank took in the same epoch.
        num_images: size of the split.
    """
    figures: dict[int, dict[str, int]] = {}
    for size, ranks in worlds.items():
        # Images that two ranks have in common, summed over pairs, and images that no rank has.
        sets = [np.unique(taken.rows_M) for taken in ranks]
        overlap = sum(len(np.intersect1d(*pair, assume_unique=True)) for pair in combinations(sets, 2))
        figures[size] = {
            "overlap": overlap,
            "missing": len(np.setdiff1d(np.arange(num_images), np.concatenate(sets))),
        }
    return Certificate(
        "ranks share nothing",
        not any(any(each.values()) for each in figures.values()),
        "; ".join(f"{size} ranks: overlap {n['overlap']:,}, missing {n['missing']:,}" for size, n in figures.items()),
        f"overlap 0, and together all {num_images:,} images",
        COUNTED,
        {"ranks": figures},
    )


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


def count_classes(taken: Taken, batch_size: int) -> np.ndarray:
    """Return the number of distinct classes of each complete batch, int64 [B]."""
    labels = taken.labels_M[taken.first :]
    batches = np.sort(labels[: len(labels) // batch_size * batch_size].reshape(-1, batch_size), axis=1)
    return 1 + (np.diff(batches, axis=1) != 0).sum(axis=1)


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


def expect_classes(class_counts_K: np.ndarray, batch_size: int) -> tuple[float, float]:
    """Return the expected number of classes among `batch_size` of N images, and its standard deviation.

    The images are drawn without replacement: the number of images of one class, or of two classes together, is
    hypergeometric, and a class is absent if it is 0. Classes of one size are handled together.
    """
    sizes_S, times_S = np.unique(class_counts_K[class_counts_K > 0], return_counts=True)
    num_images = int(class_counts_K.sum())
    absent_S = hypergeom.pmf(0, num_images, sizes_S, batch_size)
    # The diagonal of a class that is more than half of the images would exceed N; it counts no pair below.
    both_SS = hypergeom.pmf(0, num_images, np.minimum(sizes_S[:, None] + sizes_S, num_images), batch_size)
    covariances_SS = both_SS - absent_S[:, None] * absent_S
    pairs_SS = times_S[:, None] * times_S - np.diag(times_S)  # of different classes
    variance = (times_S * absent_S * (1 - absent_S)).sum() + (pairs_SS * covariances_SS).sum()
    return float((times_S * (1 - absent_S)).sum()), float(np.sqrt(max(0.0, variance)))


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

    # The Kolmogorov-Smirnov distance of each pair of epochs, times the root of its size; the largest one decides.
    distances_P = np.array([kstest(each, triang(0).cdf, method="asymp").statistic for each in pairs])
    roots_P = np.sqrt([len(each) for each in pairs])
    worst = int(np.argmax(distances_P * roots_P))
    scaled, allowed = distances_P[worst] * roots_P[worst], float(limit / roots_P[worst])
    moved = np.concatenate(pairs)
    return Certificate(
        name,
        bool(scaled <= limit),
        f"mean {moved.mean():.4f} of an epoch, KS distance {distances_P[worst]:.4f}",
        "mean 0.3333, the triangle 2 (1 - d)",
        f"KS ≤ {allowed:.4f}: a uniform permutation fails once in {1 / CHANCE:,.0f} at most (Kolmogorov)",
        {
            "observed_mean": float(moved.mean()),
            "expected_mean": 1 / 3,
            "ks_distance": float(distances_P[worst]),
            "ks_limit": allowed,
            "p": float(min(1.0, len(pairs) * kstwobign.sf(scaled))),
            "histogram": np.histogram(moved, NUM_BINS, (0, 1))[0].tolist(),
        },
    )


def measure_displacements(before: Taken, after: Taken, num_images: int) -> np.ndarray:
    """Return |place in one epoch - place in the next| / N of each image that is in both, float64."""
    places = np.full((2, num_images), -1, np.int64)
    for place, taken in zip(places, (before, after), strict=True):
        place[taken.rows_M[taken.rows_M >= 0]] = np.flatnonzero(taken.rows_M >= 0)
    return np.abs(np.diff(places[:, (places >= 0).all(axis=0)], axis=0))[0] / num_images


def draw_certificates(record: dict[str, Any], path: Path) -> None:
    """Write the picture of a record as a PNG: classes per batch and displacement, one row per loader."""
    from matplotlib import style  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.layout_engine import ConstrainedLayoutEngine  # noqa: PLC0415

    data, loaders = record["dataset"], record["loaders"]
    with style.context([STYLE, {"axes.spines.left": False}]):
        engine = ConstrainedLayoutEngine(hspace=0.06, wspace=0.04)
        figure = Figure((WIDTH_INCHES, ROW_INCHES * len(loaders) + 1.0), layout=engine)
        rows = figure.subplots(len(loaders), 2, squeeze=False, sharex="col")
        for (left, right), facts in zip(rows, loaders.values(), strict=True):
            found = {each["name"]: each for each in facts["certificates"]}
            colour, buffer = (PEER_COLOUR, f"\nbuffer {facts['buffer']:,}") if "buffer" in facts else (OUR_COLOUR, "")
            left.set_ylabel(facts["loader"] + buffer, color=colour, fontweight="bold")
            draw_classes(left, found["classes in a batch"], colour)
            draw_displacements(right, found["displacement between epochs"], colour)

        # A title above each column, its unit below; the heights of histograms have no unit.
        titles = (
            f"Different classes in a batch of {record['batch_size']:,}",
            "How far an image moves between two epochs",
        )
        for axes, title in zip(rows[0], titles, strict=True):
            axes.set_title(title, loc="left", fontweight="bold", pad=22)
        rows[-1][0].set_xlabel(f"classes, of {data['num_classes']:,} ({data['name']}, {data['num_images']:,} images)")
        rows[-1][1].set_xlabel("displacement, as a share of the epoch")
        for axes in rows.flat:
            axes.set_yticks([])
        rows[0][1].legend(frameon=False, loc="upper right")
        figure.savefig(path, dpi=DPI)


def draw_classes(axes: "Axes", certificate: dict[str, Any], colour: str) -> None:
    """Draw the histogram of classes per batch, and the normal curve of the expected mean and deviation."""
    if figures := certificate["figures"]:
        shares = np.array(figures["histogram"]) / sum(figures["histogram"])
        mean, deviation = figures["expected_mean"], max(figures["expected_deviation"], 0.2)
        places = np.linspace(max(0.0, mean - 4 * deviation), mean + 4 * deviation, 200)
        curve = np.exp(-(((places - mean) / deviation) ** 2) / 2) / (deviation * np.sqrt(2 * np.pi))
        axes.bar(np.arange(len(shares)), shares, width=1.0, color=colour, alpha=0.75)
        axes.plot(places, curve, color=INK, linewidth=1.4, label="uniform permutation")
        axes.set_xlim(left=0)
        write_verdict(axes, certificate, 1, colour)


def draw_displacements(axes: "Axes", certificate: dict[str, Any], colour: str) -> None:
    """Draw the density of displacements, and the triangle of a uniform permutation."""
    if figures := certificate["figures"]:
        counts = np.array(figures["histogram"])
        width = 1 / len(counts)
        places = (np.arange(len(counts)) + 0.5) * width
        axes.bar(places, counts / counts.sum() / width, width=width, color=colour, alpha=0.75)
        axes.plot([0, 1], [2, 0], color=INK, linewidth=1.4, label="uniform permutation")
        axes.set_xlim(0, 1)
        write_verdict(axes, certificate, 3, colour)


def write_verdict(axes: "Axes", certificate: dict[str, Any], digits: int, colour: str) -> None:
    """Write one line above the axes: the verdict, and the observed and the expected mean."""
    observed, expected = (f"{certificate['figures'][f'{name}_mean']:.{digits}f}" for name in ("observed", "expected"))
    words = f"{'pass' if certificate['passed'] else 'FAIL'}: mean {observed}, expected {expected}"
    axes.text(0, 1.03, words, transform=axes.transAxes, color=colour, va="bottom")
