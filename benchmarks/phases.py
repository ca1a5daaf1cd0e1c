"""The phases of a recipe: the images of each resolution, their sum, and the verdict on all of it. Pure functions.

A phase is all training at one resolution, or all evaluations. A change is applied in each phase in which it was tried;
the others stay as fast as they are.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import verdict
from verdict import IMAGENET_IMAGES, Advice, Figures, describe_hours

from loaders.plan import TrainTransform, size_at
from prep.errors import InputError
from train.config import Recipe

if TYPE_CHECKING:
    from signs import Sign

IMAGENET_VALIDATION = 50_000  # images of ImageNet-1k's validation split
EVEN = 2  # pixels: scaled resolutions are multiples of it
STORAGE_KEY = "megabytes_per_second"
LOADER_NAME = "the loader"  # in the place of decoding, if that was not measured alone


@dataclass(frozen=True)
class Phase:
    """All training at one resolution, or all evaluations."""

    size: int  # pixels, of the recipe
    measured_size: int  # the same, unless the measurement is scaled down
    num_images: int  # of ImageNet-1k
    evaluates: bool = False


@dataclass(frozen=True)
class PhaseResult:
    """The figures of one training phase, and the images/s that each change promises."""

    phase: Phase
    figures: Figures
    promised: Sequence[Advice] = ()

    @property
    def bottleneck(self) -> str:
        """The part with the lowest bound."""
        return verdict.find_bottleneck(self.figures)

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


@dataclass(frozen=True)
class Preparation:
    """The preparation of ImageNet's shards, as measured elsewhere."""

    images_per_second_and_core: float
    hours: float  # on the cores of this machine
    source: str


@dataclass(frozen=True)
class Total:
    """A recipe's hours, from the measured rates."""

    training: float
    evaluation: float
    preparation: Preparation

    @property
    def hours(self) -> float:
        """Training, evaluation and preparation."""
        return self.training + self.evaluation + self.preparation.hours


# The plan.


def list_shares(transform: TrainTransform, epochs: float) -> Iterator[tuple[int, float]]:
    """Yield the size of each epoch, and how much of the epoch is run: 1, or less in the last one."""
    epoch = 0
    while epoch < epochs:
        yield size_at(transform, epoch), min(1.0, epochs - epoch)
        epoch += 1


def plan_phases(recipe: Recipe, scale: float = 1.0) -> list[Phase]:
    """Return the training phases in the order of their first epochs, then the evaluation.

    Args:
        scale: of the measured resolutions; below 1 for a rehearsal on a slow machine.
    """
    epochs: dict[int, float] = {}
    for size, share in list_shares(recipe.transform, recipe.epochs):
        epochs[size] = epochs.get(size, 0.0) + share
    phases = [Phase(size, scale_size(size, scale), round(each * IMAGENET_IMAGES)) for size, each in epochs.items()]

    # A run evaluates at its end too, so also a last interval that is shorter.
    num_evaluations = max(1, math.ceil(recipe.epochs / recipe.run.evaluate_every - 1e-9))
    size = recipe.evaluation.size
    return [*phases, Phase(size, scale_size(size, scale), num_evaluations * IMAGENET_VALIDATION, evaluates=True)]


def scale_size(size: int, scale: float) -> int:
    """Return a resolution times `scale`, an even number of pixels unless the scale is 1."""
    return size if scale == 1 else max(EVEN, round(size * scale / EVEN) * EVEN)


def check_sizes(phases: Sequence[Phase]) -> None:
    """Raise InputError if two training phases would be measured at the same resolution."""
    sizes = [phase.measured_size for phase in phases if not phase.evaluates]
    if len(set(sizes)) < len(sizes):
        raise InputError(
            f"the resolutions times --scale must differ from each other, got {', '.join(map(str, sizes))}: "
            "give a larger --scale"
        )


# The sum.


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
        free = verdict.expected_rate(verdict.remove_limit(each.figures, bottleneck))
        return each.figures.train * free / verdict.expected_rate(each.figures)

    return sum_seconds(results) / sum_seconds(results, rate)


def sum_gains(results: Sequence[PhaseResult]) -> list[Gain]:
    """Return the changes that help the whole recipe, the largest gain first."""
    # The advice of each kind by the phase's number.
    promised: dict[str, dict[int, Advice]] = {}
    for number, each in enumerate(results):
        for advice in each.promised:
            promised.setdefault(next(iter(advice.change)), {})[number] = advice

    gains = []
    for kind, by_phase in promised.items():
        changed = sum(
            each.phase.num_images / (by_phase[number].images_per_second if number in by_phase else each.figures.train)
            for number, each in enumerate(results)
        )
        # Storage must be fast enough for the phase that needs most.
        advice = max(by_phase.values(), key=lambda each: each.change.get(STORAGE_KEY, 0.0))
        gains.append(Gain(advice.what, kind, sum_seconds(results) / changed))
    return sorted((each for each in gains if each.gain >= verdict.LEAST_GAIN), key=lambda each: -each.gain)


# The verdict in sentences.


def name_part(bottleneck: str, is_full: bool) -> str:
    """Return the name of a bottleneck."""
    return LOADER_NAME if bottleneck == verdict.DECODE and not is_full else verdict.NAMES[bottleneck]


def write_total(
    recipe: Recipe, results: Sequence[PhaseResult], total: Total, dollars_per_hour: float | None, is_full: bool
) -> Iterator[str]:
    """Yield the recipe's hours, its bottlenecks, its evaluation and preparation, and the changes that help."""
    # The training: its hours, and what binds at which resolutions.
    yield (
        f"{recipe.name}: {recipe.epochs:g} epochs of ImageNet-1k ({recipe.epochs * IMAGENET_IMAGES / 1e6:,.1f} million "
        f"images) in {describe_hours(total.training, dollars_per_hour)}, at {mean_rate(results):,.0f} images/s on "
        "average over the images."
    )
    seconds = sum_seconds(results)
    for bottleneck, group in group_by_bottleneck(results).items():
        gain = gain_without(results, bottleneck)
        yield (
            f"The bottleneck is {name_part(bottleneck, is_full)} at {list_sizes([each.phase for each in group])} px "
            f"({sum_seconds(group) / seconds:.0%} of the training time); without its limit there, the recipe would be "
            f"at most {gain:.2f} x as fast."
        )

    # What is added to the training.
    prepared = total.preparation
    yield (
        f"Evaluation adds {describe_hours(total.evaluation, dollars_per_hour)}; preparing the shards once, with "
        f"this machine's cores, {describe_hours(prepared.hours, dollars_per_hour)} "
        f"({prepared.images_per_second_and_core:,.0f} images/s per core as in {prepared.source}). All together: "
        f"{describe_hours(total.hours, dollars_per_hour)}, of which preparation is {prepared.hours / total.hours:.0%}."
    )

    # The changes that help, and those that were not tried.
    gains = sum_gains(results)
    for each in gains:
        hours = total.training / each.gain
        yield (
            f"Possible change: {each.what}: {each.gain:.2f} x for the recipe; training in "
            f"{describe_hours(hours, dollars_per_hour)}."
        )
    if not gains:
        yield f"No change that was tried would gain {verdict.LEAST_GAIN - 1:.0%} or more for the recipe."
    if any(each.bottleneck == verdict.MODEL and not each.figures.shares_cores for each in results):
        yield "Not measured here: --compile default (torch.compile, which takes minutes per resolution)."
    if not is_full:
        yield "Not measured here: smaller files, the other placement, more threads; --full measures them in each phase."


def list_sizes(phases: Sequence[Phase]) -> str:
    """Return resolutions in words, such as `88, 104 and 120`."""
    *most, last = [str(phase.size) for phase in phases]
    return f"{', '.join(most)} and {last}" if most else last


def write_signs(found: "Sequence[tuple[Phase, Sign]]") -> Iterator[str]:
    """Yield one sentence for each sign, of the phase in which it is strongest, and the other phases that show it."""
    for name in dict.fromkeys(sign.name for _, sign in found):
        pairs = [pair for pair in found if pair[1].name == name]
        phase, sign = max(pairs, key=lambda pair: (pair[1].is_found, pair[1].share))
        others = [each for each, other in pairs if other.is_found and each != phase]
        also = f" Also at {list_sizes(others)} px." if others else ""
        yield f"At {phase.size} px: {sign.says}{also}"
