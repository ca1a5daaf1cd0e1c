"""Tables of what ran on a GPU: the suite's cases with its conclusions, and the cases of gpu_model.py."""

from collections.abc import Iterable, Iterator
from typing import Any

from gpu.cases import (
    DECODE,
    FALLBACK,
    GPU_WINS,
    LOAD,
    PARITY,
    RESTARTS,
    ROWS,
    SPLICED,
    STAGES,
    WHOLE,
    Results,
    find_best_path,
    find_faster_side,
    is_usable,
    parse_paths,
    rate_of,
)
from modelling.cases import DONE, Outcome, describe_excess
from reports.profiles import list_shares
from reports.records import format_machine, format_number, format_options, format_ratio, format_spread, origin_tables
from tables import Table

LONGEST = 110  # characters of a reason in a conclusion
SPLICES = {SPLICED: "spliced", ROWS: "rows only"}
CONCLUSION = {
    "right": "go",
    "differs": "go, though subsampled colours differ",
    "wrong": "NO-GO, wrong pixels",
}
MODEL_HEADER = ("case", "step", "images/s", "relative to the eager step", "seconds until ready", "GiB", "outcome")
MODEL_IN_TERMINAL = tuple(name for name in MODEL_HEADER if name != "step")  # a case's name tells its step
HOW = {"ours": "the step of train/step.py", "fused": "BatchNorm fused", "graph": "the step as CUDA graphs"}
Outcomes = dict[str, Outcome]  # of gpu_model.py, by the case's name


def tables_of_suite(contents: Iterable[dict[str, Any]]) -> list[Table]:
    """Return the tables of one run, whose stages are files of one folder; cases are in the order of their stages."""
    contents = sorted(contents, key=lambda content: STAGES.index(content["stage"]))
    results = {name: record for content in contents for name, record in content["cases"].items()}
    rows = [
        [name, record["status"], summarize_case(record), f"{record.get('seconds', 0):.1f}", record["date"]]
        for name, record in results.items()
    ]
    origins = [
        f"`{record['command']}`, commit {record['commit']}, on {format_machine(record['hardware'])}, with "
        f"{format_options(record['versions'])}"
        for record in results.values()
    ]
    return [
        Table(
            header=("case", "status", "figures", "seconds", "date"),
            rows=rows,
            in_terminal=("case", "status", "seconds", "figures"),
        ),
        Table(notes=list(dict.fromkeys(origins))),
        Table(notes=list(conclude(results))),
    ]


def summarize_case(record: dict[str, Any]) -> str:
    """Return a case's figures; if it is not done, the reason and the figures that it had reported before."""
    end = f"; {record['end']}" if record.get("end") else ""
    if record["status"] == "done":
        return describe_figures(record["result"]) + end
    before = f"; before: {describe_figures(record['result'])}" if record.get("result") else ""
    return f"{record['reason']}{before}{end}"


def describe_figures(result: dict[str, Any]) -> str:
    """Return the most important figures of a result of any kind, which its fields show."""
    if "verdict" in result:  # parity: the worst image of each kind, over both transforms
        worst: dict[str, tuple[float, float]] = {}
        for transform in ("train", "evaluation"):
            for kind, figures in result.get(transform, {}).items():
                here = (figures["worst_image"], figures["largest_pixel"])
                worst[kind] = max(worst.get(kind, here), here)
        kinds = ", ".join(f"{kind} {mean:.2f} (pixel {most:.0f})" for kind, (mean, most) in worst.items())
        verdict = result["verdict"]
        return f"{verdict.upper() if verdict == 'wrong' else verdict}: {kinds}"
    if "augmented" in result:  # the mean difference and the worst image of each kind
        kinds = result["augmented"].items()
        return ", ".join(f"{kind} {each['mean']:.2f} (worst image {each['worst_image']:.2f})" for kind, each in kinds)
    if "num_passed" in result:  # tests
        failed = f"; FAILED {', '.join(result['failed'])}" if result["failed"] else ""
        note = f"; {result['note']}" if "note" in result else ""
        return f"{result['num_passed']} passed, {result['num_skipped']} skipped{failed}{note}"
    if {"model", "train"} & result.keys():  # a compiled step
        return ", ".join(f"{name} {describe_rate(each)}" for name, each in result.items())
    kinds = {"idle": describe_load, "damages": describe_damages, "checks": describe_training, "errors": describe_errors}
    kinds |= {"profile": describe_class_times, "usage": describe_rate}
    for field, describe_kind in kinds.items():
        if field in result:
            return describe_kind(result)
    values = {name: value for name, value in result.items() if not isinstance(value, list)}
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )


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


def describe_class_times(result: dict[str, Any]) -> str:
    """Return the classes of kernels and idle time with their milliseconds per step, the longest first."""
    wall, overlap = (result["profile"][name]["milliseconds_a_step"] for name in ("wall", "overlap"))
    said = ", ".join(f"{name} {each['milliseconds_a_step']:.1f}" for name, each in list_shares(result))
    return f"a step of {wall:.1f} ms: {said}; {overlap:.1f} counted several times"


def conclude(results: Results) -> Iterator[str]:
    """Yield the conclusions from the results, one line each."""
    # Ratios between machines have no meaning.
    machines = {str(record["hardware"]["gpu"] or record["hardware"]["cpu"]) for record in results.values()}
    if len(machines) > 1:
        yield f"CAUTION: these results are of several machines ({'; '.join(sorted(machines))}): do not compare them"
    yield from _conclude_paths(results)
    for name, record in results.items():
        if name.startswith(LOAD) and record["status"] == "done":
            path, result = record["job"].get("path", ""), record["result"]
            if not result["is_same_idle"]:
                yield f"{name}: {path} gives OTHER BITS from run to run: its pixels are not deterministic"
            elif not result["is_same_under_load"]:
                yield f"{name}: NO-GO, {path} gives other bits while the device is busy"
    yield from _conclude_rates(results)
    yield from _conclude_variants(results)
    yield from _conclude_speed(results)
    yield from _conclude_restarts(results)
    yield from _conclude_checks(results)


def _conclude_paths(results: Results) -> Iterator[str]:
    """Yield go or no-go for each decode path, then the path that is fastest on the GPU."""
    verdicts = {path: verdict for path, verdict in parse_paths(results).items() if verdict != "skipped"}
    for path, verdict in verdicts.items():
        rate, parity = rate_of(results.get(DECODE + path)), results[PARITY + path]
        shown = f", {rate:,.0f} images/s" if rate and is_usable(parity) else ""
        reason = f": {parity['reason']}"[:LONGEST] if verdict not in CONCLUSION else ""
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


def _conclude_rates(results: Results) -> Iterator[str]:
    """Yield ratios: loader to decoding alone, training to loader and model, one placement to the other."""

    def rate(name: str) -> float | None:
        return rate_of(results.get(name))

    for side, path in (("cpu", "cpu"), ("gpu", find_best_path(results))):
        loader, decode = rate(f"loader-{side}"), rate(f"{DECODE}{path}")
        if loader and decode:
            yield f"loader, placement {side}: {loader:,.0f} images/s, {loader / decode:.3f} of decoding alone"
    for name in results:
        model, _, side = name.removeprefix("train-").rpartition("-")
        if not name.startswith("train-") or side not in ("cpu", "gpu"):
            continue
        train, loader, alone = rate(name), rate(f"loader-{side}"), rate(f"model-{model}")
        if train and loader and alone:
            ratio = train / min(loader, alone)
            yield f"{model}, placement {side}: train {train:,.0f} / min(loader, model) = {ratio:.3f}"
        if side == "cpu" and (faster := find_faster_side(results, model)):
            cpu, gpu = rate(f"train-{model}-cpu") or 0.0, rate(f"train-{model}-gpu") or 0.0
            how = "it trains {:.3f} times as fast" if faster == "gpu" else "gpu gives {:.3f} times its rate"
            both = f"cpu {cpu:,.0f}, gpu {gpu:,.0f}; gpu must win by {GPU_WINS:g}"
            yield f"{model}: use placement {faster}: {how.format(gpu / cpu)} ({both})"


def _conclude_variants(results: Results) -> Iterator[str]:
    """Yield the ratio of each other way to train to the usual one, `train-MODEL-gpu` or `train-MODEL-cpu`.

    And of the compiled model to the eager one.
    """
    usual = {name for name in results if name.startswith("train-") and name.endswith(("-cpu", "-gpu"))}
    for name, record in results.items():
        if name.startswith("train-") and name not in usual:
            same = f"train-{record['job']['model']}-gpu"
            base = next((each for each in usual if name.startswith(f"{each}-")), same)
            ours, theirs = rate_of(record), rate_of(results.get(base))
            if ours and theirs:
                yield f"{name}: {ours / theirs:.3f} times {base}"
    for name, record in results.items():
        if name.startswith("compile-") and record["status"] == "done":
            model, compiled = record["job"]["model"], record["result"]["model"]["images_per_second"]["median"]
            if eager := rate_of(results.get(f"model-{model}")):
                yield f"{model}, {name}: the model alone at {compiled / eager:.2f} times its eager rate"


def _conclude_speed(results: Results) -> Iterator[str]:
    """Yield the ratio of each case with fused BatchNorm, or with CUDA graphs, to the same case without."""
    for name, record in results.items():
        for variant, words in (("-graph", "as CUDA graphs"), ("-fused", "with fused BatchNorm")):
            base = name.replace(variant, "")
            ours, theirs = rate_of(record), rate_of(results.get(base))
            if base != name and ours and theirs:
                yield f"{words}: {name} {ours:,.0f} images/s, {ours / theirs:.3f} times {base}"
                break


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


# A ResNet-50's training step without data.


def tables_of_model(content: dict[str, Any]) -> list[Table]:
    """Return the tables of a record."""
    results: Outcomes = content["cases"]
    kernels = content.get("kernels", "prototype kernels that training does not use")
    method = (
        f"{content['repetitions']} repetitions of about {content['seconds']:g} s, after warm-up; at most "
        f"{content['minutes']:g} min in total, of which {content['seconds_to_start']:.1f} s before the first case. "
        "Median (min to max). Ready: built, autotuned, compiled, captured. BatchNorm fused: with ReLU and the "
        f"addition, by {kernels}."
    )
    rehearsal = "A rehearsal on a CPU, with small networks and images: its figures are not valid for a GPU."
    notes = [rehearsal, method] if content["is_rehearsal"] else [method]
    rows = [_case_row(name, each, results) for name, each in results.items()]
    return [
        Table(header=MODEL_HEADER, rows=rows, notes=notes, in_terminal=MODEL_IN_TERMINAL),
        *_profile_tables(results),
        *origin_tables(content),
    ]


def describe_outcome(outcome: Outcome) -> str:
    """Return an outcome in words."""
    result = outcome["result"]
    if outcome["status"] != DONE:
        return f"{outcome['status']}: {outcome['reason']}"
    if "images_per_second" in result:
        return f"{format_spread(result['images_per_second'])} images/s"
    if "errors" in result:
        return describe_errors(result)
    copy, matmul = result["copy_terabytes_per_second"]["median"], result["matmul_teraflops"]["median"]
    return f"copy {copy:.3g} TB/s, matmul in bf16 {matmul:.3g} TFLOP/s"


def describe_errors(result: dict[str, Any]) -> str:
    """Return how many quantities of the fused kernels are right, and the one that is nearest to its limit."""
    if excess := describe_excess(result):
        return f"WRONG: {excess}"
    name, error = max(result["errors"].items(), key=lambda pair: pair[1] / result["limits"][pair[0]])
    return f"right: {len(result['errors'])} quantities; nearest to its limit: {name}, {error:.1e}"


def _case_row(name: str, outcome: Outcome, results: Outcomes) -> list[str]:
    settings, result = outcome["settings"], outcome["result"]
    step = _describe_step(settings) if settings else ""
    if outcome["status"] != DONE or "images_per_second" not in result:
        return [name, step, "", "", "", "", describe_outcome(outcome)]
    rate, memory, baseline = result["images_per_second"], result["memory_gib"], _find_baseline(settings, results)
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


def _find_baseline(settings: dict[str, Any], results: Outcomes) -> float | None:
    """Return the median images/s of the bare eager step with the same other settings, None if it was not measured."""
    wanted = {name: settings[name] for name in ("network", "is_small", "size", "batch_size", "amp")}
    wanted |= {"compile": "none", "ours": False, "fused": False, "graph": False}
    for other in results.values():
        if other["status"] == DONE and other["settings"] and wanted.items() <= other["settings"].items():
            return other["result"]["images_per_second"]["median"]
    return None


def _profile_tables(results: Outcomes) -> Iterator[Table]:
    """Yield the table of milliseconds per step by kind of kernel, one column per profiled case."""
    # Wall time, the sum of all kernels, and each kind.
    profiles: dict[str, dict[str, float]] = {}
    for name, outcome in results.items():
        if outcome["status"] == DONE and "profile" in outcome["result"]:
            rate, kinds = outcome["result"]["images_per_second"], outcome["result"]["profile"]["milliseconds_a_step"]
            wall = 1000 * outcome["settings"]["batch_size"] / rate["median"]
            profiles[name] = {"wall clock": wall, "all kernels": sum(kinds.values())} | kinds

    # The kinds are sorted by their longest time in any case.
    wholes = ["wall clock", "all kernels"]
    kinds = {kind for profile in profiles.values() for kind in profile} - {*wholes}
    kinds = sorted(kinds, key=lambda kind: -max(profile.get(kind, 0.0) for profile in profiles.values()))
    rows = [
        [kind, *(format_number(profile[kind]) if kind in profile else "" for profile in profiles.values())]
        for kind in [*wholes, *kinds]
    ]
    if profiles:
        yield Table(header=("milliseconds per step", *profiles), rows=rows)
