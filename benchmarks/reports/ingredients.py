"""The section of benchmarks/RESULTS.md on a recipe's ingredients, added one at a time on a proxy."""

from collections.abc import Iterator
from typing import Any

from reports.words import format_dataset, list_method, list_origin, make_table

HEADER = ("arm", "seeds", "work", "top-1 of the model", "top-1 of its EMA", "flags")


def describe_ingredients(content: dict[str, Any]) -> Iterator[str]:
    """Yield the arms with their work, compared with a fixed size, and top-1 in percent."""
    yield (
        f"{format_dataset(content['dataset'])}, {content['num_validation_images']:,} for validation; "
        f"{content['model']}, {content['epochs']} epochs. Mean (min to max) over the seeds, in percent."
    )
    yield ""
    yield from make_table(HEADER, [_arm_row(name, arm) for name, arm in content["arms"].items()])
    yield f"All of ours have the flags `{content['flags_of_all']}`."
    yield ""
    yield from list_origin(content)
    yield from list_method(content)


def _arm_row(name: str, arm: dict[str, Any]) -> list[str]:
    seeds = ", ".join(map(str, arm["seeds"]))
    top1 = [format_top1(arm.get(f"top1_{kind}")) for kind in ("model", "ema")]
    return [name, seeds, f"{arm['relative_work']:.2f}", *top1, f"`{arm['flags']}`"]


def format_top1(top1: dict[str, Any] | None) -> str:
    """Return the mean with its spread, in percent; "" for None."""
    return f"{top1['mean']:.2f} ({top1['min']:.2f} to {top1['max']:.2f})" if top1 else ""
