"""`python benchmarks/gpu_suite.py --data DIR --out DIR`: all that has to be measured on a GPU, within 25 minutes.

In order of worth: whether each decode path shows the right images, and how fast; the tests that need a GPU; loader,
model and training, and how much of the slower one training reaches; sweeps of settings; other commands. Each case
runs in a process of its own with a limit of its own, so that one that crashes or hangs is a result and no more. Run it
again to go on: cases with a result are not repeated (delete the file of their stage in --out to do so).
"""

import argparse
import sys
import time
from pathlib import Path

from gpu.cases import STAGES, Case, Settings, build_cases, choose, resolve_job
from gpu.kept import Kept, describe_machine
from gpu.runner import run_case
from gpu.table import describe, describe_case

from prep.dataset import InputError, read_manifest
from train.command import exit_with
from train.step import AMP_TYPES

LEAST_REPETITIONS = 5
LEAST_SECONDS = 5.0  # left: less starts no case


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/gpu_suite.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="prepared dataset of real JPEGs, a few hundred will do")
    add("--split", default="train", help="(default: train)")
    add("--out", type=Path, required=True, metavar="DIR", help=f"for the records: {', '.join(STAGES)}, .json each")
    add("--work", type=Path, default=Path("data/gpu-suite"), metavar="DIR", help="default: data/gpu-suite")
    add("--budget-minutes", type=float, default=25.0, help="default: 25")
    add("--only", nargs="+", default=[], metavar="NAME", help="these cases (* fits anything) and those they need")
    add("--list", action="store_true", help="print the cases' names and stop")
    add("--device", default="auto", help="auto, cpu (a dry run) or cuda")
    add("--images", type=int, default=50_000, help="on disk, the same ones under new keys (default: 50000)")
    add("--batch-size", type=int, default=256, help="default: 256")
    add("--size", type=int, default=224, help="pixels (default: 224)")
    add("--models", nargs="+", default=["resnet50", "resnet50d"], help="of timm's; compilation is tried on the first")
    add("--amp", choices=list(AMP_TYPES), default="bf16", help="default: bf16")
    add("--repetitions", type=int, default=LEAST_REPETITIONS, help="default, and least: 5")
    add("--seconds", type=float, default=2.0, help="a repetition, about (default: 2)")
    add("--also", nargs="+", default=[], metavar="NAME=COMMAND", help="run these at the end, say a short training")
    add("--also-seconds", type=float, default=600.0, help="limit of each of them (default: 600)")
    return parser.parse_args()


def check(arguments: argparse.Namespace) -> None:
    """Raises InputError for what cannot be measured with."""
    if arguments.repetitions < LEAST_REPETITIONS:
        raise InputError(f"{arguments.repetitions} repetitions show no spread: take {LEAST_REPETITIONS} or more")
    for name in ("budget_minutes", "images", "batch_size", "size", "seconds", "also_seconds"):
        if not getattr(arguments, name) > 0:
            raise InputError(f"--{name.replace('_', '-')} {getattr(arguments, name)} is too little: take more than 0")
    for each in arguments.also:
        if not all(each.partition("=")):
            raise InputError(f"--also {each} is no NAME=COMMAND: give it a name, as in 'tiny=python train/main.py …'")
    manifest = read_manifest(arguments.data / arguments.split)
    if manifest.num_images < arguments.batch_size:
        raise InputError(
            f"{arguments.data} has {manifest.num_images} images, fewer than a batch of {arguments.batch_size}: "
            "prepare more, or take a smaller --batch-size"
        )


def read_settings(arguments: argparse.Namespace) -> Settings:
    """The same, with paths that hold in every folder."""
    return Settings(
        data=arguments.data.resolve(),
        split=arguments.split,
        work=arguments.work.resolve(),
        device=arguments.device,
        num_images=arguments.images,
        batch_size=arguments.batch_size,
        size=arguments.size,
        models=tuple(arguments.models),
        amp=arguments.amp,
        repetitions=arguments.repetitions,
        seconds=arguments.seconds,
        also=tuple(arguments.also),
        also_seconds=arguments.also_seconds,
    )


def choose_cases(arguments: argparse.Namespace) -> list[Case]:
    """The wanted cases.

    Raises:
        InputError: a pattern fits none, or two cases have one name.
    """
    cases = build_cases(read_settings(arguments))
    names = [case.name for case in cases]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"two cases are named {', '.join(sorted(twice))}: name those of --also otherwise")
    for pattern in arguments.only:
        if not choose(cases, [pattern]):
            raise InputError(f"there is no case {pattern}: --list names them")
    return choose(cases, arguments.only)


def run_all(cases: list[Case], kept: Kept, budget_seconds: float) -> None:
    """Those that have no result yet, as long as there is time."""
    machine, deadline = describe_machine(), time.monotonic() + budget_seconds
    for case in cases:
        job = resolve_job(case, kept.results)
        if is_there(case, job, kept, cases):
            continue
        seconds_left = deadline - time.monotonic()
        missing = [name for name in case.needs if kept.results[name]["status"] != "done"]
        if missing:
            outcome = skip(f"it needs {', '.join(missing)}")
        elif seconds_left < LEAST_SECONDS:
            outcome = skip("no time was left: run it again")
        else:
            outcome = run_case(case, job, seconds_left)
        kept.add(case, job, outcome, machine)
        print(describe_case(case.name, kept.results[case.name]), file=sys.stderr, flush=True)


def is_there(case: Case, job: dict[str, object], kept: Kept, cases: list[Case]) -> bool:
    """Whether nothing is left to do. Shards that were deleted are made again where a case still needs them."""
    if not kept.is_settled(case, job) or "out" not in job or Path(str(job["out"])).is_dir():
        return kept.is_settled(case, job)
    needing = [other for other in cases if case.name in other.needs]
    return all(kept.is_settled(other, resolve_job(other, kept.results)) for other in needing)


def skip(reason: str) -> dict[str, object]:
    """The outcome of a case that was not begun."""
    return {"status": "skipped", "result": None, "reason": reason, "seconds": 0.0}


def main() -> None:
    """Run, then show all that is known."""
    arguments = parse_arguments()
    check(arguments)
    cases = choose_cases(arguments)
    if arguments.list:
        print("\n".join(case.name for case in cases))
        return
    for folder in (arguments.out, arguments.work):
        folder.mkdir(parents=True, exist_ok=True)
    kept = Kept(arguments.out)
    run_all(cases, kept, 60 * arguments.budget_minutes)
    every_case = build_cases(read_settings(arguments))
    print(describe(every_case, kept.current(every_case)))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        exit_with(error)
