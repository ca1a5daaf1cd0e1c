"""The output of a search: one line per step while it runs, the content of the settings file, and its summary."""

import statistics
from collections.abc import Sequence
from typing import Any

from record import summarize
from stages.photos import describe_dataset
from tuning.rule import LEAST_GAIN, Pair, find_ratios, is_faster
from tuning.search import Comparison, Found
from tuning.turns import Workload

from loaders.tuned import FORMAT, KIND, SETTINGS, find_machine


def build_record(work: Workload, found: Found, sizes: dict[int, list[float]]) -> dict[str, Any]:
    """Return the file's content: what `loaders/tuned.py` reads, and every figure behind the settings."""
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
        "gpu": find_machine(world).gpu,
    }


def describe_comparison(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison for the record, with every pair; rates are images/s per process."""
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
    """Return the settings in which the candidate differs, each as [before, after]."""
    before, after = comparison.other, comparison.candidate
    both = {name: [getattr(before, name), getattr(after, name)] for name in SETTINGS}
    return {name: values for name, values in both.items() if values[0] != values[1]}


def describe_step(comparison: Comparison) -> str:
    """Return a comparison in one line."""
    changes = find_changes(comparison)
    named = ", ".join(f"{name} {after} instead of {before}" for name, (before, after) in changes.items())
    if comparison.failure is not None:
        return f"{named}: cannot run here ({comparison.failure})"
    gain = _describe_gain(comparison.pairs)
    if not changes:
        return f"the same settings twice: {gain}"
    decision = is_faster(comparison.pairs)
    outcomes = {True: "faster", False: "not faster by more than the noise", None: "undecided, no time for more"}
    return f"{named}: {gain}; {outcomes[decision]}"


def _describe_gain(pairs: Sequence[Pair]) -> str:
    """Return both rates and the median and the range of their difference."""
    if not pairs:
        return "not measured"
    ratios = find_ratios(pairs)
    candidate, other = (statistics.median(rates) for rates in zip(*pairs, strict=True))
    spread = f"{_percent(min(ratios))} to {_percent(max(ratios))}, pairs: {len(ratios)}"
    return f"{candidate:,.0f} instead of {other:,.0f} images/s, {_percent(statistics.median(ratios))} ({spread})"


def format_record(record: dict[str, Any]) -> list[str]:
    """Return the summary of the file, as lines."""
    best, data = record["best"], record["dataset"]
    first = f"no settings are faster by {LEAST_GAIN:.0%} and by more than the noise: the settings stay unchanged"
    if record["is_changed"]:
        named = ", ".join(f"{name} {after}" for name, (_, after) in best["changes"].items())
        pairs = list(zip(best["candidate"]["repetitions"], best["other"]["repetitions"], strict=True))
        first = f"{named}: {_describe_gain(pairs)}"
    each = [(size["batch_size"], size["images_per_second"]["median"]) for size in record["batch_sizes"]]
    sizes = ", ".join(f"{size}: {rate:,.0f}" for size, rate in each)
    lines = [f"{first}; {data['name']} [{data['label']}]"]
    return [*lines, f"images/s per process by batch size (not part of the settings): {sizes}"] if sizes else lines


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f}%"
