"""From windows to the record's figures: over all processes, at the slowest one's pace."""

import statistics
from typing import Any

from pace import gather
from record import summarize
from stages.rounds import Windows
from stages.stage import LOADER, MODEL, TRAIN, Window

from loaders import World

STEPPED = (LOADER, TRAIN)  # whose batches come from the loader


def describe_stages(windows: Windows, world: World) -> dict[str, dict[str, Any]]:
    """Each stage's figures, by its name; every process must call it."""
    return {name: describe_stage(name, each, world) for name, each in windows.items()}


def describe_stage(name: str, windows: list[Window], world: World) -> dict[str, Any]:
    """Images/s a process and in all, CPU time, and where a batch's time goes."""
    seconds, cpu, num_bytes = (
        gather([getattr(window, field) for window in windows], world)
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
    if name in STEPPED:
        described["milliseconds_a_batch"] = _mean_spent(windows, world)
    if name.startswith("read"):
        totals = [sum(column) for column in zip(*num_bytes, strict=True)]
        described["megabytes_per_second"] = summarize(
            [total / 1e6 / each for total, each in zip(totals, slowest, strict=True)]
        )
    return described


def _mean_spent(windows: list[Window], world: World) -> dict[str, float]:
    names = list(windows[0].spent)
    means = [statistics.mean(window.spent[name] for window in windows) for name in names]
    everyones = gather(means, world)
    return {name: statistics.mean(column) for name, column in zip(names, zip(*everyones, strict=True), strict=True)}


def describe_efficiency(stages: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """train / min(loader, model) of each round; None where one of them was not measured."""
    if not all(name in stages for name in (LOADER, MODEL, TRAIN)):
        return None
    loader, model, train = (stages[name]["total"]["repetitions"] for name in (LOADER, MODEL, TRAIN))
    return summarize([t / min(a, b) for t, a, b in zip(train, loader, model, strict=True)])
