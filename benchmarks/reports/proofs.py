"""Sections of benchmarks/RESULTS.md on claims that were tested: the certificates, and the verdict."""

from collections.abc import Iterator
from typing import Any

from reports.words import (
    format_dataset,
    format_number,
    format_options,
    format_placement,
    format_spread,
    list_method,
    list_origin,
    make_table,
)

PASSED = {True: "pass", False: "FAIL", None: "not judged"}


def describe_certificates(content: dict[str, Any]) -> Iterator[str]:
    """Yield each loader's certificates: the measured and the expected value, and the limit."""
    yield f"{format_dataset(content['dataset'])}, {content['epochs']} epochs, batch {content['batch_size']}."
    yield ""
    for loader, found in content["loaders"].items():
        facts = {name: value for name, value in found.items() if name not in ("loader", "certificates", "placement")}
        options = format_options({name: _shorten(value) for name, value in facts.items()})
        # Peers decode nothing, and records that are older than placements do not have one.
        decoded = f"; {format_placement(found['placement'])}" if "placement" in found else ""
        yield from (f"**{loader}** ({options}{decoded})", "")
        rows = [
            [each["name"], PASSED[each["passed"]], each["measured"], each["expected"], each["limit"]]
            for each in found["certificates"]
        ]
        yield from make_table(("certificate", "", "measured", "expected", "limit"), rows)
    yield from list_origin(content)
    yield from list_method(content)


def _shorten(value: Any) -> Any:
    return format_number(value) if isinstance(value, float) else value


def describe_proof(content: dict[str, Any]) -> Iterator[str]:
    """Yield the cases, each with one throttled stage: the bottleneck that was named, promised and measured gains."""
    cases, of_all = content["cases"], f"of {len(content['cases'])}"
    kept = (
        f"{content['num_kept']} {of_all} promises kept (a gain within {content['most_error']:.0%} of the measured one)"
    )
    yield f"{format_dataset(content['dataset'])}. {content['num_named']} {of_all} bottlenecks named; {kept}."
    yield ""
    rows = [_case_row(name, case) for name, case in cases.items()]
    yield from make_table(("case", "throttled", "expected bottleneck", "bottleneck named", "images/s"), rows)
    promises = [_promise_row(name, each) for name, case in cases.items() for each in case["followed"]]
    yield from make_table(("case", "advice followed", "promised gain", "measured gain", "error"), promises)
    yield from list_origin(content)
    yield from list_method(content)


def _case_row(name: str, case: dict[str, Any]) -> list[str]:
    named = case["binds"] if case["is_named"] else f"{case['binds']}: WRONG"
    return [name, case["throttle"], case["must_bind"], named, format_spread(case["train"])]


def _promise_row(name: str, each: dict[str, Any]) -> list[str]:
    gains = [f"{each[kind]:.2f} ×" for kind in ("promised_gain", "measured_gain")]
    return [name, each["what"], *gains, f"{100 * each['error']:+.0f}%"]
