"""The search: move one setting after the other to its next value, as long as that is faster than the best so far.

Pure functions: the caller passes a function that compares two settings and functions that know the time.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tuning.rule import WINS, Pair, is_faster
from tuning.space import Space

from loaders.config import LoaderConfig

HasTime = Callable[[], bool]


@dataclass(frozen=True)
class Comparison:
    """A candidate compared with the settings that it would replace."""

    candidate: LoaderConfig
    other: LoaderConfig
    pairs: tuple[Pair, ...]
    failure: str | None = None  # why the candidate cannot run

    @property
    def is_better(self) -> bool:
        """True if the candidate is faster by more than the noise."""
        return self.failure is None and is_faster(self.pairs) is True


Compare = Callable[[LoaderConfig, LoaderConfig, int, HasTime], Comparison]  # candidate, other, least number of pairs


@dataclass(frozen=True)
class Found:
    """The result of a search; `config` is the start unless the last comparison showed a faster one."""

    config: LoaderConfig
    steps: tuple[Comparison, ...]
    last: Comparison  # the best settings that were found, or the start itself, compared with the start


def search(start: LoaderConfig, space: Space, compare: Compare, has_time: HasTime, may_prolong: HasTime) -> Found:
    """Return the fastest settings that were found if they beat `start` in new pairs of windows, else `start`.

    Args:
        has_time: returns True if there is time for another pair, and afterwards for the last comparison.
        may_prolong: returns True if the last comparison may measure more pairs than required.
    """
    best, steps = climb(start, space, compare, has_time)
    last = compare(best, start, WINS, may_prolong)
    return Found(best if last.is_better else start, tuple(steps), last)


def climb(
    start: LoaderConfig, space: Space, compare: Compare, has_time: HasTime
) -> tuple[LoaderConfig, list[Comparison]]:
    """Return the best settings of a coordinate search from `start`, and its comparisons.

    One setting after the other moves up as long as that is faster, then down. The search ends when a pass over all
    settings changed nothing, or when the time is over.
    """
    best, steps, known = start, [], set()  # `known`: pairs of settings that were compared already
    is_new = True
    while is_new:
        is_new = False
        for name, step in ((name, step) for name in space.names for step in (1, -1)):
            # Move this setting in this direction as long as each move is faster.
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
