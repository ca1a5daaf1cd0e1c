"""`python benchmarks/gpu_suite.py --data DIR --out DIR`: what can be measured on one GPU, in nine minutes.

The most important cases come first: a smoke test; pixels and speed of each decode path; equal bits under load, images
with RandAugment, and damaged files; rates of loader, model and training for both placements; a real training that is
killed and resumed; the tests that need a GPU; compilation; and if DIR was prepared with --restarts, spliced images
compared with whole ones. No case runs past the deadline (--minutes). Each result is
on disk before the next case begins, so an interrupted call loses nothing. A later call with --only runs some cases
again and adds them to the same --out. The standard error of all cases goes to workers.log there.
"""

import argparse
import signal
import sys
import time
from pathlib import Path

from gpu.cases import STAGES, Case, Settings, build_cases, choose_cases, list_cases
from gpu.crew import Crew, Log
from gpu.kept import CaseRecords, describe_origin, describe_settings
from gpu.runner import run_cases
from gpu.table import describe_results

from prep.dataset import read_manifest
from prep.errors import InputError, run

LOG = "workers.log"
LEAST_BATCH = 2  # BatchNorm needs a variance
DEVICES, AMP_TYPES = ("auto", "cpu", "cuda"), ("none", "bf16", "fp16")  # as train/main.py has them


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/gpu_suite.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="prepared dataset of a few hundred real JPEGs or more",
    )
    add("--split", default="train", help="default: train")
    add("--out", type=Path, required=True, metavar="DIR", help=f"folder for {', '.join(STAGES)} (.json) and {LOG}")
    add("--work", type=Path, default=Path("data/gpu-suite"), metavar="DIR", help="default: data/gpu-suite")
    add("--minutes", type=float, default=9.0, help="deadline, counted from the start of the command (default: 9)")
    add("--only", nargs="+", default=[], metavar="NAME", help="run these cases (with wildcards) and those they need")
    add("--list", action="store_true", help="print the cases with limits and estimates, and exit")
    add("--device", choices=DEVICES, default="auto", help="cpu: rehearse without a GPU (default: auto)")
    add("--batch-size", type=int, default=256, help="default: 256")
    add("--size", type=int, default=224, help="pixels (default: 224)")
    add(
        "--models",
        nargs="+",
        default=["resnet50", "resnet50d"],
        help="timm models; the first one is also compiled and tried in fp16",
    )
    add("--amp", choices=AMP_TYPES, default="bf16", help="default: bf16")
    add("--repetitions", type=int, default=3, help="per rate (default: 3)")
    add("--seconds", type=float, default=1.0, help="approximate length of a repetition (default: 1)")
    add("--epochs", type=int, default=40, help="of the training case, over all images (default: 40)")
    return parser.parse_args()


def check_arguments(arguments: argparse.Namespace) -> None:
    """Check the arguments and the dataset's size.

    Raises:
        InputError: an argument has a value that cannot be used, or the dataset is missing or too small.
    """
    for name in ("minutes", "size", "seconds", "repetitions", "epochs"):
        value = getattr(arguments, name)
        if not 0 < value < float("inf"):
            raise InputError(f"--{name} must be more than 0, got {value:g}")
    if arguments.batch_size < LEAST_BATCH:
        raise InputError(f"--batch-size must be at least {LEAST_BATCH}, got {arguments.batch_size}")
    if twice := sorted({name for name in arguments.models if arguments.models.count(name) > 1}):
        raise InputError(f"--models names {', '.join(twice)} twice: name each model once")
    manifest = read_manifest(arguments.data / arguments.split)
    if manifest.num_images < arguments.batch_size:
        raise InputError(
            f"{arguments.data / arguments.split} has {manifest.num_images} images, and a batch needs "
            f"{arguments.batch_size}: prepare more, or choose a smaller --batch-size"
        )


def find_device(wanted: str) -> str:
    """Return cpu or cuda.

    Raises:
        InputError: a GPU was asked for or is present, but cannot be used.
    """
    from loaders.world import resolve_device  # noqa: PLC0415  (torch)

    return resolve_device(wanted).type


def read_settings(arguments: argparse.Namespace, device: str) -> Settings:
    """Return the suite's settings, with absolute paths because workers run in another folder."""
    return Settings(
        data=arguments.data.resolve(),
        split=arguments.split,
        work=arguments.work.resolve(),
        device=device,
        batch_size=arguments.batch_size,
        size=arguments.size,
        models=tuple(arguments.models),
        amp=arguments.amp,
        repetitions=arguments.repetitions,
        seconds=arguments.seconds,
        epochs=arguments.epochs,
        has_segments=read_manifest(arguments.data / arguments.split).has_segments,
    )


def make_folders(arguments: argparse.Namespace) -> None:
    """Create the folders --out and --work.

    Raises:
        InputError: one cannot be created.
    """
    for name in ("out", "work"):
        folder: Path = getattr(arguments, name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder} cannot be created ({error.strerror}): choose another --{name}") from error


def run_suite(arguments: argparse.Namespace, deadline: float) -> str:
    """Run the chosen cases until the deadline; return the table of all results in the folder.

    Args:
        arguments: of the command line.
        deadline: a time of time.monotonic().
    """
    settings = read_settings(arguments, find_device(arguments.device))
    cases = build_cases(settings)
    records = CaseRecords(arguments.out, describe_settings(settings), describe_origin())
    chosen = choose_cases(cases, arguments.only, records.results)
    make_folders(arguments)
    with Log(arguments.out / LOG) as log, Crew(log) as crew:
        run_cases(chosen, records, crew, deadline)
    return describe_results(sort_results(cases, records))


def sort_results(cases: list[Case], records: CaseRecords) -> dict[str, dict]:
    """Return all results: first those of known cases, in the order of the cases."""
    known = [case.name for case in cases if case.name in records.results]
    return {name: records.results[name] for name in (*known, *records.results)}


def main() -> None:
    """Run the cases, or list them; print the table of all results."""
    started = time.monotonic()
    arguments = parse_arguments()
    check_arguments(arguments)
    if arguments.list:
        cases = build_cases(read_settings(arguments, find_device(arguments.device)))
        print(list_cases(choose_cases(cases, arguments.only, {})))
        return
    print(run_suite(arguments, deadline=started + 60 * arguments.minutes))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # leaves `with` blocks, which end the workers
    run(main, "--out has the cases that have ended; run the others with --only")
