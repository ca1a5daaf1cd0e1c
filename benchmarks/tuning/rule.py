"""When one setting of the loader counts as faster than another: both are measured in turns, a window each a pair.

Each pair is won or lost, whatever the noise of a machine looks like (a sign test). The candidate must win five pairs
and lose none, or win seven and lose one: were both equally fast, and windows independent, 5 of 100 cases would come out
so (1/32 + 5/256). Its median gain must also be worth another setting than the one that is there.
"""

import statistics
from collections.abc import Callable, Sequence

LEAST_GAIN = 0.01  # of the median ratio; less is not worth a setting of its own
WINS, WINS_AFTER_LOSS, MOST_LOSSES = 5, 7, 1

Pair = tuple[float, float]  # images/s of the candidate, and of what it wants to replace


def judge(pairs: Sequence[Pair]) -> bool | None:
    """Whether the candidate is faster; None: more pairs are needed."""
    ratios = find_ratios(pairs)
    wins = sum(ratio > 1 for ratio in ratios)
    losses = len(ratios) - wins
    if losses > MOST_LOSSES:
        return False
    if wins < (WINS_AFTER_LOSS if losses else WINS):
        return None
    return statistics.median(ratios) >= 1 + LEAST_GAIN


def find_ratios(pairs: Sequence[Pair]) -> list[float]:
    """The candidate's rate by the other's, of each pair."""
    return [candidate / other for candidate, other in pairs]


def take_pairs(measure: Callable[[], Pair], least: int, has_time: Callable[[], bool]) -> list[Pair]:
    """As many pairs as the rule needs, at least `least`; beyond those none once time is over."""
    pairs: list[Pair] = []
    while len(pairs) < least or (judge(pairs) is None and has_time()):
        pairs.append(measure())
    return pairs
