"""The verdict on a complete recipe in sentences: its hours and dollars, what binds at which resolution, what helps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from phases.plan import Phase
from phases.total import PhaseResult, gain_without, group_by_bottleneck, mean_rate, sum_gains, sum_seconds
from signs.sign import Sign
from verdict.advice import LEAST_GAIN
from verdict.bounds import DECODE, MODEL
from verdict.cost import IMAGENET_IMAGES, describe_hours
from verdict.words import NAMES

from train.config import Recipe

LOADER_NAME = "the loader"  # in the place of decoding, if that was not measured alone


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


def name_part(bottleneck: str, is_full: bool) -> str:
    """Return the name of a bottleneck."""
    return LOADER_NAME if bottleneck == DECODE and not is_full else NAMES[bottleneck]


def write_total(
    recipe: Recipe, results: Sequence[PhaseResult], total: Total, dollars_per_hour: float | None, is_full: bool
) -> Iterator[str]:
    """Yield the recipe's hours, its bottlenecks, its evaluation and preparation, and the changes that help."""
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
    prepared = total.preparation
    yield (
        f"Evaluation adds {describe_hours(total.evaluation, dollars_per_hour)}; preparing the shards once, with "
        f"this machine's cores, {describe_hours(prepared.hours, dollars_per_hour)} "
        f"({prepared.images_per_second_and_core:,.0f} images/s per core as in {prepared.source}). All together: "
        f"{describe_hours(total.hours, dollars_per_hour)}, of which preparation is {prepared.hours / total.hours:.0%}."
    )
    gains = sum_gains(results)
    for each in gains:
        hours = total.training / each.gain
        yield (
            f"Possible change: {each.what}: {each.gain:.2f} x for the recipe; training in "
            f"{describe_hours(hours, dollars_per_hour)}."
        )
    if not gains:
        yield f"No change that was tried would gain {LEAST_GAIN - 1:.0%} or more for the recipe."
    if any(each.bottleneck == MODEL and not each.figures.shares_cores for each in results):
        yield "Not measured here: --compile default (torch.compile, which takes minutes per resolution)."
    if not is_full:
        yield "Not measured here: smaller files, the other placement, more threads; --full measures them in each phase."


def list_sizes(phases: Sequence[Phase]) -> str:
    """Return resolutions in words, such as `88, 104 and 120`."""
    *most, last = [str(phase.size) for phase in phases]
    return f"{', '.join(most)} and {last}" if most else last


def write_signs(found: Sequence[tuple[Phase, Sign]]) -> Iterator[str]:
    """Yield one sentence for each sign, of the phase in which it is strongest, and the other phases that show it."""
    names = dict.fromkeys(sign.name for _, sign in found)
    for name in names:
        pairs = [pair for pair in found if pair[1].name == name]
        phase, sign = max(pairs, key=lambda pair: (pair[1].is_found, pair[1].share))
        others = [each for each, other in pairs if other.is_found and each != phase]
        also = f" Also at {list_sizes(others)} px." if others else ""
        yield f"At {phase.size} px: {sign.says}{also}"
