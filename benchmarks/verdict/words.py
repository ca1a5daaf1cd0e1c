"""The verdict in words, for someone who rents machines by the hour: what binds, by how much, what it costs."""

from collections.abc import Iterator

from verdict.advice import Advice, OtherPlacement
from verdict.bounds import (
    CORES,
    DECODE,
    MODEL,
    STORAGE,
    Figures,
    agreement,
    expect,
    expect_loader,
    find_binding,
    find_bounds,
    lift,
    share_cores,
    storage_rate,
)
from verdict.cost import Cost

LEAST_AGREEMENT, MOST_AGREEMENT = 0.9, 1.1
PLACES = {"cpu": "the CPU", "gpu": "the GPU"}  # where images are decoded, by the placement's name
NAMES = {STORAGE: "storage", DECODE: "decoding", MODEL: "the model", CORES: "the number of CPU cores"}


def speak(figures: Figures, advice: list[Advice], cost: Cost, other: OtherPlacement | None = None) -> list[str]:
    """A line for each thing to know."""
    return [
        *_say_binding(figures),
        *_say_agreement(figures),
        *_say_storage(figures),
        *_say_advice(figures, advice, cost),
        *_say_placement(figures, advice, other),
        f"{cost.recipe.name} ({cost.recipe.epochs:g} epochs of ImageNet-1k) at the measured "
        f"{figures.train:,.0f} images/s: {cost.say(figures.train)}.",
    ]


def _say_binding(figures: Figures) -> Iterator[str]:
    binds = find_binding(figures)
    free = lift(figures, binds)
    following = expect(free)
    after = NAMES[find_binding(free)]
    share = "" if not figures.shares_cores else _say_shares(figures)
    yield f"{NAMES[binds].capitalize()} binds training: at most {expect(figures):,.0f} images/s{share}."
    gain = following / expect(figures)
    yield f"Without that limit it would reach {following:,.0f} ({gain:.2f} x); then {after} binds."
    if binds == MODEL:
        yield _say_headroom(figures)


def _say_shares(figures: Figures) -> str:
    shares = share_cores(figures)
    return f" (of an image's CPU time decoding takes {shares[DECODE]:.0%}, the model {shares[MODEL]:.0%})"


def _say_headroom(figures: Figures) -> str:
    times = figures.loader / figures.model
    line = f"The loader alone does {figures.loader:,.0f} images/s, {times:.1f} x what the model takes"
    return f"{line}: it would feed {int(times)} such GPUs." if not figures.shares_cores else f"{line}."


def _say_agreement(figures: Figures) -> Iterator[str]:
    reached, expected = agreement(figures), expect(figures)
    if reached > MOST_AGREEMENT:
        yield (
            f"Training was measured at {figures.train:,.0f}, above what its stages allow ({expected:,.0f}): "
            "the machine was not at rest; measure again, with more --seconds."
        )
    elif reached >= LEAST_AGREEMENT:
        yield f"Training was measured at {figures.train:,.0f} images/s, {reached:.0%} of that: the stages explain it."
    else:
        of_loader = figures.loader / expect_loader(figures)
        where = "between the loader and the model"
        if of_loader < LEAST_AGREEMENT:
            where = f"inside the loader, which alone reaches {of_loader:.0%} of what its stages allow"
        yield f"Training was measured at {figures.train:,.0f} images/s: {1 - reached:.0%} are lost, {where}."


def _say_storage(figures: Figures) -> Iterator[str]:
    if figures.read_cold is None:
        yield (
            "Nothing is said of cold reads: the page cache could not be emptied of the shards "
            "(on tmpfs it never can, and of other users' files it cannot be told)."
        )
    elif figures.fits_memory and figures.read_cold < expect(figures):
        yield (
            "The data fits into memory, so that only the first epoch waits for storage: "
            f"it reads at {figures.read_cold:,.0f} images/s."
        )
    elif not figures.fits_memory:
        yield f"The data does not fit into memory: storage counts as read cold, {storage_rate(figures):,.0f} images/s."


def _say_advice(figures: Figures, advice: list[Advice], cost: Cost) -> Iterator[str]:
    for each in advice:
        gain = each.images_per_second / figures.train
        yield (
            f"To change: {each.what}: {each.images_per_second:,.0f} images/s ({gain:.2f} x); "
            f"{cost.recipe.name} in {cost.say(each.images_per_second)}."
        )
    binds = find_binding(figures)
    if binds == MODEL and not figures.shares_cores:
        yield "Not measured here: --compile default (torch.compile; minutes to compile), to be tried with this command."
    if binds == DECODE and figures.decodes_on_gpu:
        yield (
            "Not measured here: another share of the images for the GPU's own JPEG decoder, where it has one "
            "(--loader.hw-decoder-load 0.99); --tune tries it."
        )
    if binds == STORAGE:
        yield "Not measured here: --data.order blocks, which reads in long runs, for storage that hates random reads."
    if not advice:
        yield f"Nothing that was tried would raise it by 3% or more; {describe_bounds(figures)}."


def _say_placement(figures: Figures, advice: list[Advice], other: OtherPlacement | None) -> Iterator[str]:
    """Yield what the other placement gives, unless the advice already says it."""
    if other is None or any("placement" in each.change for each in advice):
        return
    what = f"Decoding on {PLACES[other.there]} instead of {PLACES[other.here]}"
    if other.rate is None:
        yield f"{what} cannot run here: {other.failure}."
    else:
        yield f"{what}: {figures.train * other.rate:,.0f} against {figures.train:,.0f} images/s."


def describe_bounds(figures: Figures) -> str:
    """As in `storage 20,000, decode 1,300 images/s`."""
    return ", ".join(f"{name} {rate:,.0f}" for name, rate in find_bounds(figures).items()) + " images/s"
