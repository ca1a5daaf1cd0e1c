"""Changes that would help, each with the images/s that training would then reach: a promise that can be tested.

A change is applied to the measured figures, and the bounds are computed again. Where its effect on a stage cannot be
computed, the stage was measured with the change (a probe). What training loses between its stages now, it is assumed
to lose after the change too.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from verdict.bounds import (
    CORES,
    DECODE,
    MODEL,
    STORAGE,
    Figures,
    agreement,
    expected_rate,
    find_bottleneck,
    remove_limit,
    storage_rate,
)

LEAST_GAIN = 1.03  # relative to training now; a smaller gain is noise
SPARE = 1.2  # a disk that is only as fast as the other stages would still delay them
FREE_STORAGE, THREADS = "training from memory", "threads"
SMALLER_FILES, SMALLER_IMAGES = "smaller files", "smaller images"
SHORT_FILES, LARGER_BATCH = "files of 256 px", "a batch twice as large"
WANTED = {  # the probes that are worth their time, by bottleneck
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
MAX_SIDE, SHORT_SIDE, QUALITY = 500, 256, 90
# Ways to store smaller files: the options of prep/shard.py, by the probe that measures them.
FILES = {
    SMALLER_FILES: {"max_side": MAX_SIDE, "quality": QUALITY},
    SHORT_FILES: {"short_side": SHORT_SIDE, "quality": QUALITY},
}


@dataclass(frozen=True)
class Probe:
    """A stage measured with a change, relative to the unchanged stage."""

    rate: float  # images/s, as a ratio
    cpu: float  # CPU time per image, as a ratio
    value: float  # the changed setting: number of threads, mean bytes of a file, or pixels


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
    kept = _keep(figures, probes)
    # Apply each change to the figures; training keeps the share of its bounds that it reaches now.
    promised = [
        Advice(what, _promise(changed, kept), change) for what, changed, change in _changes(figures, probes, scaling)
    ]
    return [*promised, *_advise_placement(figures, other)]


def _keep(figures: Figures, probes: Mapping[str, Probe]) -> float:
    """Return the share of its bounds that training reaches, at most 1.

    With storage as the bottleneck, the share that training from memory reaches.
    """
    if find_bottleneck(figures) == STORAGE and FREE_STORAGE in probes:
        free = remove_limit(figures, STORAGE)
        return min(1.0, figures.train * probes[FREE_STORAGE].rate / expected_rate(free))
    return min(1.0, agreement(figures))


def _promise(changed: Figures, kept: float) -> float:
    """Return images/s after a change; while training waits for storage, it loses nothing between the other stages."""
    return min(storage_rate(changed), kept * expected_rate(remove_limit(changed, STORAGE)))


def _advise_placement(figures: Figures, other: OtherPlacement | None) -> Iterator[Advice]:
    """Yield the other placement if it can run. Training was measured with it, so its rate needs no bounds."""
    if other is not None and other.rate is not None:
        what = f"--loader.placement {other.there} (decode {other.decode})"
        yield Advice(what, figures.train * other.rate, {"placement": other.there, "decode": other.decode})


Change = tuple[str, Figures, dict[str, Any]]


def _changes(figures: Figures, probes: Mapping[str, Probe], scaling: Scaling) -> Iterator[Change]:
    """Yield the changes that can help against the bottleneck, each with the figures after it."""
    bottleneck = find_bottleneck(figures)
    if bottleneck == STORAGE:
        yield from _change_storage(figures)
    if bottleneck == DECODE and THREADS in probes:
        yield _change_threads(figures, probes[THREADS])
    for name in [name for name in FILES if name in probes]:
        yield _change_files(figures, probes[name], FILES[name])
    if LARGER_BATCH in probes:
        yield _change_batch(figures, probes[LARGER_BATCH])
    if SMALLER_IMAGES in probes:
        yield _change_size(figures, probes[SMALLER_IMAGES])
    decoding_needs_cores = bottleneck == DECODE and not figures.decodes_on_gpu
    if decoding_needs_cores or (bottleneck in (CORES, MODEL) and figures.shares_cores):
        yield _change_cores(figures, scaling)
    if bottleneck == MODEL and not figures.shares_cores:
        yield "a GPU twice as fast", replace(figures, model=2 * figures.model), {"gpu": 2}


def _change_storage(figures: Figures) -> Iterator[Change]:
    """Yield the changes to storage: more bandwidth, or memory for the complete dataset."""
    free = remove_limit(figures, STORAGE)
    needed = SPARE * expected_rate(free) * figures.read_share * figures.mean_bytes / 1e6
    what = f"storage that reads images at {needed:,.0f} MB/s (a local NVMe, or more volumes)"
    yield what, free, {"megabytes_per_second": needed}
    # Data that fits in memory is read from storage in the first epoch only.
    if not figures.fits_memory:
        yield "a machine whose memory holds the complete dataset", replace(figures, fits_memory=True), {"memory": "all"}


def _change_threads(figures: Figures, probe: Probe) -> Change:
    """Return the change to the number of threads that the probe had."""
    changed = replace(figures, decode=figures.decode * probe.rate, cpu_decode=figures.cpu_decode * probe.cpu)
    num_threads = round(probe.value)
    what = f"--loader.num-threads {num_threads} (in this command --threads {num_threads}): not all cores are used"
    return what, changed, {"num_threads": num_threads}


def _change_files(figures: Figures, probe: Probe, options: dict[str, int]) -> Change:
    """Return the change to smaller files: fewer bytes to read, and fewer to decode, which takes most of the time."""
    ratio = figures.mean_bytes / probe.value
    changed = replace(
        figures,
        decode=figures.decode * probe.rate,
        cpu_decode=figures.cpu_decode * probe.cpu,
        read_warm=figures.read_warm * ratio,
        read_cold=figures.read_cold and figures.read_cold * ratio,
        cpu_read=figures.cpu_read / ratio,
        mean_bytes=probe.value,
    )
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in options.items())
    flags += " --restarts" * (figures.read_share < 1)
    what = (
        f"smaller files: prep/shard.py {flags} "
        f"({probe.value / 1000:,.0f} KB per image instead of {figures.mean_bytes / 1000:,.0f})"
    )
    return what, changed, dict(options)


def _change_batch(figures: Figures, probe: Probe) -> Change:
    """Return the change to a step with more images in each process."""
    changed = replace(figures, model=figures.model * probe.rate, cpu_model=figures.cpu_model * probe.cpu)
    num_images = round(probe.value)
    what = f"{num_images} images per step and process (another training: its effect on accuracy was not measured)"
    return what, changed, {"batch_size": num_images}


def _change_size(figures: Figures, probe: Probe) -> Change:
    """Return the change to a lower resolution; the measured decoding stays, since most of it does not depend on it."""
    changed = replace(figures, model=figures.model * probe.rate, cpu_model=figures.cpu_model * probe.cpu)
    size = round(probe.value)
    return f"a resolution of {size} pixels (--transform.size {size})", changed, {"size": size}


def _change_cores(figures: Figures, scaling: Scaling) -> Change:
    """Return the change to twice the cores."""
    changed = replace(
        figures,
        num_cores=2 * figures.num_cores,
        decode=scaling.decode * figures.decode,
        model=scaling.model * figures.model if figures.shares_cores else figures.model,
    )
    return f"{2 * figures.num_cores:g} cores of this kind", changed, {"cores": 2 * figures.num_cores}
