"""The output of any loader: the rows and labels of an epoch in order. Certificates are functions of this.

Shapes: N images of a split, M taken by one rank in one epoch.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Taken:
    """One rank's images of one epoch, in the loader's order."""

    rows_M: np.ndarray  # int64, rows of the sample index; -1 for an image that is not in it
    labels_M: np.ndarray  # int64, as the loader gave them
    first: int = 0  # first image that begins a batch; those before it end a batch of the previous epoch


def split_epochs(rows: np.ndarray, labels: np.ndarray, epochs: np.ndarray, firsts: list[int]) -> list[Taken]:
    """Split one rank's stream into epochs; all arrays are int64 of one length, `firsts` has one entry per epoch."""
    here = [epochs == epoch for epoch in range(len(firsts))]
    return [Taken(rows[mask], labels[mask], first) for mask, first in zip(here, firsts, strict=True)]
