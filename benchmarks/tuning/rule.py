"""The rule by which one setting of the loader counts as faster than another one.

Both are measured in alternating windows; two windows are a pair. Each pair is won or lost, so that the rule does not
depend on the distribution of a machine's noise (a sign test). The candidate must win five pairs and lose none, or win
seven and lose one. If both were equally fast and windows independent, this would happen in 5 of 100 cases
(1/32 + 5/256). The median gain must also be large enough to justify a setting that differs from the current one.
"""

import statistics
from collections.abc import Callable, Sequence

LEAST_GAIN = 0.01  # in the median ratio; a smaller gain does not justify another setting
WINS, WINS_AFTER_LOSS, MOST_LOSSES = 5, 7, 1

Pair = tuple[float, float]  # images/s of the candidate, and of the settings that it would replace


def is_faster(pairs: Sequence[Pair]) -> bool | None:
    """Return True if the candidate is faster, False if it is not, and None if more pairs are needed."""
    ratios = find_ratios(pairs)
    wins = sum(ratio > 1 for ratio in ratios)
    losses = len(ratios) - wins
    if losses > MOST_LOSSES:
        return False
    if wins < (WINS_AFTER_LOSS if losses else WINS):
        return None
    return statistics.median(ratios) >= 1 + LEAST_GAIN


def find_ratios(pairs: Sequence[Pair]) -> list[float]:
    """Return the candidate's rate divided by the other's, for each pair."""
    return [candidate / other for candidate, other in pairs]


def measure_pairs(measure_pair: Callable[[], Pair], least: int, has_time: Callable[[], bool]) -> list[Pair]:
    """Measure as many pairs as the rule needs, at least `least`; above `least` none after the time is over."""
    pairs: list[Pair] = []
    while len(pairs) < least or (is_faster(pairs) is None and has_time()):
        pairs.append(measure_pair())
    return pairs
