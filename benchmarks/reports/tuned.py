"""Sections of benchmarks/RESULTS.md on tuning: the settings found, and the test that they are never slower."""

from collections.abc import Iterator
from typing import Any

from reports.words import (
    Summary,
    format_dataset,
    format_options,
    format_placement,
    format_spread,
    list_method,
    list_origin,
    make_table,
)

STEPS = ("", "tried", "images/s per process", "images/s of the settings to replace", "ratio", "pairs", "")


def describe_settings(content: dict[str, Any]) -> Iterator[str]:
    """Yield the settings that were found, and every step of the search."""
    found = "faster than" if content["is_changed"] else "the same as"
    yield f"{_describe_work(content)} Settings, {found} those at the start: {format_options(content['settings'])}."
    yield ""
    yield from make_table(STEPS, list_steps(content))
    sizes = [[str(each["batch_size"]), format_spread(each["images_per_second"])] for each in content["batch_sizes"]]
    yield from make_table(("batch size (not set)", "images/s per process"), sizes)
    yield from list_origin(content)
    yield from list_method(content)


def describe_tuning(content: dict[str, Any]) -> Iterator[str]:
    """Yield the rounds of tuning, each compared with the defaults afterwards; the last one has a bad start."""
    verdict = "passed" if content["passed"] else "FAILED"
    yield f"{_describe_work(content)} No round may end slower, and the one from a bad start must end faster: {verdict}."
    yield ""
    rounds = {f"round {number}": each for number, each in enumerate(content["rounds"], 1)}
    rounds |= {f"from {format_options(content['bad_start']['start'])}": content["bad_start"]}
    rows = [
        [name, format_options(each["settings"]), format_ratios(each["check"]["ratio"]), each["outcome"]]
        for name, each in rounds.items()
    ]
    yield from make_table(("", "settings found", "ratio of images/s to the settings at the start", ""), rows)
    if noise := content["same_settings_twice"]:
        yield from (f"The same settings measured twice: {format_ratios(noise)}.", "")
    for name, each in rounds.items():
        yield from (f"<details><summary>search of {name}</summary>", "")
        yield from make_table(STEPS, list_steps(each))
        yield from ("</details>", "")
    yield from list_origin(content)
    yield from list_method(content)


def _describe_work(content: dict[str, Any]) -> str:
    """Return the dataset and settings of a search; records that are older than placements lack its start."""
    began = content.get("starts_with")
    return (
        f"{format_dataset(content['dataset'])}; batch {content['batch_size']}, {content['size']} pixels, processes "
        f"{content['num_processes']}, on the {content['device'].upper()}"
        + (f"; the search began with {format_placement(began)}." if began else ".")
    )


def list_steps(content: dict[str, Any]) -> list[list[str]]:
    """Return the rows of a search's comparisons, the last one, which decides, first."""
    rows = [_step_row("final", content["best"])]
    return rows + [_step_row(f"step {number}", each) for number, each in enumerate(content["comparisons"], 1)]


def _step_row(name: str, each: dict[str, Any]) -> list[str]:
    changes = [f"{setting} {after} instead of {before}" for setting, (before, after) in each["changes"].items()]
    tried = ", ".join(changes) or "the same settings twice"
    if "failure" in each:
        return [name, tried, "", "", "", "", f"cannot run here: {each['failure']}"]
    rates, ratio = [format_spread(each[which]) for which in ("candidate", "other")], each["ratio"]
    num_pairs = str(len(ratio["repetitions"])) if ratio else "0"
    return [name, tried, *rates, format_ratios(ratio), num_pairs, "faster" if each["is_better"] else "not faster"]


def format_ratios(ratio: Summary | None) -> str:
    """Return the median and the spread to a thousandth, because differences are small."""
    if not ratio:
        return ""
    median, low, high = (f"{ratio[key]:.3f}" for key in ("median", "min", "max"))
    return f"{median} ({low} to {high})"
