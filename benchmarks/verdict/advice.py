"""What to change, and the images/s that training would then reach: each a promise that can be held to.

A change is put into the measured figures, and the bounds are taken anew. Where its effect on a stage is not a matter of
arithmetic, the stage was measured with it (a probe). What training loses between its stages now it will lose then too.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from verdict.bounds import CORES, DECODE, MODEL, STORAGE, Figures, agreement, expect, find_binding, lift, storage_rate

LEAST_GAIN = 1.03  # over what training reaches now: less is noise
SPARE = 1.2  # a disk that is only just as fast as the rest would still hold it up
FREE_STORAGE, THREADS = "training from memory", "threads"
SMALLER_FILES, SMALLER_IMAGES = "smaller files", "smaller images"
WANTED = {  # the probes that are worth their time, by what binds
    STORAGE: (FREE_STORAGE, SMALLER_FILES),
    DECODE: (THREADS, SMALLER_FILES),
    MODEL: (SMALLER_IMAGES,),
    CORES: (SMALLER_FILES, SMALLER_IMAGES),
}
MAX_SIDE, QUALITY = 500, 90


@dataclass(frozen=True)
class Probe:
    """A stage measured with something changed, beside itself as it was."""

    rate: float  # images/s, as a ratio
    cpu: float  # CPU time an image, as a ratio
    value: float  # of what was changed: threads, mean bytes of a file, pixels


@dataclass(frozen=True)
class OtherPlacement:
    """Training with the images decoded in the other place, "cpu" or "gpu", measured in turns with itself as it was."""

    here: str  # where the measured training decodes
    there: str
    decode: str  # "roi" or "full", of the other placement
    rate: float | None  # images/s there, as a ratio to here; None: it cannot run
    failure: str = ""  # why it cannot run


@dataclass(frozen=True)
class Scaling:
    """What becomes of the stages on a machine with twice the cores: 2.0, or 1.0 where a setting holds them back."""

    decode: float
    model: float


@dataclass(frozen=True)
class Advice:
    """One change; `change` says it to programs."""

    what: str
    images_per_second: float
    change: dict[str, Any]


def advise(
    figures: Figures, probes: Mapping[str, Probe], scaling: Scaling, other: OtherPlacement | None = None
) -> list[Advice]:
    """What would help against what binds, and another placement whatever binds; the largest gain first."""
    kept = _keep(figures, probes)
    promised = [
        Advice(what, _promise(changed, kept), change) for what, changed, change in _changes(figures, probes, scaling)
    ]
    promised += _advise_placement(figures, other)
    helpful = [each for each in promised if each.images_per_second >= LEAST_GAIN * figures.train]
    return sorted(helpful, key=lambda each: -each.images_per_second)


def _keep(figures: Figures, probes: Mapping[str, Probe]) -> float:
    """What training reaches of its bounds, at most 1; where storage binds, that of training from memory."""
    if find_binding(figures) == STORAGE and FREE_STORAGE in probes:
        free = lift(figures, STORAGE)
        return min(1.0, figures.train * probes[FREE_STORAGE].rate / expect(free))
    return min(1.0, agreement(figures))


def _promise(changed: Figures, kept: float) -> float:
    """Images/s: who waits for storage loses nothing else meanwhile."""
    return min(storage_rate(changed), kept * expect(lift(changed, STORAGE)))


def _advise_placement(figures: Figures, other: OtherPlacement | None) -> Iterator[Advice]:
    """Yield the other placement if it can run. Training itself was measured with it: its rate needs no bounds."""
    if other is not None and other.rate is not None:
        what = f"--loader.placement {other.there} (decode {other.decode})"
        yield Advice(what, figures.train * other.rate, {"placement": other.there, "decode": other.decode})


Change = tuple[str, Figures, dict[str, Any]]


def _changes(figures: Figures, probes: Mapping[str, Probe], scaling: Scaling) -> Iterator[Change]:
    binds = find_binding(figures)
    if binds == STORAGE:
        yield from _change_storage(figures)
    if binds == DECODE and THREADS in probes:
        yield _change_threads(figures, probes[THREADS])
    if SMALLER_FILES in probes:
        yield _change_files(figures, probes[SMALLER_FILES])
    if SMALLER_IMAGES in probes:
        yield _change_size(figures, probes[SMALLER_IMAGES])
    if (binds == DECODE and not figures.decodes_on_gpu) or (binds in (CORES, MODEL) and figures.shares_cores):
        yield _change_cores(figures, scaling)
    if binds == MODEL and not figures.shares_cores:
        yield "a GPU twice as fast", replace(figures, model=2 * figures.model), {"gpu": 2}


def _change_storage(figures: Figures) -> Iterator[Change]:
    free = lift(figures, STORAGE)
    needed = SPARE * expect(free) * figures.mean_bytes / 1e6
    what = f"storage that reads images at {needed:,.0f} MB/s (a local NVMe, or more volumes)"
    yield what, free, {"megabytes_per_second": needed}
    if not figures.fits_memory:
        yield "a machine whose memory holds the whole dataset", replace(figures, fits_memory=True), {"memory": "all"}


def _change_threads(figures: Figures, probe: Probe) -> Change:
    changed = replace(figures, decode=figures.decode * probe.rate, cpu_decode=figures.cpu_decode * probe.cpu)
    num_threads = round(probe.value)
    what = f"--loader.num-threads {num_threads} (here --threads {num_threads}): the cores are not all used"
    return what, changed, {"num_threads": num_threads}


def _change_files(figures: Figures, probe: Probe) -> Change:
    """Fewer bytes to read, fewer to decode: entropy decoding takes most of the time."""
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
    what = (
        f"smaller files: prep/shard.py --max-side {MAX_SIDE} --quality {QUALITY} "
        f"({probe.value / 1000:,.0f} KB an image in place of {figures.mean_bytes / 1000:,.0f})"
    )
    return what, changed, {"max_side": MAX_SIDE, "quality": QUALITY}


def _change_size(figures: Figures, probe: Probe) -> Change:
    """The decoder's part stays as it was measured: most of it does not depend on the size."""
    changed = replace(figures, model=figures.model * probe.rate, cpu_model=figures.cpu_model * probe.cpu)
    size = round(probe.value)
    return f"a resolution of {size} pixels (--transform.size {size})", changed, {"size": size}


def _change_cores(figures: Figures, scaling: Scaling) -> Change:
    changed = replace(
        figures,
        num_cores=2 * figures.num_cores,
        decode=scaling.decode * figures.decode,
        model=scaling.model * figures.model if figures.shares_cores else figures.model,
    )
    return f"{2 * figures.num_cores:g} cores of this kind", changed, {"cores": 2 * figures.num_cores}
