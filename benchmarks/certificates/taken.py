"""What came out of a loader, whoever's: the rows and labels of an epoch in order. Certificates are functions of this.

Shapes: N images of a split, M taken by one rank in one epoch.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Taken:
    """One rank's images of one epoch, in the order in which they came."""

    rows_M: np.ndarray  # int64, of the sample index; -1 for what is none of its images
    labels_M: np.ndarray  # int64, as the loader gave them
    first: int = 0  # where the first batch that begins in this epoch begins: the one before may reach into it


def split_epochs(rows: np.ndarray, labels: np.ndarray, epochs: np.ndarray, firsts: list[int]) -> list[Taken]:
    """The epochs of one rank's stream, all arrays int64 of one length; `firsts` has one entry an epoch."""
    here = [epochs == epoch for epoch in range(len(firsts))]
    return [Taken(rows[mask], labels[mask], first) for mask, first in zip(here, firsts, strict=True)]
