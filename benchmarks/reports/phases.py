"""The section of benchmarks/RESULTS.md on recipes that were measured resolution by resolution."""

from collections.abc import Iterator
from typing import Any

from reports.words import format_dataset, format_number, format_spread, list_origin, make_table

COLUMNS = ("px", "measured at", "images", "loader", "model", "training", "time", "bottleneck")


def describe_phases(content: dict[str, Any]) -> Iterator[str]:
    """Yield the images/s at each resolution, each phase's share of the recipe, and the verdict."""
    recipe = content["recipe"]
    yield (
        f"{recipe['name']}, {recipe['epochs']:g} epochs; {format_dataset(content['dataset'])}; {content['model']}, "
        f"{content['amp']}, batch {content['batch_size']}; processes {content['num_processes']}, on the "
        f"{content['device'].upper()}. Images/s, median (min to max)."
    )
    yield ""
    yield from make_table(COLUMNS, [_phase_row(phase) for phase in content["phases"]])
    yield from (f"* {line}" for line in content["says"])
    yield ""
    yield from list_origin(content)


def _phase_row(phase: dict[str, Any]) -> list[str]:
    scaled = "" if phase["measured_size"] == phase["size"] else format_number(phase["measured_size"])
    rates = [format_spread(phase["stages"][name]["total"]) for name in ("loader", "model", "train")]
    images, time = (f"{phase[f'share_of_{name}']:.1%}" for name in ("images", "time"))
    return [str(phase["size"]), scaled, images, *rates, time, phase["bottleneck"]]
