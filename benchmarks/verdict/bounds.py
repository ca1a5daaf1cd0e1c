"""Which part of the flow binds training, from what each part does alone. Pure functions of measured figures.

Stages that run beside each other are as fast as the slowest of them. On a CPU decoding and the model also share the
cores: training then cannot be faster than the cores divided by the CPU time that all stages spend on an image.
"""

import math
from dataclasses import dataclass, replace

STORAGE, DECODE, MODEL, CORES = "storage", "decode", "model", "cores"
DOMINANT = 2 / 3  # of the CPU time: a stage that takes twice what all others do is what binds, rather than the cores


@dataclass(frozen=True)
class Figures:
    """What was measured: images/s and CPU-seconds an image, over all processes."""

    read_warm: float
    decode: float
    model: float
    loader: float
    train: float
    read_cold: float | None  # None: the page cache could not be emptied
    fits_memory: bool  # the data: then only a first epoch reads it cold
    cpu_read: float
    cpu_decode: float
    cpu_model: float
    num_cores: float
    shares_cores: bool  # the model runs on the CPU too
    decodes_on_gpu: bool  # images are decoded on the GPU that trains
    mean_bytes: float  # of an encoded image


def storage_rate(figures: Figures) -> float:
    """Images/s that reading reaches in the long run: from memory where the data fits there, else from storage."""
    if figures.fits_memory or figures.read_cold is None:
        return figures.read_warm
    return min(figures.read_cold, figures.read_warm)


def find_bounds(figures: Figures) -> dict[str, float]:
    """Images/s that training cannot exceed, by what bounds it."""
    bounds = {STORAGE: storage_rate(figures), DECODE: figures.decode, MODEL: figures.model}
    cpu_seconds = figures.cpu_read + figures.cpu_decode + figures.cpu_model
    if figures.shares_cores and cpu_seconds > 0:
        bounds[CORES] = figures.num_cores / cpu_seconds
    return bounds


def expect(figures: Figures) -> float:
    """Images/s that training should reach."""
    return min(find_bounds(figures).values())


def find_binding(figures: Figures) -> str:
    """What binds: the lowest bound; in place of the cores the stage that takes nearly all of their time."""
    bounds = find_bounds(figures)
    lowest = min(bounds, key=lambda name: bounds[name])
    if lowest != CORES:
        return lowest
    shares = share_cores(figures)
    heaviest = max(shares, key=lambda name: shares[name])
    return heaviest if shares[heaviest] >= DOMINANT else CORES


def share_cores(figures: Figures) -> dict[str, float]:
    """Of the CPU time of an image the share that each stage takes."""
    times = {STORAGE: figures.cpu_read, DECODE: figures.cpu_decode, MODEL: figures.cpu_model}
    return {name: each / sum(times.values()) for name, each in times.items()}


def lift(figures: Figures, name: str) -> Figures:
    """The figures if what is named cost nothing."""
    if name == STORAGE:
        return replace(figures, read_cold=math.inf, read_warm=math.inf)
    if name == DECODE:
        return replace(figures, decode=math.inf, cpu_decode=0.0)
    if name == MODEL:
        return replace(figures, model=math.inf, cpu_model=0.0)
    return replace(figures, num_cores=math.inf)


def expect_loader(figures: Figures) -> float:
    """Images/s that the loader alone should reach."""
    return expect(lift(figures, MODEL))


def agreement(figures: Figures) -> float:
    """What training reaches of what it should."""
    return figures.train / expect(figures)
