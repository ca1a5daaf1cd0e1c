"""Print the suite's results: a line for each case, then the conclusions; short enough for the end of a log."""

from collections.abc import Iterator
from typing import Any

from gpu.cases import RESTARTS, ROWS, SPLICED, WHOLE
from gpu.verdicts import (
    DECODE,
    FALLBACK,
    GPU_WINS,
    PARITY,
    Results,
    find_best_path,
    find_faster_side,
    is_usable,
    parse_paths,
    rate_of,
)

LONGEST = 110  # characters, of a line's figures
MOST_CHARACTERS = 12_000
SPLICES = {SPLICED: "spliced", ROWS: "rows only"}
CONCLUSION = {
    "right": "go",
    "differs": "go, though subsampled colours differ",
    "wrong": "NO-GO, wrong pixels",
}


def describe_results(results: Results) -> str:
    """Return the table, then the conclusions."""
    lines = [describe_case(name, record) for name, record in results.items()]
    return "\n".join([*lines, "", *conclude(results)])[-MOST_CHARACTERS:]


def describe_case(name: str, record: dict[str, Any]) -> str:
    """Return a case's line."""
    return f"{name:<28} {record['status']:<8} {record.get('seconds', 0):6.1f} s  {summarize_case(record)[:LONGEST]}"


def summarize_case(record: dict[str, Any]) -> str:
    """Return a case's figures; if it is not done, the reason and the figures that it had reported before."""
    end = f"; {record['end']}" if record.get("end") else ""
    if record["status"] == "done":
        return describe_figures(record["result"]) + end
    before = f"; before: {describe_figures(record['result'])}" if record.get("result") else ""
    return f"{record['reason']}{before}{end}"


def describe_figures(result: dict[str, Any]) -> str:
    """Return the most important figures of a result of any kind."""
    kinds = {
        "verdict": describe_parity,
        "augmented": describe_augmented,
        "idle": describe_load,
        "damages": describe_damages,
        "num_passed": describe_tests,
        "checks": describe_training,
        "usage": describe_rate,
    }
    for field, describe_kind in kinds.items():
        if field in result:
            return describe_kind(result)
    if {"model", "train"} & result.keys():  # a compiled step
        return ", ".join(f"{name} {describe_rate(each)}" for name, each in result.items())
    return ", ".join(f"{name} {format_value(value)}" for name, value in result.items() if not isinstance(value, list))


def format_value(value: Any) -> str:
    """Return a plain value of a result."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def describe_parity(result: dict[str, Any]) -> str:
    """Return the verdict and the worst image of each kind, over both transforms."""
    worst: dict[str, tuple[float, float]] = {}
    for transform in ("train", "evaluation"):
        for kind, figures in result.get(transform, {}).items():
            here = (figures["worst_image"], figures["largest_pixel"])
            worst[kind] = max(worst.get(kind, here), here)
    kinds = ", ".join(f"{kind} {mean:.2f} (pixel {most:.0f})" for kind, (mean, most) in worst.items())
    verdict = result["verdict"]
    return f"{verdict.upper() if verdict == 'wrong' else verdict}: {kinds}"


def describe_augmented(result: dict[str, Any]) -> str:
    """Return the mean difference and the worst image of each kind."""
    kinds = result["augmented"].items()
    return ", ".join(f"{kind} {each['mean']:.2f} (worst image {each['worst_image']:.2f})" for kind, each in kinds)


def describe_load(result: dict[str, Any]) -> str:
    """Return whether the bits were the same, idle and under load."""
    said = []
    for name, words in (("idle", "twice idle"), ("under_load", "under load")):
        if name in result:
            values, largest = result[name]["num_values"], result[name]["largest"]
            said.append(f"{words}: {f'{values:,} VALUES DIFFER, by up to {largest}' if values else 'same bits'}")
    return "; ".join(said)


def describe_damages(result: dict[str, Any]) -> str:
    """Return the outcome of each kind of damage; for a silent one, also the mean difference from the right image."""
    said = []
    for name, each in result["damages"].items():
        apart = f" ({each['mean_difference']:.1f} of 255)" if each["outcome"] == "silent" else ""
        said.append(f"{name}: {each['outcome']}{apart}")
    return ", ".join(said)


def describe_tests(result: dict[str, Any]) -> str:
    """Return the counts, and the failed tests by name."""
    failed = f"; FAILED {', '.join(result['failed'])}" if result["failed"] else ""
    note = f"; {result['note']}" if "note" in result else ""
    return f"{result['num_passed']} passed, {result['num_skipped']} skipped{failed}{note}"


def describe_training(result: dict[str, Any]) -> str:
    """Return the checks that failed, and how far the training ran."""
    failed = [name for name, holds in result["checks"].items() if not holds]
    checks = f"NOT {', NOT '.join(failed)}" if failed else f"{len(result['checks'])} checks hold"
    if "clock" not in result:
        return checks
    return (
        f"{checks}: killed, resumed at {result['resumed_at']:,} of {result['clock']:,} images, loss "
        f"{result['first_loss']:.2f} to {result['last_loss']:.2f}"
    )


def describe_rate(result: dict[str, Any]) -> str:
    """Return images/s with spread, the time spent waiting for data, and how busy the machine was."""
    rate, wait = result["images_per_second"], result.get("data_wait_percent")
    waited = "" if wait is None else f"; wait {wait:.1f}%"
    busy = ", ".join(f"{name.removesuffix('_percent')} {value:.1f}" for name, value in result["usage"].items())
    memory = f", {result['gpu_used_gib']:.1f} GiB" if result.get("gpu_used_gib") else ""
    return f"{rate['median']:,.0f} images/s ({rate['min']:,.0f} to {rate['max']:,.0f}){waited}; {busy}{memory}"


def conclude(results: Results) -> Iterator[str]:
    """Yield the conclusions from the results, one line each."""
    yield from _name_machines(results)
    yield from _conclude_paths(results)
    yield from _conclude_load(results)
    yield from _conclude_rates(results)
    yield from _conclude_restarts(results)
    yield from _conclude_checks(results)


def _name_machines(results: Results) -> Iterator[str]:
    """Warn if the results are from several machines: ratios between machines have no meaning."""
    machines = {str(record["hardware"]["gpu"] or record["hardware"]["cpu"]) for record in results.values()}
    if len(machines) > 1:
        yield f"CAUTION: these results are of several machines ({'; '.join(sorted(machines))}): do not compare them"


def _conclude_paths(results: Results) -> Iterator[str]:
    """Yield go or no-go for each decode path, then the path that is fastest on the GPU."""
    verdicts = {path: verdict for path, verdict in parse_paths(results).items() if verdict != "skipped"}
    for path, verdict in verdicts.items():
        rate = rate_of(results.get(DECODE + path))
        shown = f", {rate:,.0f} images/s" if rate and is_usable(results[PARITY + path]) else ""
        reason = f": {results[PARITY + path]['reason']}"[:LONGEST] if verdict not in CONCLUSION else ""
        yield f"decode {path}: {CONCLUSION.get(verdict, f'NO-GO, {verdict}')}{shown}{reason}"
    if not any(record.get("job", {}).get("device") == "cuda" for record in results.values()) or not verdicts:
        return
    best = find_best_path(results)
    if best is None:
        yield "decode: no path of the GPU is right; use --loader.placement cpu"
    else:
        decode, _, load = best.partition("-")
        tried = "" if best in verdicts else f" ({FALLBACK} was not tried)"
        yield f"decode: fastest alone on the GPU: --loader.decode {decode} --loader.hw-decoder-load {load}{tried}"


def _conclude_load(results: Results) -> Iterator[str]:
    """Yield the decode paths whose bits changed."""
    for name, record in results.items():
        if not name.startswith("load-") or record["status"] != "done":
            continue
        path, result = record["job"].get("path", ""), record["result"]
        if not result["is_same_idle"]:
            yield f"{name}: {path} gives OTHER BITS from run to run: its pixels are not deterministic"
        elif not result["is_same_under_load"]:
            yield f"{name}: NO-GO, {path} gives other bits while the device is busy"


def _conclude_rates(results: Results) -> Iterator[str]:
    """Yield ratios: loader to decoding alone, training to loader and model, one placement to the other."""
    best = find_best_path(results)
    for side, path in (("cpu", "cpu"), ("gpu", best)):
        loader, decode = rate_of(results.get(f"loader-{side}")), rate_of(results.get(f"{DECODE}{path}"))
        if loader and decode:
            yield f"loader, placement {side}: {loader:,.0f} images/s, {loader / decode:.3f} of decoding alone"
    for name in results:
        model, _, side = name.removeprefix("train-").rpartition("-")
        if name.startswith("train-") and side in ("cpu", "gpu"):
            rates = [rate_of(results.get(each)) for each in (name, f"loader-{side}", f"model-{model}")]
            if all(rates):
                train, loader, alone = (rate or 0.0 for rate in rates)
                bound = min(loader, alone)
                yield f"{model}, placement {side}: train {train:,.0f} / min(loader, model) = {train / bound:.3f}"
            if side == "cpu" and (faster := find_faster_side(results, model)):
                yield _compare_sides(results, model, faster)
    yield from _conclude_variants(results)
    yield from _conclude_compiled(results)


def _conclude_variants(results: Results) -> Iterator[str]:
    """Yield the ratio of each other way to train to the usual one, `train-MODEL-gpu` or `train-MODEL-cpu`."""
    usual = {name for name in results if name.startswith("train-") and name.endswith(("-cpu", "-gpu"))}
    for name in results:
        if not name.startswith("train-") or name in usual:
            continue
        same = f"train-{results[name]['job']['model']}-gpu"
        base = next((each for each in usual if name.startswith(f"{each}-")), same)
        ours, theirs = rate_of(results[name]), rate_of(results.get(base))
        if ours and theirs:
            yield f"{name}: {ours / theirs:.3f} times {base}"


def _compare_sides(results: Results, model: str, faster: str) -> str:
    cpu, gpu = (rate_of(results[f"train-{model}-{side}"]) or 0.0 for side in ("cpu", "gpu"))
    how = f"it trains {gpu / cpu:.3f} times as fast" if faster == "gpu" else f"gpu gives {gpu / cpu:.3f} times its rate"
    return f"{model}: use placement {faster}: {how} (cpu {cpu:,.0f}, gpu {gpu:,.0f}; gpu must win by {GPU_WINS:g})"


def _conclude_compiled(results: Results) -> Iterator[str]:
    """Yield the ratio of the compiled model's rate to the eager one."""
    for name, record in results.items():
        if not name.startswith("compile-") or record["status"] != "done":
            continue
        model = record["job"]["model"]
        eager = rate_of(results.get(f"model-{model}"))
        compiled = record["result"]["model"]["images_per_second"]["median"]
        if eager:
            yield f"{model}, {name}: the model alone at {compiled / eager:.2f} times its eager rate"


def _conclude_restarts(results: Results) -> Iterator[str]:
    """Yield for each case with restart shards the ratio of images/s, spliced to whole; and spliced images not right."""
    for name, record in results.items():
        if not name.startswith(RESTARTS) or record["status"] == "skipped":
            continue
        if name.startswith(RESTARTS + PARITY):
            if not is_usable(record):
                yield f"{name}: NO-GO, spliced images are {record['status'].replace('done', 'wrong')}"
            continue
        what, _, splice = name.rpartition("-")
        spliced, whole = rate_of(record), rate_of(results.get(f"{what}-{WHOLE}"))
        if splice in SPLICES and spliced and whole:
            yield f"{what}: {SPLICES[splice]} {spliced:,.0f} images/s, {spliced / whole:.3f} times whole ones"


def _conclude_checks(results: Results) -> Iterator[str]:
    """Yield the tests that failed, and the checks of the training that do not hold."""
    tests, training = (results.get(name, {}).get("result") or {} for name in ("gpu-tests", "training"))
    if tests.get("failed"):
        yield f"gpu-tests: {len(tests['failed'])} of {tests['num_passed'] + len(tests['failed'])} FAILED"
        for name, reason in tests["failed"].items():
            yield f"  {name}: {reason}"[: 2 * LONGEST]
    if failed := training.get("failed_checks"):
        yield f"training: does NOT hold: {', '.join(failed)}"
