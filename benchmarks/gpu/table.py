"""The suite's results for people: a line a case, then what follows from them; short enough for a log's tail."""

from collections.abc import Iterator
from typing import Any

from gpu.cases import Case, Results, find_best_path, is_right, rate_of

LONGEST = 110  # characters of a line's figures
MOST_CHARACTERS = 12_000


def describe(cases: list[Case], results: Results) -> str:
    """The table, then efficiencies and the decode path to take."""
    lines = [describe_case(case.name, results[case.name]) for case in cases if case.name in results]
    return "\n".join([*lines, "", *conclude(results)])[-MOST_CHARACTERS:]


def describe_case(name: str, record: dict[str, Any]) -> str:
    """One line."""
    figures = describe_figures(record["result"]) if record["status"] == "done" else record["reason"]
    return f"{name:<28} {record['status']:<8} {record.get('seconds', 0):6.1f} s  {figures[:LONGEST]}"


def describe_figures(result: dict[str, Any]) -> str:
    """What matters of a result, whichever kind it is."""
    if "is_right" in result:
        return describe_parity(result)
    if "images_per_second" in result:
        return describe_rate(result)
    if "num_passed" in result:
        failed = ", ".join(result["failed"])
        return f"{result['num_passed']} passed, {result['num_skipped']} skipped" + (f"; FAILED {failed}" * bool(failed))
    return ", ".join(f"{name} {value}" for name, value in result.items())


def describe_parity(result: dict[str, Any]) -> str:
    """The worst image of each kind, over both transforms."""
    worst: dict[str, tuple[float, float]] = {}
    for transform in ("train", "evaluation"):
        for kind, figures in result[transform].items():
            here = (figures["worst_image"], figures["largest_pixel"])
            worst[kind] = max(worst.get(kind, here), here)
    kinds = ", ".join(f"{kind} {mean:.2f} (pixel {most:.0f})" for kind, (mean, most) in worst.items())
    return f"{'right' if result['is_right'] else 'WRONG'}: {kinds}"


def describe_rate(result: dict[str, Any]) -> str:
    """Images/s with spread, waiting for data, and who was busy."""
    rate, wait = result["images_per_second"], result.get("data_wait_percent")
    waited = "" if wait is None else f"; wait {wait:.1f}%"
    busy = ", ".join(f"{name.removesuffix('_percent')} {value:.1f}" for name, value in result["usage"].items())
    return f"{rate['median']:,.0f} images/s ({rate['min']:,.0f} to {rate['max']:,.0f}){waited}; {busy}"


def conclude(results: Results) -> Iterator[str]:
    """Which decode path to take, the loader against decoding alone, training against loader and model."""
    parities = {name: each for name, each in results.items() if name.startswith("parity-")}
    if parities:
        wrong = [name.removeprefix("parity-") for name, each in parities.items() if not is_right(each)]
        yield f"decode: no-go for {', '.join(wrong)}" if wrong else "decode: go for all that were tried"
        if best := find_best_path(results):
            yield f"decode: taken {best['decode']} with hw_decoder_load {best['hw_decoder_load']:g}"
    loader, decode = (rate_of(results.get(name, {})) for name in ("loader", "decode-alone"))
    if loader and decode:
        yield f"loader / decoding alone: {loader / decode:.3f}"
    for name in results:
        model, train = name.removeprefix("train-"), rate_of(results[name])
        alone = rate_of(results.get(f"model-{model}", {}))
        if name.startswith("train-") and train and loader and alone:
            yield f"efficiency of {model}: train {train:,.0f} / min(loader, model) = {train / min(loader, alone):.3f}"
