"""`python benchmarks/prove_verdict.py --source DIR`: is the verdict right, and are its promises kept? On the CPU.

Five cases, each with one stage of the real code throttled on purpose: storage, decoding threads, the model both ways,
the cores. The verdict must name that stage. Then its advice is followed, training is measured again, and held against
what was promised. One JSON record goes to stdout, a line a case to stderr. DIR holds real photographs, as prep/shard.py
takes them; they are prepared twice, as they are and smaller.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from proof.cases import CASES, Case, Conditions, apply
from race import FailedError, last_line
from record import describe_origin, publish, say
from stores import prepare
from verdict.advice import MAX_SIDE, QUALITY, Advice

from loaders import Split
from prep.errors import InputError, exit_with

BENCHMARKS = Path(__file__).resolve().parent
MOST_ERROR = 0.2  # of a promised gain against the gain that was measured
ORIGINAL, SMALLER = "original", "smaller"  # folders of shards
LONGEST = 600  # seconds of one measurement


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/prove_verdict.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--source", required=True, metavar="DIR", help="real photographs: a Hugging Face folder or an image folder")
    add("--cases", nargs="+", choices=[case.name for case in CASES], metavar="NAME", help="(default: all five)")
    add("--seconds", type=float, default=1.0, help="a repetition of a stage, about (default: 1)")
    add("--repetitions", type=int, default=5, help="rounds (default: 5)")
    add("--out", type=Path, metavar="FILE", help="write the record here too")
    return parser.parse_args()


def run_case(case: Case, arguments: argparse.Namespace, data: Path) -> dict[str, Any]:
    """What the verdict said under the throttle, and what each advice that can be followed here really gave."""
    before = measure(case.conditions, "all", arguments, data)
    verdict, rate = before["verdict"], before["stages"]["train"]["total"]
    followed = []
    for each in verdict["advice"]:
        conditions = apply(Advice(**each), case.conditions, len(os.sched_getaffinity(0)))
        if conditions is not None:
            after = measure(conditions, "train", arguments, data)["stages"]["train"]["total"]
            followed.append(compare(each, rate["median"], after))
    lifting = [each for each in followed if case.lifted_by in each["change"]]
    return {
        "throttle": case.throttle,
        "conditions": vars(case.conditions),
        "must_bind": case.binds,
        "binds": verdict["binds"],
        "train": rate,
        "expected_images_per_second": verdict["expected_images_per_second"],
        "followed": followed,
        "is_named": verdict["binds"] == case.binds,
        "is_kept": bool(lifting) and all(abs(each["error"]) <= MOST_ERROR for each in lifting),
        "lifted_by": case.lifted_by,
        "verdict": verdict,
        "placement": before["placement"],
        "stages": before["stages"],
    }


def compare(advice: dict[str, Any], before: float, after: dict[str, Any]) -> dict[str, Any]:
    """A promise and what came of it; the error is that of the gain, as a share of the gain that was measured."""
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


def measure(conditions: Conditions, mode: str, arguments: argparse.Namespace, data: Path) -> dict[str, Any]:
    """The record of benchmarks/throughput.py under some conditions, in a process of its own.

    Raises:
        InputError: it came to nothing.
    """
    words = ["--mode", mode, "--device", "cpu", "--model", conditions.model, "--size", str(conditions.size)]
    words += ["--data", str(data / (SMALLER if conditions.is_smaller else ORIGINAL)), "--amp", "bf16"]
    words += ["--threads", str(conditions.num_threads), "--batch-size", str(conditions.batch_size)]
    words += ["--seconds", str(arguments.seconds), "--repetitions", str(arguments.repetitions)]
    job = {"words": words, "num_cores": conditions.num_cores, "megabytes_per_second": conditions.megabytes_per_second}
    command = [sys.executable, "-m", "proof.run", json.dumps(job)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # else torch's threads wait for each other, and burn the cores
    done = subprocess.run(
        command, cwd=BENCHMARKS, env=environment, capture_output=True, text=True, check=False, timeout=LONGEST
    )
    if done.returncode:
        raise InputError(f"a measurement came to nothing: {last_line(done.stderr)}")
    return json.loads(done.stdout.splitlines()[-1])


def prepare_both(source: str, data: Path) -> None:
    """The images as they are, and stored smaller.

    Raises:
        InputError: the source cannot be prepared.
    """
    options = {ORIGINAL: [], SMALLER: ["--max-side", str(MAX_SIDE), "--quality", str(QUALITY)]}
    for name, more in options.items():
        prepare(Path(source).resolve(), data / name, [*more, "--splits", "train"])


def describe(name: str, case: dict[str, Any]) -> str:
    """One case for people."""
    named = f"{case['binds']} binds" + ("" if case["is_named"] else f" (WRONG: it is {case['must_bind']})")
    promises = "; ".join(
        f"{next(iter(each['change']))}: promised {each['promised_gain']:.2f} x, measured {each['measured_gain']:.2f} x"
        for each in case["followed"]
    )
    return f"{name}: {named}, {case['train']['median']:,.0f} images/s; {promises}"


def main() -> None:
    """Every case in turn; the exit status says whether all of them hold."""
    arguments, started = parse_arguments(), time.monotonic()
    chosen = [case for case in CASES if not arguments.cases or case.name in arguments.cases]
    with tempfile.TemporaryDirectory(prefix="penstock-") as temporary:
        prepare_both(arguments.source, Path(temporary))
        split = Split(Path(temporary) / ORIGINAL, "train")
        dataset = {"name": split.manifest.source.name, "num_images": len(split)}
        cases = {}
        for case in chosen:
            cases[case.name] = run_case(case, arguments, Path(temporary))
            say(describe(case.name, cases[case.name]))
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
        raise FailedError(f"named {record['num_named']}, kept {record['num_kept']} of {len(chosen)}")


if __name__ == "__main__":
    try:
        main()
    except (InputError, FailedError) as error:
        exit_with(InputError(str(error)))
