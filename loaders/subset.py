"""Select a part of a split for quick experiments: a fraction of each class, or only some classes.

Rows and labels are renumbered, so for a plan the part is a dataset like any other, with its own digest.
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
    """Some rows of a split, in its order, with labels renumbered as indices into `labels`. Made by `select`."""

    def __init__(self, split: Split, rows_N: np.ndarray, labels: Sequence[int]) -> None:
        self.folder, self.manifest, self.samples = split.folder, split.manifest, split.samples
        self.split, self.rows_N, self.labels = split, rows_N, labels

    def __len__(self) -> int:
        return len(self.rows_N)

    @property
    def place(self) -> str:
        return self.split.place

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.split.class_names[label] for label in self.labels)

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.split.digest.encode() + self.rows_N.tobytes()).hexdigest()

    def column(self, name: str) -> np.ndarray:
        """Return a column of the sample index for these rows, as a copy."""
        values_N = self.split.column(name)[self.rows_N]
        return np.searchsorted(self.labels, values_N).astype(values_N.dtype) if name == "label" else values_N

    def name_shard(self, shard: int) -> str:
        return self.split.name_shard(shard)

    def keys(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        return self.split.keys(self.rows_N[np.asarray(rows, dtype=np.int64)])

    def sha256_of_rows(self, rows: Sequence[int] | np.ndarray) -> list[bytes]:
        return self.split.sha256_of_rows(self.rows_N[np.asarray(rows, dtype=np.int64)])

    def rows_of(self, keys: Sequence[str]) -> list[int]:
        return np.searchsorted(self.rows_N, self.split.rows_of(keys)).tolist()


def find_whole(split: Split) -> Split:
    """Return the split that a subset is a part of, at any depth; else the split itself."""
    while isinstance(split, Subset):
        split = split.split
    return split


def find_whole_rows(split: Split) -> np.ndarray | None:
    """Return the rows of a subset in the split that it is a part of, int64 [N]; None for a complete split."""
    rows_N = None
    while isinstance(split, Subset):
        rows_N = split.rows_N if rows_N is None else split.rows_N[rows_N]
        split = split.split
    return rows_N


def select(split: Split, fraction: float = 1.0, classes: Sequence[str] = ()) -> Split:
    """Return a part of a split: the same one for all seeds. A larger fraction contains all smaller ones.

    Args:
        fraction: share of each class's images, in (0, 1]; at least one image per class.
        classes: names, numbers, or ranges of numbers such as `0-99`; empty: all. Labels are renumbered.

    Raises:
        InputError: the fraction is out of range, or a class does not exist.
    """
    if not 0 < fraction <= 1:
        raise InputError(f"fraction must be more than 0 and at most 1, got {fraction}")
    if fraction == 1 and not classes:
        return split
    labels = sorted({label for word in classes for label in find_classes(word, split.class_names)})
    labels = labels or list(range(len(split.class_names)))
    return Subset(split, _pick(split.column("label"), labels, fraction), labels)


def find_classes(word: str, names: Sequence[str]) -> range:
    """Return the labels for a word: a class name, a number, or a range of numbers that includes both ends.

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
        raise InputError(f"unknown classes {word}: classes are numbered from 0 to {len(names) - 1}")
    near = difflib.get_close_matches(word, names, n=1)
    advice = f"did you mean {near[0]!r}?" if near else f"a class is for example {names[0]!r}"
    raise InputError(f"unknown class {word!r}; {advice}")


def _pick(labels_N: np.ndarray, labels: Sequence[int], fraction: float) -> np.ndarray:
    """Return rows of these labels, int64, in order: in each class those with the smallest random words.

    The words do not depend on the fraction, so a smaller fraction is a subset of a larger one.
    """
    # Sort by class, and by random word within a class; `places` counts the rows of each class from 0.
    order_N = np.lexsort((np.random.Philox(key=0).random_raw(len(labels_N)), labels_N))
    counts_K = np.bincount(labels_N)
    firsts_K = np.cumsum(counts_K) - counts_K
    places_N = np.arange(len(labels_N)) - firsts_K[labels_N[order_N]]
    wanted_N = places_N < np.ceil(counts_K * fraction - ROUNDING)[labels_N[order_N]]
    return np.sort(order_N[wanted_N & np.isin(labels_N[order_N], labels)])
