"""Compute the record's figures from windows: over all processes, at the rate of the slowest one."""

import statistics
from typing import Any

from pace import all_gather_values
from record import summarize
from stages.rounds import Windows
from stages.stage import LOADER, MODEL, TRAIN, Window

from loaders import World

STEPPED = (LOADER, TRAIN)  # the stages whose batches come from the loader
BYTES = {"read": "num_bytes", "stored": "image_bytes", "decoded": "decode_bytes"}  # fields of a window


def describe_stages(windows: Windows, world: World) -> dict[str, dict[str, Any]]:
    """Return the figures of each stage by name; every process must call it."""
    return {name: describe_stage(name, each, world) for name, each in windows.items()}


def describe_stage(name: str, windows: list[Window], world: World) -> dict[str, Any]:
    """Return a stage's images/s per process and in total, its CPU time, and how the time of a batch is spent."""
    # One row per process, one column per window. The slowest process decides a window's rate.
    seconds, cpu, num_bytes = (
        all_gather_values([getattr(window, field) for window in windows], world)
        for field in ("seconds", "cpu_seconds", "num_bytes")
    )
    slowest = [max(column) for column in zip(*seconds, strict=True)]
    num_images = windows[0].num_images
    rates = [num_images / each for each in slowest]
    described: dict[str, Any] = {
        "images_per_second": summarize(rates),
        "total": summarize([rate * world.size for rate in rates]),
        "cpu_seconds_per_1000_images": statistics.median(
            1000 * sum(column) / (num_images * world.size) for column in zip(*cpu, strict=True)
        ),
    }

    # Add where the time of a batch goes, the bytes of an image, and the bandwidth of reading.
    if name in STEPPED:
        described["milliseconds_a_batch"] = _mean_spent(windows, world)
    each_process = [statistics.mean(getattr(window, field) for window in windows) for field in BYTES.values()]
    everyones = all_gather_values([each / num_images for each in each_process], world)
    per_image = {
        kind: statistics.mean(column) for kind, column in zip(BYTES, zip(*everyones, strict=True), strict=True)
    }
    if per_image["stored"]:
        described["bytes_per_image"] = per_image
    if name.startswith("read"):
        totals = [sum(column) for column in zip(*num_bytes, strict=True)]
        described["megabytes_per_second"] = summarize(
            [total / 1e6 / each for total, each in zip(totals, slowest, strict=True)]
        )
    return described


def _mean_spent(windows: list[Window], world: World) -> dict[str, float]:
    """Return the mean milliseconds per batch for each kind of work, over windows and processes."""
    names = list(windows[0].spent)
    means = [statistics.mean(window.spent[name] for window in windows) for name in names]
    everyones = all_gather_values(means, world)
    return {name: statistics.mean(column) for name, column in zip(names, zip(*everyones, strict=True), strict=True)}


def describe_efficiency(stages: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Return train / min(loader, model) of each round; None if one of the stages was not measured."""
    if not all(name in stages for name in (LOADER, MODEL, TRAIN)):
        return None
    loader, model, train = (stages[name]["total"]["repetitions"] for name in (LOADER, MODEL, TRAIN))
    return summarize([t / min(a, b) for t, a, b in zip(train, loader, model, strict=True)])
