"""What a search says: a line a step while it runs, the settings' file in the end, and that file in words."""

import statistics
from collections.abc import Sequence
from typing import Any

from record import summarize
from stages.photos import describe_dataset
from tuning.rule import LEAST_GAIN, Pair, find_ratios, judge
from tuning.search import Comparison, Found
from tuning.turns import Workload

from loaders.tuned import FORMAT, KIND, SETTINGS, find_place


def build_record(work: Workload, found: Found, sizes: dict[int, list[float]]) -> dict[str, Any]:
    """The file: what `loaders/tuned.py` reads, and every figure that the settings are taken from."""
    world, last = work.world, found.last
    return {
        "what": KIND,
        "format": FORMAT,
        "settings": {name: getattr(found.config, name) for name in SETTINGS},
        "is_changed": found.config != last.other,
        "backend": found.config.backend,
        "best": describe_comparison(last),
        "comparisons": [describe_comparison(step) for step in found.steps],
        "batch_sizes": [{"batch_size": size, "images_per_second": summarize(rates)} for size, rates in sizes.items()],
        "dataset": describe_dataset(work.split) | {"digest": work.split.digest},
        "batch_size": work.batch_size,
        "size": work.size,
        "num_processes": world.size,
        "local_processes": world.local_size,
        "device": world.device.type,
        "gpu": find_place(world).gpu,
    }


def describe_comparison(comparison: Comparison) -> dict[str, Any]:
    """A comparison with every pair of it; rates are of a process."""
    if comparison.failure is not None:
        return {"changes": find_changes(comparison), "is_better": False, "failure": comparison.failure}
    candidate, other = (list(rates) for rates in zip(*comparison.pairs, strict=True)) if comparison.pairs else ([], [])
    figures = {"candidate": candidate, "other": other, "ratio": find_ratios(comparison.pairs)}
    return {
        "changes": find_changes(comparison),
        "is_better": comparison.is_better,
        **{name: summarize(values) if values else None for name, values in figures.items()},
    }


def find_changes(comparison: Comparison) -> dict[str, list[Any]]:
    """The settings in which the candidate differs: from what, to what."""
    before, after = comparison.other, comparison.candidate
    both = {name: [getattr(before, name), getattr(after, name)] for name in SETTINGS}
    return {name: values for name, values in both.items() if values[0] != values[1]}


def describe_step(comparison: Comparison) -> str:
    """A comparison in a line."""
    changes = find_changes(comparison)
    named = ", ".join(f"{name} {after} instead of {before}" for name, (before, after) in changes.items())
    if comparison.failure is not None:
        return f"{named}: cannot run here ({comparison.failure})"
    verdict = judge(comparison.pairs)
    said = {True: "faster", False: "not faster by more than the noise", None: "no time for more"}[verdict]
    return (
        f"{named}: {_describe_gain(comparison.pairs)}; {said}"
        if changes
        else (f"the same settings twice: {_describe_gain(comparison.pairs)}")
    )


def _describe_gain(pairs: Sequence[Pair]) -> str:
    """Both rates, and by how much they differ: median and spread."""
    if not pairs:
        return "not measured"
    ratios = find_ratios(pairs)
    candidate, other = (statistics.median(rates) for rates in zip(*pairs, strict=True))
    spread = f"{_percent(min(ratios))} to {_percent(max(ratios))}, pairs: {len(ratios)}"
    return f"{candidate:,.0f} against {other:,.0f} images/s, {_percent(statistics.median(ratios))} ({spread})"


def describe(record: dict[str, Any]) -> list[str]:
    """The file in words."""
    best, data = record["best"], record["dataset"]
    first = (
        f"nothing that was tried is faster by {LEAST_GAIN:.0%} and more than the noise: the settings stay as they were"
    )
    if record["is_changed"]:
        named = ", ".join(f"{name} {after}" for name, (_, after) in best["changes"].items())
        pairs = list(zip(best["candidate"]["repetitions"], best["other"]["repetitions"], strict=True))
        first = f"{named}: {_describe_gain(pairs)}"
    each = [(size["batch_size"], size["images_per_second"]["median"]) for size in record["batch_sizes"]]
    sizes = ", ".join(f"{size}: {rate:,.0f}" for size, rate in each)
    lines = [f"{first}; {data['name']} [{data['label']}]"]
    return [*lines, f"images/s a process by batch size (not set): {sizes}"] if sizes else lines


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f}%"
