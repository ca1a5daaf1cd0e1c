"""Judge the proof with a recipe: the loader throttled at one resolution must be named there, and nowhere else."""

from typing import Any

from phases.words import LOADER_NAME
from proof.cases import Case
from verdict.words import NAMES


def judge_phases(case: Case, before: dict[str, Any], after: dict[str, Any], most_error: float) -> dict[str, Any]:
    """Return the case for the record.

    Args:
        before: record of `throughput.py --recipe` under the throttle.
        after: the same without it.
        most_error: by how much the measured gain may exceed the largest possible one.
    """
    # The loader at the throttled resolution, the model at the others.
    slow = case.conditions.slow_size
    found = {phase["measured_size"]: phase["bottleneck"] for phase in before["phases"]}
    must = {size: LOADER_NAME if size == slow else NAMES["model"] for size in found}

    # The next bound of that phase is the most that training can reach without the throttle. On a CPU it reaches less,
    # because loader and model then slow each other down; so only a larger gain would contradict the bounds.
    rates = [record["total"]["images_per_second"] for record in (before, after)]
    promised, measured = promise_gain(before["phases"], slow, case.binds), rates[1] / rates[0]
    error = promised / measured - 1
    (throttled,) = (phase["stages"]["train"]["total"] for phase in before["phases"] if phase["measured_size"] == slow)
    followed = {
        "what": "no throttle (over the whole recipe; the promised gain is an upper bound)",
        "change": {case.lifted_by: None},
        "promised_gain": promised,
        "measured_gain": measured,
        "error": error,
    }
    return {
        "throttle": case.throttle,
        "conditions": vars(case.conditions),
        "must_bind": _describe(must),
        "binds": _describe(found),
        "train": throttled,
        "images_per_second": {"before": rates[0], "after": rates[1]},
        "followed": [followed],
        "is_named": found == must,
        "is_kept": error >= -most_error,
        "lifted_by": case.lifted_by,
        "phases": {"before": before["phases"], "after": after["phases"]},
        "placement": before["placement"],
    }


def promise_gain(phases: list[dict[str, Any]], slow: int, bound: str) -> float:
    """Return the gain for all phases if one bound is removed from the phase that was measured at `slow` pixels."""
    now = then = 0.0
    for phase in phases:
        seconds = phase["num_images"] / phase["stages"]["train"]["total"]["median"]
        now += seconds
        if phase["measured_size"] == slow:
            others = [rate for name, rate in phase["bounds"].items() if name != bound]
            seconds *= phase["bounds"][bound] / min(others)
        then += seconds
    return now / then


def _describe(names: dict[int, str]) -> str:
    return ", ".join(f"{name} at {size} px" for size, name in names.items())
