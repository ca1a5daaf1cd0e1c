"""Sections of benchmarks/RESULTS.md on the loader and training: the stages' throughput, and sweeps of settings."""

from collections.abc import Iterator
from typing import Any

from reports.races import rate_of
from reports.words import (
    format_bytes,
    format_dataset,
    format_median,
    format_number,
    format_spread,
    list_method,
    list_origin,
    make_table,
)

STAGES = (
    *("stage", "images/s per process", "images/s in total", "MB/s", "CPU s per 1,000"),
    "KB per image: read/stored/decoded",
)
SPENT = ("wait", "take", "step", "read", "decode", "copy")  # the consumer's, then the producer's


def describe_throughput(content: dict[str, Any]) -> Iterator[str]:
    """Yield each stage's rate, the times of a batch, the bottleneck with advice, and the recipe's hours and cost."""
    model = f"; {content['model']}, {content['amp']}" if content.get("model") else ""
    yield (
        f"{format_dataset(content['dataset'])}; batch {content['batch_size']}, {content['size']} pixels{model}; "
        f"processes {content['num_processes']}, decoding threads of each {content['threads']}, on the "
        f"{content['device'].upper()}. Median (min to max)."
    )
    yield ""
    yield from make_table(STAGES, [_stage_row(*each) for each in content["stages"].items()])
    spent = {name: each["milliseconds_a_batch"] for name, each in content["stages"].items() if _has_times(each)}
    rows = [
        [name, *(format_number(times[part]) if part in times else "" for part in SPENT)]
        for name, times in spent.items()
    ]
    if rows:
        yield from make_table(("milliseconds per batch", *SPENT), rows)
    yield from _describe_verdict(content)
    yield from list_origin(content)
    yield from list_method(content)


def _has_times(stage: dict[str, Any]) -> bool:
    return bool(stage.get("milliseconds_a_batch"))


def _stage_row(name: str, each: dict[str, Any]) -> list[str]:
    bandwidth, cpu_seconds = each.get("megabytes_per_second"), each.get("cpu_seconds_per_1000_images")
    return [
        *(name, format_spread(each["images_per_second"]), format_spread(each["total"])),
        *("" if value is None else _format_either(value) for value in (bandwidth, cpu_seconds)),
        format_bytes(each),
    ]


def _format_either(value: float | dict[str, Any]) -> str:
    return format_spread(value) if isinstance(value, dict) else format_number(float(value))


def _describe_verdict(content: dict[str, Any]) -> Iterator[str]:
    """Yield the efficiency; the bottleneck and the advice, as the record words them; the recipe's hours and cost."""
    if efficiency := content.get("efficiency"):
        yield f"* efficiency, training / min(loader, model): {format_spread(efficiency)}"
    if verdict := content.get("verdict"):
        yield from (f"* {line}" for line in verdict["says"])
        said = " ".join(verdict["says"])
        others = [each for each in verdict.get("advice", []) if each["what"] not in said]
        yield from (f"* {each['what']}: {format_number(each['images_per_second'])} images/s" for each in others)
    elif recipe := content.get("recipe"):
        cost = "" if recipe["dollars"] is None else f", {format_number(recipe['dollars'])} dollars"
        yield f"* {recipe['name']}, {recipe['epochs']} epochs: {format_number(recipe['hours'])} hours{cost}"
    yield ""


def describe_sweeps(content: dict[str, Any]) -> Iterator[str]:
    """Yield images/s by number of decoding threads, and by stored size."""
    yield from (f"{format_dataset(content['dataset'])}. Median (min to max).", "")
    yield from make_table(
        ("decoding threads, original images", "images/s", "CPU s per 1,000"),
        [[str(each["num_threads"]), *_point(each)] for each in content["threads"]],
    )
    yield from make_table(
        ("stored size", "bytes per image", "images/s", "CPU s per 1,000"),
        [[each["name"], f"{each['bytes_per_image']:,.0f}", *_point(each)] for each in content["sizes"]],
    )
    yield from list_origin(content)
    yield from list_method(content)


def _point(each: dict[str, Any]) -> list[str]:
    return [format_spread(rate_of(each)), format_median(each.get("cpu_seconds_per_1000_images"))]
