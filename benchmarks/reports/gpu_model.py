"""The section of benchmarks/RESULTS.md on the training step of a ResNet-50 on a GPU, without data."""

from collections.abc import Iterator
from typing import Any

from modelling.cases import DONE, Outcome, Results, find_baseline
from modelling.table import collect_profiles, describe_other, list_kinds
from reports.words import format_number, format_ratio, format_spread, list_origin, make_table

HEADER = ("case", "step", "images/s", "relative to the eager step", "seconds until ready", "GiB", "outcome")
HOW = {"ours": "the step of train/step.py", "fused": "BatchNorm fused", "graph": "one CUDA graph"}


def describe_model(content: dict[str, Any]) -> Iterator[str]:
    """Yield each case's rate, the milliseconds by kind of kernel, and the origin."""
    results: Results = content["cases"]
    if content["is_rehearsal"]:
        yield "A rehearsal on a CPU, with small networks and images: its figures are not valid for a GPU."
        yield ""
    yield (
        f"{content['repetitions']} repetitions of about {content['seconds']:g} s, after warm-up; at most "
        f"{content['minutes']:g} min in total, of which {content['seconds_to_start']:.1f} s before the first case. "
        "Median (min to max). Ready: built, autotuned, compiled, captured. BatchNorm fused: with ReLU and the "
        "addition, by prototype kernels that training does not use."
    )
    yield ""
    yield from make_table(HEADER, [_case_row(name, each, results) for name, each in results.items()])
    yield from _describe_profiles(results)
    yield from list_origin(content)


def _case_row(name: str, outcome: Outcome, results: Results) -> list[str]:
    settings, result = outcome["settings"], outcome["result"]
    step = _describe_step(settings) if settings else ""
    if outcome["status"] != DONE:
        return [name, step, "", "", "", "", f"{outcome['status']}: {outcome['reason']}"]
    if "images_per_second" not in result:
        return [name, step, "", "", "", "", describe_other(result)]
    rate, memory, baseline = result["images_per_second"], result["memory_gib"], find_baseline(settings, results)
    return [
        *(name, step, format_spread(rate), format_ratio(rate["median"] / baseline if baseline else None)),
        *(f"{result['seconds_ready']:.1f}", "" if memory is None else f"{memory:.1f}", ""),
    ]


def _describe_step(settings: dict[str, Any]) -> str:
    """Return a case's step in words: network, sizes, type and variants."""
    network = f"small {settings['network']}" if settings["is_small"] else settings["network"]
    how = [words for name, words in HOW.items() if settings[name]]
    how += [f"torch.compile, {settings['compile']}"] if settings["compile"] != "none" else []
    size, batch_size, amp = settings["size"], settings["batch_size"], settings["amp"]
    return "; ".join([f"{network}, {size} px, batch {batch_size}, {amp}", *how])


def _describe_profiles(results: Results) -> Iterator[str]:
    """Yield the table of milliseconds per step by kind of kernel, one column per profiled case."""
    profiles = collect_profiles(results)
    if profiles:
        rows = [
            [kind, *(format_number(profile[kind]) if kind in profile else "" for profile in profiles.values())]
            for kind in list_kinds(profiles)
        ]
        yield from make_table(("milliseconds per step", *profiles), rows)
