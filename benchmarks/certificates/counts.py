"""Certificates of counting: each image once per epoch with its label, and no image on two ranks. Pure functions.

Shapes: as in taken.py.
"""

from itertools import combinations

import numpy as np
from certificates.taken import Taken
from certificates.verdict import Certificate

COUNTED = "none may differ: an epoch is each image once, by definition"


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
    """
    figures = {size: compare_ranks(ranks, num_images) for size, ranks in worlds.items()}
    return Certificate(
        "ranks share nothing",
        not any(any(each.values()) for each in figures.values()),
        "; ".join(
            f"{size} ranks: overlap {each['overlap']:,}, missing {each['missing']:,}" for size, each in figures.items()
        ),
        f"overlap 0, and together all {num_images:,} images",
        COUNTED,
        {"ranks": figures},
    )


def compare_ranks(ranks: list[Taken], num_images: int) -> dict[str, int]:
    """Count the images that two ranks have in common, summed over pairs, and the images that no rank has."""
    sets = [np.unique(taken.rows_M) for taken in ranks]
    together = np.unique(np.concatenate(sets))
    return {
        "overlap": sum(len(np.intersect1d(*pair, assume_unique=True)) for pair in combinations(sets, 2)),
        "missing": num_images - int(((together >= 0) & (together < num_images)).sum()),
    }
