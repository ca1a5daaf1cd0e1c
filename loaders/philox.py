"""Philox4x32-10, vectorised: random words as a pure function of (key, counter), without any state.

J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import numpy as np

NUM_ROUNDS = 10
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (0x9E3779B9, 0xBB67AE85)
LOW, WORD_BITS = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox4x32(key: int, counter_4N: np.ndarray) -> np.ndarray:
    """Return four random 32-bit words for each counter.

    Args:
        key: an integer of 64 bits.
        counter_4N: [4, ...] integers below 2**32.

    Returns:
        [4, ...] uint64 words below 2**32.
    """
    c0, c1, c2, c3 = (np.asarray(c, dtype=np.uint64) for c in counter_4N)
    k0, k1 = key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF
    for _ in range(NUM_ROUNDS):
        p0, p1 = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1 = (p1 >> WORD_BITS) ^ c1 ^ np.uint64(k0), p1 & LOW
        c2, c3 = (p0 >> WORD_BITS) ^ c3 ^ np.uint64(k1), p0 & LOW
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3])


def counters(stream: int, position: int, num_positions: int, block: int = 0) -> np.ndarray:
    """Return the counters of consecutive positions in the training stream, uint64 [4, N].

    Args:
        stream: number of the purpose, different from CROP_STREAM and AUGMENT_STREAM in loaders/plan.py.
        block: number of a block of four words; each position has 2**32 blocks.
    """
    positions_N = np.arange(position, position + num_positions, dtype=np.uint64)
    counter_4N = np.empty((4, num_positions), np.uint64)
    counter_4N[0], counter_4N[3] = block, stream
    counter_4N[1], counter_4N[2] = positions_N & LOW, positions_N >> WORD_BITS
    return counter_4N


def uniform(words: np.ndarray) -> np.ndarray:
    """Convert 32-bit words to float64 in [0, 1)."""
    return words * 2.0**-32
