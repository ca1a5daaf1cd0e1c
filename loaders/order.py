"""The order of an epoch: a true permutation of all rows, as a function of (seed, epoch) alone. Needs only numpy.

`shuffle` permutes the rows freely, so each image may be read from anywhere. `blocks` is for storage with slow random
reads (EBS, S3 mounts): neighbouring rows form blocks of 64 images, the blocks are shuffled, and each group of 64
blocks is shuffled image by image. A group can then be read ahead in long runs. docs/LOG.md says how well it shuffles.
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
    """The order of the training stream. With a position it determines each image's row, crop, flip and operations."""

    seed: int = 0
    order: OrderKind = "shuffle"
    repeats: int = 1  # repeated augmentation (arXiv 1902.05509): times that an image is used in a row


@lru_cache(maxsize=2)  # a batch spans at most two epochs, unless the dataset is smaller than a batch
def epoch_order(sampling: Sampling, epoch: int, num_images: int) -> np.ndarray:
    """Return the epoch's permutation of all rows, int64 [N]: rows sorted by one random word each.

    numpy guarantees that raw Philox streams stay the same in later versions, but not `Generator.permutation`.
    """
    words_N = _words(sampling.seed, epoch, 0, num_images)
    if sampling.order == "shuffle":
        return np.argsort(words_N, kind="stable")

    # Give each block a random place. Sort rows by the group of their block's place, then by their own word.
    num_blocks = -(-num_images // BLOCK_IMAGES)
    places = np.argsort(np.argsort(_words(sampling.seed, epoch, 1, num_blocks), kind="stable"))
    groups_N = (places // GROUP_BLOCKS)[np.arange(num_images) // BLOCK_IMAGES]
    return np.lexsort((words_N, groups_N))


def _words(seed: int, epoch: int, stream: int, num_words: int) -> np.ndarray:
    return np.random.Philox(key=seed, counter=[0, 0, stream, epoch]).random_raw(num_words)


def locate(sampling: Sampling, positions_B: np.ndarray, num_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the epochs and rows of positions in the endless training stream, int64 [B] each.

    An epoch always has as many positions as the split has images. With `repeats`, it shows only a part of the images,
    a different part in each epoch.
    """
    epochs_B, places_B = np.divmod(positions_B, num_images)
    rows_B = np.empty_like(positions_B)
    for epoch in np.unique(epochs_B):
        here = epochs_B == epoch
        rows_B[here] = epoch_order(sampling, int(epoch), num_images)[places_B[here] // sampling.repeats]
    return epochs_B, rows_B


def find_repeats(sampling: Sampling, positions_B: np.ndarray, num_images: int) -> np.ndarray:
    """Return how many times each position's image came just before it, int64 [B], from 0 to `repeats` - 1."""
    return positions_B % num_images % sampling.repeats


def find_substitute(sampling: Sampling, position: int, num_images: int, damaged: np.ndarray) -> int:
    """Return the row to show instead of a damaged one: the next intact row in the epoch's order, which wraps around."""
    epoch, place = divmod(position, num_images)
    order_N = epoch_order(sampling, epoch, num_images)
    following_N = np.roll(order_N, -(place // sampling.repeats))
    return int(following_N[np.argmin(np.isin(following_N, damaged))])
