"""`python benchmarks/prove.py verdict|tuning|ingredients …`: test what the tools and the recipes promise.

verdict: throughput.py names the stage that was slowed down on purpose, and its advice gains what it promised. tuning:
`throughput.py --tune` never makes the loader slower. ingredients: what each ingredient of the quick recipes adds.
`python benchmarks/prove.py verdict --help` lists the flags of one of them. The record goes to --out FILE, tables to
standard output, progress to standard error. The exit status is 1 if a bottleneck is wrong, a promise not kept, or
tuning does harm.
"""

import json
import socket
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from options import (
    LEAST_REPETITIONS,
    NUM_CORES,
    check_folder,
    check_known,
    check_least,
    check_minutes,
    check_outputs,
    check_positive,
    check_repetitions,
    parse_options,
)
from phases import LOADER_NAME
from record import describe_command, describe_left, describe_origin, print_progress, summarize, write_json
from throttles import LARGE_MODEL, Conditions
from verdict import CORES, DECODE, MAX_SIDE, MODEL, QUALITY, STORAGE
from verdict import NAMES as STAGE_NAMES
from worker import FailedError, ask_all, start_worker

from loaders.config import LoaderConfig
from prep.errors import InputError, run

if TYPE_CHECKING:
    from timing import Comparison

SCRIPT = "benchmarks/prove.py"
LONGEST_SECONDS = 600  # of one measurement
MOST_ERROR = 0.2  # relative error of a promised gain that still counts as kept
ORIGINAL, SMALLER = "original", "smaller"  # folders of shards
BAD_START = LoaderConfig(num_threads=1, batches_ahead=1)
SAME, FASTER, EQUAL, SLOWER = "the defaults", "faster", "equal within the noise", "slower"


@dataclass(frozen=True)
class Verdict:
    """Check the verdict of throughput.py, and whether its promises hold; on the CPU.

    In each case one stage of the real code is slowed down: storage, decoding threads, the model (made faster or slower
    than decoding), the cores, the exchange of gradients, the start of each convolution, the loader at one resolution of
    a recipe. The verdict must name that stage. Then each advice that can be followed here is followed, training is
    measured again, and the gain is compared with the promised one.
    """

    source: Path  # real photographs: a Hugging Face folder or an image folder
    cases: tuple[str, ...] = ()
    """names of cases; unset: all, which are slow-storage, one-thread, tiny-model, large-model, one-core, slow-exchange,
    slow-launches, slow-at-one-size"""
    seconds: float = 1.0  # approximate length of one window of a stage
    repetitions: int = LEAST_REPETITIONS  # number of rounds
    out: Path | None = None  # write the record to this file, so far after each case


@dataclass(frozen=True)
class Tuning:
    """Check that `throughput.py --tune` never makes the loader slower.

    Each round runs the search from the default settings, then compares the settings that it found with the defaults in
    new pairs of windows. The last round starts with one thread and one batch ahead, which a search must improve. It
    fails if a round is slower by more than the noise, or if the last round is not faster.
    """

    data: Path  # a prepared dataset
    rounds: int = 5  # number of rounds that start from the defaults
    minutes: float = 1.0  # length of each search
    seconds: float = 0.5  # approximate length of a window of the final check
    batch_size: int = 64  # images per step
    size: int = 224  # image size in pixels
    device: str = "auto"  # auto, cpu or cuda
    out: Path | None = None  # write the record to this file


@dataclass(frozen=True)
class Ingredients:
    """Add the ingredients of the quick recipes one at a time, on a part of Tiny ImageNet with a small network.

    A run takes one to two minutes on one core. Finished runs are kept: start the command again to continue.
    """

    source: Path  # Tiny ImageNet in parquet, as on the Hugging Face hub
    work: Path  # folder for shards and finished runs
    timm: Path | None = None  # timm's train.py, of the installed version of timm: train with it too; unset: do not
    only: tuple[str, ...] = ()  # only the arms whose names contain one of these; unset: all
    out: Path | None = None  # write the record to this file


@dataclass(frozen=True)
class Case:
    """One stage slowed down on purpose."""

    name: str
    throttle: str  # description
    binds: str  # the bottleneck that the verdict must name
    lifted_by: str  # key in `Advice.change` of the advice that removes this throttle
    conditions: Conditions = field(default_factory=Conditions)
    sign: str = ""  # name of the sign (signs.py) that the verdict must find, besides the bottleneck


CASES = (
    Case(
        "slow-storage",
        "storage at 20 MB/s: a thread that reads sleeps",
        STORAGE,
        "megabytes_per_second",
        Conditions(batch_size=32, megabytes_per_second=20.0),
    ),
    Case("one-thread", "one decoding thread", DECODE, "num_threads", Conditions(size=32, num_threads=1)),
    Case("tiny-model", "a tiny model, so that decoding is the slowest stage", DECODE, "max_side", Conditions(size=16)),
    Case("large-model", "a large model", MODEL, "size", Conditions(LARGE_MODEL, size=96, batch_size=32)),
    Case("one-core", "one core of the machine", CORES, "cores", Conditions(size=48, num_cores=1)),
    Case(
        "slow-exchange",
        "two processes: each exchange of gradients sleeps for 0.2 s",
        MODEL,
        "batch_size",
        Conditions(size=32, batch_size=32, num_processes=2, exchange_seconds=0.2),
        "communication",
    ),
    Case(
        "slow-launches",
        "each convolution sleeps for 20 ms before it starts",
        MODEL,
        "batch_size",
        Conditions(size=32, batch_size=16, launch_seconds=0.02),
        "launching",
    ),
    # One resolution of a recipe is slow; the model, which is large, must bind at all others. One decoding thread leaves
    # a core for the model, so that the two do not slow each other down once the throttle is removed.
    Case(
        "slow-at-one-size",
        "the loader at 40 of 40, 48 px (160, 192 px of fast_24): each batch sleeps for 0.6 s",
        DECODE,
        "throttle",
        Conditions(
            LARGE_MODEL, batch_size=32, num_threads=1, recipe="fast_24", scale=0.25, slow_size=40, batch_seconds=0.6
        ),
    ),
)


def prove_verdict(options: Verdict) -> dict[str, Any]:
    """Run the chosen cases one after another and return the record; write it to --out after each case.

    Raises:
        FailedError: a measurement failed; the message names the case.
    """
    check_repetitions(options.repetitions)
    check_positive(seconds=options.seconds)
    check_known("--cases", options.cases, [case.name for case in CASES])
    check_folder("--source", options.source)

    from peers.formats import prepare_shards  # noqa: PLC0415

    from prep.dataset import Split  # noqa: PLC0415

    started, cases, record = time.monotonic(), {}, dict[str, Any]()
    with tempfile.TemporaryDirectory(prefix="penstock-") as temporary:
        # Prepare the images twice: with their original bytes, and stored smaller.
        data = Path(temporary)
        smaller = ["--max-side", str(MAX_SIDE), "--quality", str(QUALITY)]
        for folder, flags in ((ORIGINAL, []), (SMALLER, smaller)):
            prepare_shards(options.source.resolve(), data / folder, [*flags, "--splits", "train"])
        split = Split(data / ORIGINAL, "train")
        dataset = {"name": split.manifest.source.name, "num_images": len(split)}
        chosen, first = [case for case in CASES if not options.cases or case.name in options.cases], time.monotonic()
        for number, case in enumerate(chosen, 1):
            try:
                cases[case.name] = run_case(case, options, data)
            except FailedError as error:
                raise FailedError(f"{case.name}: a measurement failed: {error}") from error
            left = describe_left(first, number, len(chosen))
            print_progress(f"{case.name}: {format_case(cases[case.name])} ({left})")
            record = build_record(cases, dataset, time.monotonic() - started)
            if options.out:
                write_json(options.out, record)
    return record


def format_case(judged: dict[str, Any]) -> str:
    """Return the result of a case in one line: the bottleneck, training's rate, and the gain of each advice."""
    wrong = "" if judged["is_named"] else f" (WRONG: it is {judged['must_bind']})"
    gains = [
        f"{next(iter(each['change']))}: promised {each['promised_gain']:.2f} x, measured {each['measured_gain']:.2f} x"
        for each in judged["followed"]
    ]
    promise = f"promise {'kept' if judged['is_kept'] else 'NOT kept'}"
    rate = f"{judged['train']['median']:,.0f} images/s"
    return "; ".join([f"bottleneck: {judged['binds']}{wrong}, {rate}", *gains, promise])


def build_record(cases: dict[str, Any], dataset: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Return the record of the cases that have been run."""
    return {
        "what": "proof of the verdict",
        "cases": cases,
        "num_named": sum(case["is_named"] for case in cases.values()),
        "num_kept": sum(case["is_kept"] for case in cases.values()),
        "most_error": MOST_ERROR,
        "dataset": dataset,
        "placement": next(iter(cases.values()))["placement"],  # the same in all cases
        "seconds": seconds,
        **describe_origin(SCRIPT),
    }


def run_case(case: Case, options: Verdict, data: Path) -> dict[str, Any]:
    """Measure a case under its throttle, then again with each advice followed that can be; return it for the record."""
    before = run_throughput(case.conditions, "all", options, data)
    origin = {"throttle": case.throttle, "conditions": vars(case.conditions), "lifted_by": case.lifted_by}
    origin["placement"] = before["placement"]
    if case.conditions.recipe:
        after = run_throughput(replace(case.conditions, batch_seconds=0.0), "all", options, data)
        return origin | judge_phases(case, before, after)

    # Follow each advice on its own and measure training again.
    verdict, rate, followed = before["verdict"], before["stages"]["train"]["total"], []
    for each in verdict["advice"]:
        if conditions := follow_advice(each["change"], case.conditions, NUM_CORES):
            after = run_throughput(conditions, "train", options, data)["stages"]["train"]["total"]
            gains = compare_gains(each["images_per_second"] / rate["median"], after["median"] / rate["median"])
            promised = {"promised_images_per_second": each["images_per_second"], "train": after}
            followed.append({"what": each["what"], "change": each["change"], **promised, **gains})

    # Only the advice that removes this case's throttle decides whether the promise is kept.
    lifting = [each for each in followed if case.lifted_by in each["change"]]
    found = [name for name, sign in verdict["signs"].items() if sign["is_found"] and case.sign]
    return origin | {
        "must_bind": ", ".join(filter(None, (case.binds, case.sign))),
        "binds": ", ".join([verdict["binds"], *found]),
        "train": rate,
        "expected_images_per_second": verdict["expected_images_per_second"],
        "followed": followed,
        "is_named": verdict["binds"] == case.binds and found == ([case.sign] if case.sign else []),
        "is_kept": bool(lifting) and all(abs(each["error"]) <= MOST_ERROR for each in lifting),
        "verdict": verdict,
        "stages": before["stages"],
    }


def run_throughput(conditions: Conditions, mode: str, options: Verdict, data: Path) -> dict[str, Any]:
    """Run benchmarks/throughput.py under the given conditions in separate processes and return its record.

    Raises:
        FailedError: a process failed; the message names its rank and the reason.
    """
    recipe = ["--recipe", conditions.recipe, "--scale", str(conditions.scale)]
    sizes = recipe if conditions.recipe else ["--size", str(conditions.size)]
    flags = [
        *("--data", str(data / (SMALLER if conditions.is_smaller else ORIGINAL)), "--mode", mode, *sizes),
        *("--model", conditions.model, "--amp", "bf16", "--device", "cpu"),
        *("--threads", str(conditions.num_threads), "--batch-size", str(conditions.batch_size)),
        *("--seconds", str(options.seconds), "--repetitions", str(options.repetitions)),
    ]
    with tempfile.TemporaryDirectory(prefix="penstock-") as temporary, ExitStack() as stack:
        out = Path(temporary, "record.json")
        job = {"conditions": asdict(conditions), "flags": [*flags, "--out", str(out)]}
        # With several OpenMP threads, torch's threads spin while they wait for each other and use up the cores.
        places = [{"OMP_NUM_THREADS": "1", **place} for place in list_places(conditions.num_processes)]
        started = [start_worker("throttles:run_throttled", job, environment=place) for place in places]
        workers = [stack.enter_context(worker) for worker in started]
        ask_all(workers, LONGEST_SECONDS)
        return json.loads(out.read_text())


def list_places(num_processes: int) -> list[dict[str, str]]:
    """Return the variables that torchrun would set in each of several processes; for one process none."""
    if num_processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    size = str(num_processes)
    common = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_processes)]


def follow_advice(change: dict[str, Any], conditions: Conditions, num_cores: int) -> Conditions | None:
    """Return the conditions with an advice's change; None if this machine, which has `num_cores`, cannot follow it."""
    (name, value), *_ = change.items()
    if name in ("megabytes_per_second", "num_threads", "size", "batch_size"):  # the conditions have the same names
        return replace(conditions, **{name: value})
    if "max_side" in change:
        return replace(conditions, is_smaller=True)
    if "cores" in change and change["cores"] <= num_cores:
        return replace(conditions, num_cores=None if change["cores"] == num_cores else int(change["cores"]))
    return None


def compare_gains(promised: float, measured: float) -> dict[str, float]:
    """Return both gains; `error` is the promised gain relative to the measured one, minus 1."""
    return {"promised_gain": promised, "measured_gain": measured, "error": promised / measured - 1}


def judge_phases(case: Case, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Judge a recipe whose loader is slow at one resolution: it must be named there, and the model elsewhere.

    Args:
        before: record of `throughput.py --recipe` under the throttle.
        after: the same without it.
    """
    slow, phases = case.conditions.slow_size, before["phases"]
    found = {phase["measured_size"]: phase["bottleneck"] for phase in phases}
    must = {size: LOADER_NAME if size == slow else STAGE_NAMES[MODEL] for size in found}
    (throttled,) = (phase for phase in phases if phase["measured_size"] == slow)

    # The next bound of that phase is the most that training can reach without the throttle. On a CPU it reaches less,
    # because loader and model then slow each other down; so only a larger gain would contradict the bounds.
    seconds = [phase["num_images"] / phase["stages"]["train"]["total"]["median"] for phase in phases]
    next_bound = min(rate for name, rate in throttled["bounds"].items() if name != case.binds)
    saved = seconds[phases.index(throttled)] * (1 - throttled["bounds"][case.binds] / next_bound)
    rates = [record["total"]["images_per_second"] for record in (before, after)]
    gains = compare_gains(sum(seconds) / (sum(seconds) - saved), rates[1] / rates[0])
    what = "no throttle (over the whole recipe; the promised gain is an upper bound)"
    return {
        "must_bind": ", ".join(f"{name} at {size} px" for size, name in must.items()),
        "binds": ", ".join(f"{name} at {size} px" for size, name in found.items()),
        "train": throttled["stages"]["train"]["total"],
        "images_per_second": {"before": rates[0], "after": rates[1]},
        "followed": [{"what": what, "change": {case.lifted_by: None}, **gains}],
        "is_named": found == must,
        "is_kept": gains["error"] >= -MOST_ERROR,
        "phases": {"before": phases, "after": after["phases"]},
    }


def prove_tuning(options: Tuning) -> dict[str, Any]:
    """Run all rounds and return the record."""
    check_least(1, rounds=options.rounds)
    check_minutes(options.minutes)
    check_positive(seconds=options.seconds, batch_size=options.batch_size, size=options.size)

    # These imports cost seconds: --help and a refused flag must not wait for them.
    from timing import WINS, describe_comparison, describe_step  # noqa: PLC0415
    from tune import PairedWindows, Workload, run_search  # noqa: PLC0415

    from loaders import Split  # noqa: PLC0415
    from loaders.placement import choose_placement  # noqa: PLC0415
    from loaders.world import join_environment  # noqa: PLC0415

    world = join_environment(options.device)
    if world.size > 1:
        raise InputError(f"expected one process, got {world.size}: start this command without torchrun")
    work = Workload(Split(options.data, "train"), world, options.batch_size, options.size)
    rounds, found = [], {}
    for number in range(1, options.rounds + 2):
        is_last = number > options.rounds
        from_bad = "last round: start with one thread and one batch ahead"
        print_progress(from_bad if is_last else f"round {number} of {options.rounds}")
        # Resolve "auto": the search returns explicit settings, which can only equal explicit ones.
        start = choose_placement(BAD_START if is_last else LoaderConfig(), world).config
        found = run_search(work, start, options.minutes, SCRIPT)
        with PairedWindows(work, start, options.seconds) as windows:
            check = windows.compare(LoaderConfig(**found["settings"]), start, WINS, lambda: True)
        outcome = describe_outcome(check)
        print_progress(f"final check: {describe_step(check)}: {outcome}")
        figures = {name: found[name] for name in ("settings", "is_changed", "best", "comparisons")}
        rounds.append({"outcome": outcome, "check": describe_comparison(check), **figures})

    # Pairs in which both sides had the same settings differ by noise alone.
    measured = [figures for each in rounds for figures in (each["best"], each["check"])]
    noise = [ratio for each in measured if not each["changes"] for ratio in each["ratio"]["repetitions"]]
    *rounds, last = rounds
    of_all = ("dataset", "batch_size", "size", "num_processes", "device", "starts_with")
    return {
        "what": "tuning",
        "passed": is_passed([each["outcome"] for each in rounds], last["outcome"]),
        "rounds": rounds,
        "bad_start": {"start": {"num_threads": 1, "batches_ahead": 1}, **last},
        "same_settings_twice": summarize(noise) if noise else None,
        "minutes": options.minutes,
        "command": describe_command(SCRIPT),
        **{name: found[name] for name in (*of_all, "commit", "versions", "hardware", "date")},
    }


def describe_outcome(check: "Comparison") -> str:
    """Return the outcome of the final check; "slower" is a loss by the same rule by which a candidate has to win."""
    from timing import is_faster  # noqa: PLC0415

    if check.candidate == check.other:
        return SAME
    if check.is_better:
        return FASTER
    swapped = [(other, candidate) for candidate, other in check.pairs]
    return SLOWER if is_faster(swapped) else EQUAL


def is_passed(outcomes: list[str], last: str) -> bool:
    """Return True if no round made the loader slower and the last one made it faster."""
    return SLOWER not in outcomes and last == FASTER


def check_proved(record: dict[str, Any]) -> None:
    """Check that a record disproves nothing.

    Raises:
        FailedError: a bottleneck is wrong, a promise is not kept, or tuning does harm or does not help.
    """
    if "cases" in record:
        named, kept, total = record["num_named"], record["num_kept"], len(record["cases"])
        if not named == kept == total:
            raise FailedError(f"the bottleneck is right in {named} and the promise kept in {kept} of {total} cases")
    if not record.get("passed", True):
        outcomes = [each["outcome"] for each in record["rounds"]]
        raise FailedError(
            f"tuning is slower in {outcomes.count(SLOWER)} of {len(outcomes)} rounds (expected 0), and from the bad "
            f"start the result is: {record['bad_start']['outcome']} (expected: {FASTER})"
        )


def main() -> None:
    """Run one of the proofs and publish its record; fail if a promise is not kept."""
    kinds: Any = Verdict | Tuning | Ingredients
    options: Verdict | Tuning | Ingredients = parse_options(kinds, SCRIPT, __doc__)
    check_outputs(options.out)
    if isinstance(options, Verdict):
        record = prove_verdict(options)
    elif isinstance(options, Tuning):
        record = prove_tuning(options)
    else:
        from ingredients import list_arms, run_arms  # noqa: PLC0415

        record = run_arms(list_arms(options.only), options.source, options.work, options.timm)

    from reports.kinds import publish  # noqa: PLC0415

    publish(record, options.out)
    check_proved(record)


if __name__ == "__main__":
    run(main)
