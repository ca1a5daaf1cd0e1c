"""The verdict on a measurement: the bottleneck, what would help, and hours and dollars. Pure functions of the figures.

Stages that run at the same time are as fast as the slowest of them. On a CPU, decoding and the model also share the
cores: training then cannot be faster than the number of cores divided by the CPU time per image of all stages.

Each advice is a promise that can be tested. A change is applied to the measured figures, and the bounds are computed
again. Where its effect on a stage cannot be computed, the stage was measured with the change (a probe). What training
loses between its stages now, it is assumed to lose after the change too.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from train.config import Recipe

IMAGENET_IMAGES = 1_281_167  # of ImageNet-1k's train split
MOST_MINUTES, MOST_HOURS = 120, 100  # longer times are given in hours, or in days

# The parts of the pipeline that can bind.
STORAGE, DECODE, MODEL, CORES = "storage", "decode", "model", "cores"
NAMES = {STORAGE: "storage", DECODE: "decoding", MODEL: "the model", CORES: "the number of CPU cores"}
PLACES = {"cpu": "the CPU", "gpu": "the GPU"}  # where images are decoded, by the placement's name
# A stage with this share of the CPU time (twice as much as all others together) is the bottleneck, not the cores.
DOMINANT = 2 / 3

LEAST_GAIN = 1.03  # relative to training now; a smaller gain is noise
LEAST_AGREEMENT, MOST_AGREEMENT = 0.9, 1.1  # measured rate / expected rate: below, images are lost; above, noise
SPARE = 1.2  # a disk that is only as fast as the other stages would still delay them

# The probes, and which of them are worth their time, by bottleneck.
FREE_STORAGE, THREADS = "training from memory", "threads"
SMALLER_FILES, SHORT_FILES = "smaller files", "files of 256 px"
SMALLER_IMAGES, LARGER_BATCH = "smaller images", "a batch twice as large"
WANTED = {
    STORAGE: (FREE_STORAGE, SMALLER_FILES),
    DECODE: (THREADS, SMALLER_FILES),
    MODEL: (SMALLER_IMAGES,),
    CORES: (SMALLER_FILES, SMALLER_IMAGES),
}
WANTED_OF_RECIPE = {  # for a recipe, whose resolutions are given
    STORAGE: (FREE_STORAGE, SMALLER_FILES, SHORT_FILES),
    DECODE: (THREADS, SMALLER_FILES, SHORT_FILES),
    MODEL: (),
    CORES: (SMALLER_FILES, SHORT_FILES),
}
# Ways to store smaller files: the options of prep/shard.py, by the probe that measures them.
MAX_SIDE, SHORT_SIDE, QUALITY = 500, 256, 90
FILES = {
    SMALLER_FILES: {"max_side": MAX_SIDE, "quality": QUALITY},
    SHORT_FILES: {"short_side": SHORT_SIDE, "quality": QUALITY},
}


@dataclass(frozen=True)
class Figures:
    """The measured figures: images/s and CPU seconds per image, over all processes."""

    read_warm: float
    decode: float
    model: float
    loader: float
    train: float
    read_cold: float | None  # None: the page cache could not be emptied
    fits_memory: bool  # the data fits in memory, so only the first epoch reads it cold
    cpu_read: float
    cpu_decode: float
    cpu_model: float
    num_cores: float
    shares_cores: bool  # the model runs on the CPU too
    decodes_on_gpu: bool  # images are decoded on the GPU that trains
    mean_bytes: float  # of a stored image
    read_share: float = 1.0  # share of them that is read; less than 1 from restart shards


@dataclass(frozen=True)
class Probe:
    """A stage measured with a change, relative to the unchanged stage."""

    rate: float  # images/s, as a ratio
    cpu: float  # CPU time per image, as a ratio
    value: float  # the changed setting: number of threads, mean bytes of a file, images per step, or pixels


@dataclass(frozen=True)
class OtherPlacement:
    """Training with images decoded in the other place, "cpu" or "gpu", alternating with training as it is."""

    here: str  # where the measured training decodes
    there: str  # the other place
    decode: str  # "roi" or "full", of the other placement
    rate: float | None  # images/s there divided by images/s here; None: it cannot run
    failure: str = ""  # why it cannot run


@dataclass(frozen=True)
class Scaling:
    """The factors of the stages on a machine with twice the cores: 2.0, or less where a setting limits them."""

    decode: float
    model: float


@dataclass(frozen=True)
class Advice:
    """One change; `what` describes it to people, `change` to programs."""

    what: str
    images_per_second: float
    change: dict[str, Any]


# The bounds.


def storage_rate(figures: Figures) -> float:
    """Return images/s of reading in the long run: from memory if the data fits there, else from storage."""
    if figures.fits_memory or figures.read_cold is None:
        return figures.read_warm
    return min(figures.read_cold, figures.read_warm)


def find_bounds(figures: Figures) -> dict[str, float]:
    """Return the images/s that training cannot exceed, by the part of the pipeline that sets the bound."""
    bounds = {STORAGE: storage_rate(figures), DECODE: figures.decode, MODEL: figures.model}
    cpu_seconds = figures.cpu_read + figures.cpu_decode + figures.cpu_model
    if figures.shares_cores and cpu_seconds > 0:
        bounds[CORES] = figures.num_cores / cpu_seconds
    return bounds


def expected_rate(figures: Figures) -> float:
    """Return the images/s that training should reach: the lowest bound."""
    return min(find_bounds(figures).values())


def find_bottleneck(figures: Figures) -> str:
    """Return the part with the lowest bound; instead of the cores, a stage that uses most of their time."""
    bounds = find_bounds(figures)
    lowest = min(bounds, key=lambda name: bounds[name])
    if lowest != CORES:
        return lowest
    shares = share_cores(figures)
    heaviest = max(shares, key=lambda name: shares[name])
    return heaviest if shares[heaviest] >= DOMINANT else CORES


def share_cores(figures: Figures) -> dict[str, float]:
    """Return each stage's share of the CPU time of an image."""
    times = {STORAGE: figures.cpu_read, DECODE: figures.cpu_decode, MODEL: figures.cpu_model}
    return {name: each / sum(times.values()) for name, each in times.items()}


def remove_limit(figures: Figures, name: str) -> Figures:
    """Return the figures as if the named part took no time."""
    if name == STORAGE:
        return replace(figures, read_cold=math.inf, read_warm=math.inf)
    if name == DECODE:
        return replace(figures, decode=math.inf, cpu_decode=0.0)
    if name == MODEL:
        return replace(figures, model=math.inf, cpu_model=0.0)
    return replace(figures, num_cores=math.inf)


def agreement(figures: Figures) -> float:
    """Return the measured rate of training as a share of the expected one."""
    return figures.train / expected_rate(figures)


# The advice.


def advise(
    figures: Figures, probes: Mapping[str, Probe], scaling: Scaling, other: OtherPlacement | None = None
) -> list[Advice]:
    """Return the changes that help against the bottleneck, the largest gain first.

    A faster placement is included whatever the bottleneck is.
    """
    promised = promise_changes(figures, probes, scaling, other)
    helpful = [each for each in promised if each.images_per_second >= LEAST_GAIN * figures.train]
    return sorted(helpful, key=lambda each: -each.images_per_second)


def promise_changes(
    figures: Figures, probes: Mapping[str, Probe], scaling: Scaling, other: OtherPlacement | None = None
) -> list[Advice]:
    """Return all changes that were tried against the bottleneck, those without a gain too."""
    # Training keeps the share of its bounds that it reaches now, at most 1; with storage as the bottleneck, the share
    # that training from memory reaches.
    kept = min(1.0, agreement(figures))
    if find_bottleneck(figures) == STORAGE and FREE_STORAGE in probes:
        kept = min(1.0, figures.train * probes[FREE_STORAGE].rate / expected_rate(remove_limit(figures, STORAGE)))

    # Apply each change to the figures. While training waits for storage, it loses nothing between the other stages.
    promised = []
    for what, changed, change in _list_changes(figures, probes, scaling):
        rate = min(storage_rate(changed), kept * expected_rate(remove_limit(changed, STORAGE)))
        promised.append(Advice(what, rate, change))

    # Training was measured with the other placement, so its rate needs no bounds.
    if other is not None and other.rate is not None:
        what = f"--loader.placement {other.there} (decode {other.decode})"
        change = {"placement": other.there, "decode": other.decode}
        promised.append(Advice(what, figures.train * other.rate, change))
    return promised


Change = tuple[str, Figures, dict[str, Any]]  # in words, the figures after it, and for programs


def _list_changes(figures: Figures, probes: Mapping[str, Probe], scaling: Scaling) -> Iterator[Change]:
    """Yield the changes that can help against the bottleneck, each with the figures after it."""
    bottleneck, twice = find_bottleneck(figures), 2 * figures.num_cores
    if bottleneck == STORAGE:
        free = remove_limit(figures, STORAGE)
        needed = SPARE * expected_rate(free) * figures.read_share * figures.mean_bytes / 1e6
        what = f"storage that reads images at {needed:,.0f} MB/s (a local NVMe, or more volumes)"
        yield what, free, {"megabytes_per_second": needed}
        # Data that fits in memory is read from storage in the first epoch only.
        if not figures.fits_memory:
            what = "a machine whose memory holds the complete dataset"
            yield what, replace(figures, fits_memory=True), {"memory": "all"}
    for name in (THREADS, *FILES, LARGER_BATCH, SMALLER_IMAGES):
        if name in probes:
            yield _change_by_probe(figures, name, probes[name])
    decoding_needs_cores = bottleneck == DECODE and not figures.decodes_on_gpu
    if decoding_needs_cores or (bottleneck in (CORES, MODEL) and figures.shares_cores):
        model = scaling.model * figures.model if figures.shares_cores else figures.model
        changed = replace(figures, num_cores=twice, decode=scaling.decode * figures.decode, model=model)
        yield f"{twice:g} cores of this kind", changed, {"cores": twice}
    if bottleneck == MODEL and not figures.shares_cores:
        yield "a GPU twice as fast", replace(figures, model=2 * figures.model), {"gpu": 2}


def _change_by_probe(figures: Figures, name: str, probe: Probe) -> Change:
    """Return the change that a probe measured."""
    value = round(probe.value)
    if name in (LARGER_BATCH, SMALLER_IMAGES):
        # At a lower resolution the measured decoding stays, since most of it does not depend on the resolution.
        changed = replace(figures, model=figures.model * probe.rate, cpu_model=figures.cpu_model * probe.cpu)
        if name == SMALLER_IMAGES:
            return f"a resolution of {value} pixels (--transform.size {value})", changed, {"size": value}
        what = f"{value} images per step and process (another training: its effect on accuracy was not measured)"
        return what, changed, {"batch_size": value}
    changed = replace(figures, decode=figures.decode * probe.rate, cpu_decode=figures.cpu_decode * probe.cpu)
    if name == THREADS:
        what = f"--loader.num-threads {value} (in this command --threads {value}): not all cores are used"
        return what, changed, {"num_threads": value}

    # Smaller files: fewer bytes to decode, which takes most of the time, and fewer to read.
    ratio = figures.mean_bytes / probe.value
    changed = replace(
        changed,
        read_warm=figures.read_warm * ratio,
        read_cold=figures.read_cold and figures.read_cold * ratio,
        cpu_read=figures.cpu_read / ratio,
        mean_bytes=probe.value,
    )
    flags = " ".join(f"--{option.replace('_', '-')} {number}" for option, number in FILES[name].items())
    flags += " --restarts" * (figures.read_share < 1)
    sizes = f"{probe.value / 1000:,.0f} KB per image instead of {figures.mean_bytes / 1000:,.0f}"
    return f"smaller files: prep/shard.py {flags} ({sizes})", changed, dict(FILES[name])


# Hours and dollars.


@dataclass(frozen=True)
class Cost:
    """The cost of one recipe on ImageNet-1k, without evaluation and start-up."""

    recipe: Recipe
    dollars_per_hour: float | None

    def hours(self, images_per_second: float) -> float:
        """Return the hours of the recipe at a rate."""
        return self.recipe.epochs * IMAGENET_IMAGES / images_per_second / 3600

    def describe(self, images_per_second: float) -> str:
        """Return the cost in words, such as `12.3 hours, 69.74 dollars`."""
        return describe_hours(self.hours(images_per_second), self.dollars_per_hour)

    def to_dict(self, images_per_second: float) -> dict[str, Any]:
        """Return the cost for a record."""
        hours, price = self.hours(images_per_second), self.dollars_per_hour
        dollars = None if price is None else hours * price
        return {"name": self.recipe.name, "epochs": self.recipe.epochs, "hours": hours, "dollars": dollars}


def describe_hours(hours: float, dollars_per_hour: float | None) -> str:
    """Return a time and its cost in words, such as `12.3 hours, 69.74 dollars`."""
    if hours < MOST_MINUTES / 60:
        shown = f"{60 * hours:,.1f} minutes"
    else:
        shown = f"{hours:,.1f} hours" if hours < MOST_HOURS else f"{hours / 24:,.1f} days"
    return shown if dollars_per_hour is None else f"{shown}, {hours * dollars_per_hour:,.2f} dollars"


# The verdict in sentences.


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
        _describe_agreement(figures),
        *_describe_storage(figures),
        *signs,
        *_describe_advice(figures, advice, cost),
        *_describe_placement(figures, advice, other),
        f"{cost.recipe.name} ({cost.recipe.epochs:g} epochs of ImageNet-1k) at the measured "
        f"{figures.train:,.0f} images/s: {cost.describe(figures.train)}.",
    ]


def _describe_bottleneck(figures: Figures) -> Iterator[str]:
    """Yield the bottleneck, the rate without it, and for the model how many such GPUs the loader could feed."""
    bottleneck, expected = find_bottleneck(figures), expected_rate(figures)
    free = remove_limit(figures, bottleneck)
    following, then, share = expected_rate(free), NAMES[find_bottleneck(free)], ""
    if figures.shares_cores:
        shares = share_cores(figures)
        share = f" (decoding takes {shares[DECODE]:.0%} of the CPU time of an image, the model {shares[MODEL]:.0%})"
    yield f"The bottleneck is {NAMES[bottleneck]}: at most {expected:,.0f} images/s{share}."
    gain = following / expected
    yield f"Without it training would reach {following:,.0f} images/s ({gain:.2f} x); the next bottleneck is {then}."
    if bottleneck == MODEL:
        times = figures.loader / figures.model
        could_feed = "" if figures.shares_cores else f": it could feed {int(times)} such GPUs"
        yield (
            f"The loader alone delivers {figures.loader:,.0f} images/s, {times:.1f} x as many as the model consumes"
            f"{could_feed}."
        )


def _describe_agreement(figures: Figures) -> str:
    """Return the measured rate of training compared with the expected one, and where images are lost."""
    reached, expected = agreement(figures), expected_rate(figures)
    if reached > MOST_AGREEMENT:
        return (
            f"Training reached {figures.train:,.0f} images/s, more than its stages allow ({expected:,.0f}): "
            "other processes disturbed the measurement; measure again with larger --seconds."
        )
    if reached >= LEAST_AGREEMENT:
        return f"Training reached {figures.train:,.0f} images/s, {reached:.0%} of that limit: the stages explain it."
    of_loader = figures.loader / expected_rate(remove_limit(figures, MODEL))
    where = "between the loader and the model"
    if of_loader < LEAST_AGREEMENT:
        where = f"inside the loader, which alone reaches {of_loader:.0%} of the rate that its stages allow"
    return f"Training reached {figures.train:,.0f} images/s: {1 - reached:.0%} is lost {where}."


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
        bounds = ", ".join(f"{name} {rate:,.0f}" for name, rate in find_bounds(figures).items())
        yield f"No change that was tried would gain 3% or more; {bounds} images/s."


def _describe_placement(figures: Figures, advice: list[Advice], other: OtherPlacement | None) -> Iterator[str]:
    """Yield the rate of the other placement, unless the advice already names it."""
    if other is None or any("placement" in each.change for each in advice):
        return
    what = f"Decoding on {PLACES[other.there]} instead of {PLACES[other.here]}"
    if other.rate is None:
        yield f"{what} cannot run here: {other.failure}."
    else:
        yield f"{what}: {figures.train * other.rate:,.0f} instead of {figures.train:,.0f} images/s."
