"""`python benchmarks/prove_verdict.py --source DIR`: check the verdict of throughput.py, and whether its promises hold.

Runs on the CPU. In each case one stage of the real code is throttled on purpose: storage, decoding threads, the model
(made faster or slower than decoding), the cores, the exchange of gradients, the start of each convolution, the loader
at one resolution of a recipe. The verdict must name that stage. Then each advice that can be followed here is followed,
training is measured again, and the gain is compared with the promised one. One JSON record goes to stdout, one line per
case to stderr. DIR holds real photographs, in a layout that prep/shard.py reads; they are prepared twice: unchanged,
and stored smaller.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from proof.cases import CASES, PHASES, Case, Conditions, follow_advice
from proof.phases import judge_phases
from race import FailedError, last_line
from record import describe_origin, print_progress, publish
from stores import prepare_shards
from verdict.advice import MAX_SIDE, QUALITY, Advice

from prep.errors import InputError, run

BENCHMARKS = Path(__file__).resolve().parent
MOST_ERROR = 0.2  # relative error of a promised gain that still counts as kept
NAMES = [case.name for case in (*CASES, PHASES)]
ORIGINAL, SMALLER = "original", "smaller"  # folders of shards
LONGEST = 600  # seconds of one measurement


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/prove_verdict.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--source", required=True, metavar="DIR", help="real photographs: a Hugging Face folder or an image folder")
    add("--cases", nargs="+", choices=NAMES, metavar="NAME", help=f"default: all ({', '.join(NAMES)})")
    add("--seconds", type=float, default=1.0, help="approximate length of one window of a stage (default: 1)")
    add("--repetitions", type=int, default=5, help="number of rounds (default: 5)")
    add("--out", type=Path, metavar="FILE", help="also write the record to this file")
    return parser.parse_args()


def run_case(case: Case, arguments: argparse.Namespace, data: Path) -> dict[str, Any]:
    """Measure one case: the verdict under the throttle, and the real gain of each advice that can be followed here."""
    before = run_throughput(case.conditions, "all", arguments, data)
    verdict, rate = before["verdict"], before["stages"]["train"]["total"]

    # Follow each advice on its own and measure training again.
    followed = []
    for each in verdict["advice"]:
        conditions = follow_advice(Advice(**each), case.conditions, len(os.sched_getaffinity(0)))
        if conditions is not None:
            after = run_throughput(conditions, "train", arguments, data)["stages"]["train"]["total"]
            followed.append(compare_gains(each, rate["median"], after))

    # Only the advice that removes this case's throttle decides whether the promise is kept.
    lifting = [each for each in followed if case.lifted_by in each["change"]]
    found = [name for name, sign in verdict["signs"].items() if sign["is_found"] and case.sign]
    return {
        "throttle": case.throttle,
        "conditions": vars(case.conditions),
        "must_bind": ", ".join(filter(None, (case.binds, case.sign))),
        "binds": ", ".join([verdict["binds"], *found]),
        "train": rate,
        "expected_images_per_second": verdict["expected_images_per_second"],
        "followed": followed,
        "is_named": verdict["binds"] == case.binds and found == ([case.sign] if case.sign else []),
        "is_kept": bool(lifting) and all(abs(each["error"]) <= MOST_ERROR for each in lifting),
        "lifted_by": case.lifted_by,
        "verdict": verdict,
        "placement": before["placement"],
        "stages": before["stages"],
    }


def run_phases(arguments: argparse.Namespace, data: Path) -> dict[str, Any]:
    """Measure a recipe with the loader throttled at one resolution, then without the throttle."""
    before = run_throughput(PHASES.conditions, "all", arguments, data)
    after = run_throughput(replace(PHASES.conditions, batch_seconds=0.0), "all", arguments, data)
    return judge_phases(PHASES, before, after, MOST_ERROR)


def compare_gains(advice: dict[str, Any], before: float, after: dict[str, Any]) -> dict[str, Any]:
    """Return a promised gain and the measured one; `error` is the promised gain relative to the measured one, minus 1.

    Args:
        before: images/s of training before the change.
        after: the summary of training's images/s after it.
    """
    promised, measured = advice["images_per_second"] / before, after["median"] / before
    return {
        "what": advice["what"],
        "change": advice["change"],
        "promised_images_per_second": advice["images_per_second"],
        "train": after,
        "promised_gain": promised,
        "measured_gain": measured,
        "error": promised / measured - 1,
    }


def run_throughput(conditions: Conditions, mode: str, arguments: argparse.Namespace, data: Path) -> dict[str, Any]:
    """Run benchmarks/throughput.py under the given conditions in a separate process and return its record.

    Raises:
        InputError: the process failed; the message has its last line.
    """
    words = ["--mode", mode, "--device", "cpu", "--model", conditions.model]
    if conditions.recipe:
        words += ["--recipe", conditions.recipe, "--scale", str(conditions.scale)]
    else:
        words += ["--size", str(conditions.size)]
    words += ["--data", str(data / (SMALLER if conditions.is_smaller else ORIGINAL)), "--amp", "bf16"]
    words += ["--threads", str(conditions.num_threads), "--batch-size", str(conditions.batch_size)]
    words += ["--seconds", str(arguments.seconds), "--repetitions", str(arguments.repetitions)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--local-ranks-filter", "0", "--nproc-per-node"]
    start = [*launcher, str(conditions.num_processes)] if conditions.num_processes > 1 else []
    command = [sys.executable, *start, "-m", "proof.run", json.dumps(vars(conditions) | {"words": words})]
    # With several OpenMP threads, torch's threads spin while they wait for each other and use up the cores.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=BENCHMARKS, env=environment, capture_output=True, text=True, check=False, timeout=LONGEST
    )
    if done.returncode:
        raise InputError(f"a measurement failed: {last_line(done.stderr)}")
    return json.loads(done.stdout.splitlines()[-1])


def prepare_both(source: str, data: Path) -> None:
    """Prepare the images twice below `data`: with their original bytes, and stored smaller.

    Raises:
        InputError: the source cannot be prepared.
    """
    options = {ORIGINAL: [], SMALLER: ["--max-side", str(MAX_SIDE), "--quality", str(QUALITY)]}
    for name, more in options.items():
        prepare_shards(Path(source).resolve(), data / name, [*more, "--splits", "train"])


def format_case(name: str, case: dict[str, Any]) -> str:
    """Return the progress line of one case."""
    named = f"bottleneck: {case['binds']}" + ("" if case["is_named"] else f" (WRONG: it is {case['must_bind']})")
    promises = "; ".join(
        f"{next(iter(each['change']))}: promised {each['promised_gain']:.2f} x, measured {each['measured_gain']:.2f} x"
        for each in case["followed"]
    )
    return f"{name}: {named}, {case['train']['median']:,.0f} images/s; {promises}"


def main() -> None:
    """Run the chosen cases and publish the record; fail if a bottleneck is named wrongly or a promise not kept."""
    arguments, started = parse_arguments(), time.monotonic()

    from prep.dataset import Split  # noqa: PLC0415

    # Prepare the images, then run the cases one after another.
    chosen = [name for name in NAMES if not arguments.cases or name in arguments.cases]
    with tempfile.TemporaryDirectory(prefix="penstock-") as temporary:
        prepare_both(arguments.source, Path(temporary))
        split = Split(Path(temporary) / ORIGINAL, "train")
        dataset = {"name": split.manifest.source.name, "num_images": len(split)}
        cases = {}
        by_name = {case.name: case for case in CASES}
        for name in chosen:
            case = by_name.get(name)
            cases[name] = run_case(case, arguments, Path(temporary)) if case else run_phases(arguments, Path(temporary))
            print_progress(format_case(name, cases[name]))
    record = {
        "what": "proof of the verdict",
        "cases": cases,
        "num_named": sum(case["is_named"] for case in cases.values()),
        "num_kept": sum(case["is_kept"] for case in cases.values()),
        "most_error": MOST_ERROR,
        "dataset": dataset,
        "placement": next(iter(cases.values()))["placement"],  # the same in all cases
        "seconds": time.monotonic() - started,
        **describe_origin("benchmarks/prove_verdict.py"),
    }
    publish(record, arguments.out)
    if not record["num_named"] == record["num_kept"] == len(chosen):
        raise FailedError(
            f"the bottleneck is right in {record['num_named']} and the promise kept in {record['num_kept']} "
            f"of {len(chosen)} cases"
        )


if __name__ == "__main__":
    run(main)
