"""Tables of claims that were tested: the verdict, tuned settings, certificates, and the ingredients of a recipe."""

from typing import Any

from reports.records import (
    format_dataset,
    format_options,
    format_placement,
    format_ratio,
    format_spread,
    make_table,
    origin_tables,
)
from tables import Table

PASSED = {True: "pass", False: "FAIL", None: "not judged"}
RATIO_DIGITS = 3  # of tuning, because its differences are small


def tables_of_proof(content: dict[str, Any]) -> list[Table]:
    """Return the cases, each with one throttled stage: the bottleneck that was named, promised and measured gains.

    Only advice that removes the throttle decides whether a case's promise is kept.
    """
    cases, of_all = content["cases"], f"of {len(content['cases'])}"
    about = (
        f"{format_dataset(content['dataset'])}. {content['num_named']} {of_all} bottlenecks named; "
        f"{content['num_kept']} {of_all} promises kept (a gain within {content['most_error']:.0%} of the measured one)."
    )
    named = (
        {
            "case": name,
            "throttled": case["throttle"],
            "expected bottleneck": case["must_bind"],
            "bottleneck named": case["binds"] if case["is_named"] else f"{case['binds']}: WRONG",
            "images/s": format_spread(case["train"]),
            "promise kept": "yes" if case["is_kept"] else "NO",
        }
        for name, case in cases.items()
    )
    promises = (
        {
            "case": name,
            "advice followed": each["what"],
            "promised gain": format_ratio(each["promised_gain"]),
            "measured gain": format_ratio(each["measured_gain"]),
            "error": f"{100 * each['error']:+.0f}%",
            "decides the promise": "yes" if case["lifted_by"] in each["change"] else "",
        }
        for name, case in cases.items()
        for each in case["followed"]
    )
    return [Table(notes=[about]), make_table(named), make_table(promises), *origin_tables(content)]


def tables_of_settings(content: dict[str, Any]) -> list[Table]:
    """Return the settings that were found, and every step of the search."""
    found = "faster than" if content["is_changed"] else "the same as"
    about = f"{_describe_work(content)} Settings, {found} those at the start: {format_options(content['settings'])}."
    sizes = (
        {
            "batch size (not set)": str(each["batch_size"]),
            "images/s per process": format_spread(each["images_per_second"]),
        }
        for each in content["batch_sizes"]
    )
    return [Table(notes=[about]), _table_of_steps(content), make_table(sizes), *origin_tables(content)]


def tables_of_tuning(content: dict[str, Any]) -> list[Table]:
    """Return the rounds of tuning, each compared with the defaults afterwards; the last one has a bad start."""
    verdict = "passed" if content["passed"] else "FAILED"
    about = f"No round may end slower, and the one from a bad start must end faster: {verdict}."
    rounds = {f"round {number}": each for number, each in enumerate(content["rounds"], 1)}
    rounds |= {f"from {format_options(content['bad_start']['start'])}": content["bad_start"]}
    rows = (
        {
            "": name,
            "settings found": format_options(each["settings"]),
            "ratio of images/s to the settings at the start": _format_gain(each["check"]["ratio"]),
            "outcome": each["outcome"],
        }
        for name, each in rounds.items()
    )
    noise = _format_gain(content["same_settings_twice"])
    return [
        Table(notes=[f"{_describe_work(content)} {about}"]),
        make_table(rows),
        Table(notes=[f"The same settings measured twice: {noise}."] if noise else ()),
        *(_table_of_steps(each, f"search of {name}") for name, each in rounds.items()),
        *origin_tables(content),
    ]


def _describe_work(content: dict[str, Any]) -> str:
    """Return the dataset and settings of a search; records that are older than placements lack its start."""
    began = content.get("starts_with")
    return (
        f"{format_dataset(content['dataset'])}; batch {content['batch_size']}, {content['size']} pixels, processes "
        f"{content['num_processes']}, on the {content['device'].upper()}"
        + (f"; the search began with {format_placement(began)}." if began else ".")
    )


def _table_of_steps(content: dict[str, Any], detail: str = "") -> Table:
    """Return a search's comparisons, the last one, which decides, first."""
    steps = {"final": content["best"]}
    steps |= {f"step {number}": each for number, each in enumerate(content["comparisons"], 1)}
    return make_table((_step_row(name, each) for name, each in steps.items()), detail=detail)


def _step_row(name: str, each: dict[str, Any]) -> dict[str, str]:
    changes = [f"{setting} {after} instead of {before}" for setting, (before, after) in each["changes"].items()]
    outcome, ratio = "faster" if each["is_better"] else "not faster", each.get("ratio")
    is_run = "failure" not in each
    return {
        "": name,
        "tried": ", ".join(changes) or "the same settings twice",
        "images/s per process": format_spread(each.get("candidate")),
        "images/s of the settings to replace": format_spread(each.get("other")),
        "ratio": _format_gain(ratio),
        "pairs": str(len(ratio["repetitions"]) if ratio else 0) if is_run else "",
        "outcome": outcome if is_run else f"cannot run here: {each['failure']}",
    }


def _format_gain(ratio: dict[str, Any] | None) -> str:
    return format_spread(ratio, RATIO_DIGITS)


def tables_of_certificates(content: dict[str, Any]) -> list[Table]:
    """Return each loader's certificates: the measured and the expected value, and the limit."""
    about = f"{format_dataset(content['dataset'])}, {content['epochs']} epochs, batch {content['batch_size']}."
    tables = [Table(notes=[about])]
    for loader, facts in content["loaders"].items():
        rows = (
            {
                "certificate": each["name"],
                "verdict": PASSED[each["passed"]],
                "measured": each["measured"],
                "expected": each["expected"],
                "limit and reason": each["limit"],
            }
            for each in facts["certificates"]
        )
        tables.append(make_table(rows, title=f"{loader} ({_describe_certified(facts)})"))
    return [*tables, *origin_tables(content)]


def _describe_certified(facts: dict[str, Any]) -> str:
    """Return a loader's settings, how much of its epochs was decoded, and where; of a peer only the order is judged."""
    other = ("loader", "certificates", "placement", "num_decoded", "decoded_percent")
    parts = [format_options({name: value for name, value in facts.items() if name not in other})]
    if "decoded_percent" in facts:
        parts.append(f"{facts['num_decoded']:,} images decoded, {facts['decoded_percent']:.3g}% of its epochs")
    elif facts.get("num_decoded") == 0:
        parts.append("order only, nothing decoded")
    if "placement" in facts:  # records that are older than placements do not have one
        parts.append(format_placement(facts["placement"]))
    return "; ".join(parts)


def tables_of_ingredients(content: dict[str, Any]) -> list[Table]:
    """Return the arms of a recipe's ingredients with their work, compared with a fixed size, and top-1 in percent."""
    about = (
        f"{format_dataset(content['dataset'])}, {content['num_validation_images']:,} for validation; "
        f"{content['model']}, {content['epochs']} epochs. Mean (min to max) over the seeds, in percent. "
        f"All of ours have the flags `{content['flags_of_all']}`."
    )
    rows = (
        {
            "arm": name,
            "seeds": ", ".join(map(str, arm["seeds"])),
            "work": f"{arm['relative_work']:.2f}",
            "top-1 of the model": format_top1(arm.get("top1_model")),
            "top-1 of its EMA": format_top1(arm.get("top1_ema")),
            "flags": f"`{arm['flags']}`",
        }
        for name, arm in content["arms"].items()
    )
    return [Table(notes=[about]), make_table(rows), *origin_tables(content)]


def format_top1(top1: dict[str, Any] | None) -> str:
    """Return the mean with its spread, in percent; "" for None."""
    return f"{top1['mean']:.2f} ({top1['min']:.2f} to {top1['max']:.2f})" if top1 else ""
