"""Add the phases of a recipe up: its time, each phase's share, and the gain of a change. Pure functions of the figures.

A change is applied in each phase in which it was tried; the others stay as fast as they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from phases.plan import Phase
from verdict.advice import LEAST_GAIN, Advice
from verdict.bounds import Figures, expected_rate, find_bottleneck, remove_limit

STORAGE_KEY = "megabytes_per_second"


@dataclass(frozen=True)
class PhaseResult:
    """The figures of one training phase, and the images/s that each change promises."""

    phase: Phase
    figures: Figures
    promised: Sequence[Advice] = ()

    @property
    def bottleneck(self) -> str:
        """The part with the lowest bound."""
        return find_bottleneck(self.figures)

    @property
    def seconds(self) -> float:
        """The time of this phase at the measured rate."""
        return self.phase.num_images / self.figures.train


@dataclass(frozen=True)
class Gain:
    """A change and what it would do for all training phases together."""

    what: str
    kind: str  # the first key of `Advice.change`
    gain: float  # time now / time with the change


def sum_seconds(results: Sequence[PhaseResult], rate: Callable[[PhaseResult], float] | None = None) -> float:
    """Return the time of all phases, at the measured rates or at others."""
    return sum(each.phase.num_images / (rate(each) if rate else each.figures.train) for each in results)


def mean_rate(results: Sequence[PhaseResult]) -> float:
    """Return images/s over all phases, weighted by their images."""
    return sum(each.phase.num_images for each in results) / sum_seconds(results)


def group_by_bottleneck(results: Sequence[PhaseResult]) -> dict[str, list[PhaseResult]]:
    """Return the phases by the part that binds in them, the part that binds for the longest time first."""
    groups: dict[str, list[PhaseResult]] = {}
    for each in results:
        groups.setdefault(each.bottleneck, []).append(each)
    return dict(sorted(groups.items(), key=lambda pair: -sum_seconds(pair[1])))


def gain_without(results: Sequence[PhaseResult], bottleneck: str) -> float:
    """Return the gain if a part took no time in those phases in which it binds.

    What training loses between its stages now, it is assumed to lose then too.
    """

    def rate(each: PhaseResult) -> float:
        if each.bottleneck != bottleneck:
            return each.figures.train
        free = expected_rate(remove_limit(each.figures, bottleneck))
        return each.figures.train * free / expected_rate(each.figures)

    return sum_seconds(results) / sum_seconds(results, rate)


def sum_gains(results: Sequence[PhaseResult]) -> list[Gain]:
    """Return the changes that help the whole recipe, the largest gain first."""
    promised: dict[str, dict[int, Advice]] = {}
    for number, each in enumerate(results):
        for advice in each.promised:
            promised.setdefault(next(iter(advice.change)), {})[number] = advice
    gains = [_sum_gain(results, kind, by_phase) for kind, by_phase in promised.items()]
    return sorted((each for each in gains if each.gain >= LEAST_GAIN), key=lambda each: -each.gain)


def _sum_gain(results: Sequence[PhaseResult], kind: str, by_phase: dict[int, Advice]) -> Gain:
    rates = [
        by_phase[number].images_per_second if number in by_phase else each.figures.train
        for number, each in enumerate(results)
    ]
    seconds = sum(each.phase.num_images / rate for each, rate in zip(results, rates, strict=True))
    # Storage must be fast enough for the phase that needs most.
    advice = max(by_phase.values(), key=lambda each: each.change[kind] if kind == STORAGE_KEY else 0.0)
    return Gain(advice.what, kind, sum_seconds(results) / seconds)
