"""The verdict in sentences, for readers who rent machines by the hour: the bottleneck, its size, and the cost."""

from collections.abc import Iterator, Sequence

from verdict.advice import Advice, OtherPlacement
from verdict.bounds import (
    CORES,
    DECODE,
    MODEL,
    STORAGE,
    Figures,
    agreement,
    expected_loader_rate,
    expected_rate,
    find_bottleneck,
    find_bounds,
    remove_limit,
    share_cores,
    storage_rate,
)
from verdict.cost import Cost

LEAST_AGREEMENT, MOST_AGREEMENT = 0.9, 1.1  # measured rate / expected rate: below, images are lost; above, noise
PLACES = {"cpu": "the CPU", "gpu": "the GPU"}  # where images are decoded, by the placement's name
NAMES = {STORAGE: "storage", DECODE: "decoding", MODEL: "the model", CORES: "the number of CPU cores"}


def write_verdict(
    figures: Figures,
    advice: list[Advice],
    cost: Cost,
    other: OtherPlacement | None = None,
    signs: Sequence[str] = (),
) -> list[str]:
    """Return the verdict, one line per fact.

    Args:
        signs: sentences about further signs that were measured.
    """
    return [
        *_describe_bottleneck(figures),
        *_describe_agreement(figures),
        *_describe_storage(figures),
        *signs,
        *_describe_advice(figures, advice, cost),
        *_describe_placement(figures, advice, other),
        f"{cost.recipe.name} ({cost.recipe.epochs:g} epochs of ImageNet-1k) at the measured "
        f"{figures.train:,.0f} images/s: {cost.describe(figures.train)}.",
    ]


def _describe_bottleneck(figures: Figures) -> Iterator[str]:
    """Yield the bottleneck, the rate without it, and for the model how many such GPUs the loader could feed."""
    bottleneck = find_bottleneck(figures)
    free = remove_limit(figures, bottleneck)
    following = expected_rate(free)
    share = "" if not figures.shares_cores else _describe_shares(figures)
    yield f"The bottleneck is {NAMES[bottleneck]}: at most {expected_rate(figures):,.0f} images/s{share}."
    gain = following / expected_rate(figures)
    then = NAMES[find_bottleneck(free)]
    yield f"Without it training would reach {following:,.0f} images/s ({gain:.2f} x); the next bottleneck is {then}."
    if bottleneck == MODEL:
        yield _describe_headroom(figures)


def _describe_shares(figures: Figures) -> str:
    """Return the shares of decoding and of the model in the CPU time."""
    shares = share_cores(figures)
    return f" (decoding takes {shares[DECODE]:.0%} of the CPU time of an image, the model {shares[MODEL]:.0%})"


def _describe_headroom(figures: Figures) -> str:
    """Return how much faster the loader alone is than the model."""
    times = figures.loader / figures.model
    line = f"The loader alone delivers {figures.loader:,.0f} images/s, {times:.1f} x as many as the model consumes"
    return f"{line}: it could feed {int(times)} such GPUs." if not figures.shares_cores else f"{line}."


def _describe_agreement(figures: Figures) -> Iterator[str]:
    """Yield the measured rate of training compared with the expected one, and where images are lost."""
    reached, expected = agreement(figures), expected_rate(figures)
    if reached > MOST_AGREEMENT:
        yield (
            f"Training reached {figures.train:,.0f} images/s, more than its stages allow ({expected:,.0f}): "
            "other processes disturbed the measurement; measure again with larger --seconds."
        )
    elif reached >= LEAST_AGREEMENT:
        yield f"Training reached {figures.train:,.0f} images/s, {reached:.0%} of that limit: the stages explain it."
    else:
        of_loader = figures.loader / expected_loader_rate(figures)
        where = "between the loader and the model"
        if of_loader < LEAST_AGREEMENT:
            where = f"inside the loader, which alone reaches {of_loader:.0%} of the rate that its stages allow"
        yield f"Training reached {figures.train:,.0f} images/s: {1 - reached:.0%} is lost {where}."


def _describe_storage(figures: Figures) -> Iterator[str]:
    """Yield how storage was taken into account, if that needs an explanation."""
    if figures.read_share < 1:
        yield (
            f"Of an image's {figures.mean_bytes / 1000:,.0f} KB, {figures.read_share:.0%} are read: "
            "the segments of its crop (restart shards)."
        )
    if figures.read_cold is None:
        yield (
            "Cold reads were not measured: the shards could not be dropped from the page cache "
            "(impossible on tmpfs, and unknown for files of other users)."
        )
    elif figures.fits_memory and figures.read_cold < expected_rate(figures):
        yield (
            "The data fits in memory, so only the first epoch waits for storage: "
            f"it reads {figures.read_cold:,.0f} images/s."
        )
    elif not figures.fits_memory:
        yield f"The data does not fit in memory, so storage delivers {storage_rate(figures):,.0f} images/s (read cold)."


def _describe_advice(figures: Figures, advice: list[Advice], cost: Cost) -> Iterator[str]:
    """Yield each advice with its gain and cost, and changes that were not measured."""
    for each in advice:
        gain = each.images_per_second / figures.train
        yield (
            f"Possible change: {each.what}: {each.images_per_second:,.0f} images/s ({gain:.2f} x); "
            f"{cost.recipe.name} in {cost.describe(each.images_per_second)}."
        )
    bottleneck = find_bottleneck(figures)
    if bottleneck == MODEL and not figures.shares_cores:
        yield "Not measured here: --compile default (torch.compile, which takes minutes); try it with this command."
    if bottleneck == DECODE and figures.decodes_on_gpu:
        yield (
            "Not measured here: another share of the images for the GPU's hardware JPEG decoder, if it has one "
            "(--loader.hw-decoder-load 0.99); --tune tries it."
        )
    if bottleneck == STORAGE:
        yield "Not measured here: --data.order blocks, which reads long runs, for storage with slow random reads."
    if not advice:
        yield f"No change that was tried would gain 3% or more; {describe_bounds(figures)}."


def _describe_placement(figures: Figures, advice: list[Advice], other: OtherPlacement | None) -> Iterator[str]:
    """Yield the rate of the other placement, unless the advice already names it."""
    if other is None or any("placement" in each.change for each in advice):
        return
    what = f"Decoding on {PLACES[other.there]} instead of {PLACES[other.here]}"
    if other.rate is None:
        yield f"{what} cannot run here: {other.failure}."
    else:
        yield f"{what}: {figures.train * other.rate:,.0f} instead of {figures.train:,.0f} images/s."


def describe_bounds(figures: Figures) -> str:
    """Return the bounds in words, such as `storage 20,000, decode 1,300 images/s`."""
    return ", ".join(f"{name} {rate:,.0f}" for name, rate in find_bounds(figures).items()) + " images/s"
