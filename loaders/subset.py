"""A part of a split for quick experiments: a fraction of each class, or some classes alone.

Its rows and labels are numbered anew, so to a plan it is a dataset like any other, with a digest of its own.
"""

import difflib
import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from prep.dataset import Split
from prep.errors import InputError

ROUNDING = 1e-9  # 0.07 * 100 is 7.000000000000001, which is 7 images and not 8


class Subset(Split):
    """Some rows of a split, in its order, their labels numbered within `labels`. Made by `select`."""

    def __init__(self, split: Split, rows_N: np.ndarray, labels: Sequence[int]) -> None:
        self.folder, self.manifest, self.samples = split.folder, split.manifest, split.samples
        self.split, self.rows_N, self.labels = split, rows_N, labels

    def __len__(self) -> int:
        return len(self.rows_N)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.split.class_names[label] for label in self.labels)

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.split.digest.encode() + self.rows_N.tobytes()).hexdigest()

    def column(self, name: str) -> np.ndarray:
        """As a split's, of these rows alone: a copy."""
        values_N = self.split.column(name)[self.rows_N]
        return np.searchsorted(self.labels, values_N).astype(values_N.dtype) if name == "label" else values_N

    def keys(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        return self.split.keys(self.rows_N[np.asarray(rows, dtype=np.int64)])

    def rows_of(self, keys: Sequence[str]) -> list[int]:
        return np.searchsorted(self.rows_N, self.split.rows_of(keys)).tolist()


def select(split: Split, fraction: float = 1.0, classes: Sequence[str] = ()) -> Split:
    """A part of a split: the same images whatever the run's seed, and within those of any larger fraction.

    Args:
        fraction: of each class's images, in (0, 1]; at least one of each.
        classes: names, numbers or ranges of numbers as in `0-99`; none means all. Labels are numbered anew.

    Raises:
        InputError: the fraction is out of range, or a class is not there.
    """
    if not 0 < fraction <= 1:
        raise InputError(f"fraction {fraction} is out of range: take more than 0 and at most 1")
    if fraction == 1 and not classes:
        return split
    labels = sorted({label for word in classes for label in find_classes(word, split.class_names)})
    labels = labels or list(range(len(split.class_names)))
    return Subset(split, _pick(split.column("label"), labels, fraction), labels)


def find_classes(word: str, names: Sequence[str]) -> range:
    """The labels that a word means: a class's name, its number, or a range of numbers with both ends.

    Raises:
        InputError: there is no such class.
    """
    if word in names:
        label = names.index(word)
        return range(label, label + 1)
    first, dash, last = word.partition("-")
    if first.isdecimal() and (last.isdecimal() if dash else True):
        labels = range(int(first), int(last or first) + 1)
        if labels and labels[-1] < len(names):
            return labels
        raise InputError(f"there are no classes {word}: they are numbered from 0 to {len(names) - 1}")
    near = difflib.get_close_matches(word, names, n=1)
    raise InputError(f"there is no class {word}" + (f", did you mean {near[0]}?" if near else f", as {names[0]} is"))


def _pick(labels_N: np.ndarray, labels: Sequence[int], fraction: float) -> np.ndarray:
    """Rows of these labels, int64, in order: of each class those with the smallest random words."""
    order_N = np.lexsort((np.random.Philox(key=0).random_raw(len(labels_N)), labels_N))
    counts_K = np.bincount(labels_N)
    firsts_K = np.cumsum(counts_K) - counts_K
    places_N = np.arange(len(labels_N)) - firsts_K[labels_N[order_N]]  # of each row within its class
    wanted_N = places_N < np.ceil(counts_K * fraction - ROUNDING)[labels_N[order_N]]
    return np.sort(order_N[wanted_N & np.isin(labels_N[order_N], labels)])
