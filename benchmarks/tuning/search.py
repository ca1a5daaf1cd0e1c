"""The search: one setting after the other is moved to its next value, as long as that is faster than what was best.

Pure: what compares two settings, and what knows the time, is given.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tuning.rule import WINS, Pair, judge
from tuning.space import Space

from loaders import LoaderConfig

HasTime = Callable[[], bool]


@dataclass(frozen=True)
class Comparison:
    """A candidate held against what it wants to replace."""

    candidate: LoaderConfig
    other: LoaderConfig
    pairs: tuple[Pair, ...]
    failure: str | None = None  # why the candidate cannot run

    @property
    def is_better(self) -> bool:
        """Whether it is faster by more than the noise."""
        return self.failure is None and judge(self.pairs) is True


Compare = Callable[[LoaderConfig, LoaderConfig, int, HasTime], Comparison]  # candidate, other, least number of pairs


@dataclass(frozen=True)
class Found:
    """What a search came to: `config` is `start` unless the last comparison showed it to be faster."""

    config: LoaderConfig
    steps: tuple[Comparison, ...]
    last: Comparison  # the best that was found, or the start again, against the start


def search(start: LoaderConfig, space: Space, compare: Compare, has_time: HasTime, may_prolong: HasTime) -> Found:
    """The fastest settings that were found, if they are faster than those of `start` in pairs of their own.

    Args:
        has_time: for another pair, before what must come at the end.
        may_prolong: whether the last comparison may take more pairs than it must.
    """
    best, steps = climb(start, space, compare, has_time)
    last = compare(best, start, WINS, may_prolong)
    return Found(best if last.is_better else start, tuple(steps), last)


def climb(
    start: LoaderConfig, space: Space, compare: Compare, has_time: HasTime
) -> tuple[LoaderConfig, list[Comparison]]:
    """The best settings that a coordinate search from `start` meets while there is time, and its steps."""
    best, steps, known = start, [], set()
    is_new = True
    while is_new:
        is_new = False
        for name, step in ((name, step) for name in space.names for step in (1, -1)):
            while (candidate := space.find_neighbour(best, name, step)) is not None:
                pair = frozenset((candidate, best))
                if pair in known or not has_time():
                    break
                known.add(pair)
                steps.append(compare(candidate, best, 0, has_time))
                if not steps[-1].is_better:
                    break
                best, is_new = candidate, True
    return best, steps
