"""Print the results: one line per case, then time by kind of kernel; short enough for the end of a log."""

from collections.abc import Iterator
from typing import Any

from modelling.cases import DONE, Outcome, Results, find_baseline
from reports.words import format_number

REHEARSAL = "rehearsal on a CPU, not valid for a GPU; "
LONGEST_LINE = 120
MOST_KINDS = 12
HEADER = f"{'case':<33} {'images/s':>9} {'min':>8} {'max':>8} {'x eager':>8} {'ready s':>8} {'GiB':>6}"


def describe_results(content: dict[str, Any]) -> str:
    """Return the table of a record."""
    results: Results = content["cases"]
    rehearsal = REHEARSAL if content["is_rehearsal"] else ""
    hardware = content["hardware"]
    lines = [
        f"{rehearsal}{hardware['gpu'] or hardware['cpu']}; {content['repetitions']} repetitions of "
        f"{content['seconds']:g} s; ready to measure after {content['seconds_to_start']:.1f} s",
        HEADER,
        *(describe_case(name, each, results) for name, each in results.items()),
        *describe_profiles(results),
    ]
    return "\n".join(line[:LONGEST_LINE].rstrip() for line in lines)


def describe_case(name: str, outcome: Outcome, results: Results) -> str:
    """Return a case's line."""
    result = outcome["result"]
    if outcome["status"] != DONE:
        return f"{name:<33} {outcome['status']}: {outcome['reason']}"
    if "images_per_second" not in result:
        return f"{name:<33} {describe_other(result)}"
    rate, memory = result["images_per_second"], result["memory_gib"]
    rates = [format_number(float(rate[which])) for which in ("median", "min", "max")]
    baseline = find_baseline(outcome["settings"], results)
    ratio = f"{rate['median'] / baseline:.2f}" if baseline else ""
    return (
        f"{name:<33} {rates[0]:>9} {rates[1]:>8} {rates[2]:>8} {ratio:>8} "
        f"{result['seconds_ready']:>8.1f} {'' if memory is None else f'{memory:.1f}':>6}"
    )


def describe_other(result: dict[str, Any]) -> str:
    """Return the result of a case without a rate."""
    if "errors" in result:
        name, error = max(result["errors"].items(), key=lambda pair: pair[1] / result["limits"][pair[0]])
        return f"right: {len(result['errors'])} quantities; nearest to its limit: {name}, {error:.1e}"
    copy, matmul = result["copy_terabytes_per_second"]["median"], result["matmul_teraflops"]["median"]
    return f"copy {copy:.3g} TB/s, matmul in bf16 {matmul:.3g} TFLOP/s"


def collect_profiles(results: Results) -> dict[str, dict[str, float]]:
    """Return the milliseconds per step of each profiled case: wall time, sum of all kernels, and each kind."""
    profiles = {}
    for name, outcome in results.items():
        if outcome["status"] == DONE and "profile" in outcome["result"]:
            rate, settings = outcome["result"]["images_per_second"]["median"], outcome["settings"]
            kinds = outcome["result"]["profile"]["milliseconds_a_step"]
            whole = {"wall clock": 1000 * settings["batch_size"] / rate, "all kernels": sum(kinds.values())}
            profiles[name] = whole | kinds
    return profiles


def list_kinds(profiles: dict[str, dict[str, float]]) -> list[str]:
    """Return the rows of the profiles' table, sorted by their longest time in any case."""
    kinds = {kind for profile in profiles.values() for kind in profile} - {"wall clock", "all kernels"}
    kinds = sorted(kinds, key=lambda kind: -max(profile.get(kind, 0.0) for profile in profiles.values()))
    return ["wall clock", "all kernels", *kinds]


def describe_profiles(results: Results) -> Iterator[str]:
    """Yield the lines of the table of milliseconds by kind of kernel, one column per case."""
    profiles = collect_profiles(results)
    if profiles:
        yield ""
        yield f"{'milliseconds per step':<26} " + " ".join(f"{name:>26}" for name in profiles)
        for kind in list_kinds(profiles)[: 2 + MOST_KINDS]:
            cells = [f"{profile[kind]:.2f}" if kind in profile else "" for profile in profiles.values()]
            yield f"{kind:<26} " + " ".join(f"{cell:>26}" for cell in cells)
