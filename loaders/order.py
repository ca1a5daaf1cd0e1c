"""The order of an epoch: a true permutation of all rows, as a function of (seed, epoch) alone. numpy alone.

`shuffle` permutes the rows freely: each image is read from anywhere. `blocks` is for storage that hates random reads
(EBS, S3 mounts): runs of neighbouring rows keep together, GROUP_BLOCKS of them at a time are shuffled into each other,
so that a group can be read ahead in long runs. docs/LOG.md says how well it shuffles.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

OrderKind = Literal["shuffle", "blocks"]
BLOCK_IMAGES = 64  # neighbours in the index, about 7 MB of ImageNet
GROUP_BLOCKS = 64  # 4,096 images, about 450 MB


@dataclass(frozen=True)
class Sampling:
    """Which images come when, and how they are cut, flipped and augmented: all follows from this and the position."""

    seed: int = 0
    order: OrderKind = "shuffle"
    repeats: int = 1  # repeated augmentation (arXiv 1902.05509): times that an image comes, one after the other


@lru_cache(maxsize=2)  # a batch touches two epochs at most, unless the dataset is smaller than a batch
def epoch_order(sampling: Sampling, epoch: int, num_images: int) -> np.ndarray:
    """The epoch's permutation of all rows, int64 [N]: the stable sort of one random word each.

    Raw Philox streams are guaranteed not to change with numpy's version, `Generator.permutation` is not.
    """
    words_N = _words(sampling.seed, epoch, 0, num_images)
    if sampling.order == "shuffle":
        return np.argsort(words_N, kind="stable")
    num_blocks = -(-num_images // BLOCK_IMAGES)
    places = np.argsort(np.argsort(_words(sampling.seed, epoch, 1, num_blocks), kind="stable"))
    groups_N = (places // GROUP_BLOCKS)[np.arange(num_images) // BLOCK_IMAGES]
    return np.lexsort((words_N, groups_N))


def _words(seed: int, epoch: int, stream: int, num_words: int) -> np.ndarray:
    return np.random.Philox(key=seed, counter=[0, 0, stream, epoch]).random_raw(num_words)


def locate(sampling: Sampling, positions_B: np.ndarray, num_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Epochs and rows of some positions of the endless training stream, int64 [B] each.

    An epoch is as long as the split also where images are repeated: then it shows a part of them, another each time.
    """
    epochs_B, places_B = np.divmod(positions_B, num_images)
    rows_B = np.empty_like(positions_B)
    for epoch in np.unique(epochs_B):
        here = epochs_B == epoch
        rows_B[here] = epoch_order(sampling, int(epoch), num_images)[places_B[here] // sampling.repeats]
    return epochs_B, rows_B


def find_repeats(sampling: Sampling, positions_B: np.ndarray, num_images: int) -> np.ndarray:
    """Of some positions, how many times in a row their image came just before them, int64 [B], below `repeats`."""
    return positions_B % num_images % sampling.repeats


def find_substitute(sampling: Sampling, position: int, num_images: int, damaged: np.ndarray) -> int:
    """The row shown instead of a damaged one: the next sound one in the same epoch's order, round to its start."""
    epoch, place = divmod(position, num_images)
    order_N = epoch_order(sampling, epoch, num_images)
    following_N = np.roll(order_N, -(place // sampling.repeats))
    return int(following_N[np.argmin(np.isin(following_N, damaged))])
