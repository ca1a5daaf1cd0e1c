"""Find the bottleneck of training from the rates of its stages, each measured alone. Pure functions of the figures.

Stages that run at the same time are as fast as the slowest of them. On a CPU, decoding and the model also share the
cores: training then cannot be faster than the number of cores divided by the CPU time per image of all stages.
"""

import math
from dataclasses import dataclass, replace

STORAGE, DECODE, MODEL, CORES = "storage", "decode", "model", "cores"
# A stage with this share of the CPU time (twice as much as all others together) is the bottleneck, not the cores.
DOMINANT = 2 / 3


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


def expected_loader_rate(figures: Figures) -> float:
    """Return the images/s that the loader alone should reach."""
    return expected_rate(remove_limit(figures, MODEL))


def agreement(figures: Figures) -> float:
    """Return the measured rate of training as a share of the expected one."""
    return figures.train / expected_rate(figures)
