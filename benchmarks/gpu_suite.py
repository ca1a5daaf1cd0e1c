"""`python benchmarks/gpu_suite.py --data DIR --out DIR`: all that has to be measured on a GPU, in nine minutes.

In order of worth: whether anything works; whether each decode path shows the right images, and how fast; the same bits
under load, and damaged files; loader, model and training for both placements; the tests that need a GPU; compilation;
a real training that is killed and resumed. No case passes the deadline (--minutes). Every result is on disk before the
next case begins, so a call that is cut loses nothing; a later call with --only runs chosen cases again and writes them
into the same --out. Standard error of all cases is kept in workers.log there.
"""

import argparse
import signal
import sys
import time
from pathlib import Path

from gpu.cases import STAGES, Case, Settings, build_cases, choose, list_cases
from gpu.crew import Crew, Log
from gpu.kept import Kept, describe_origin, describe_settings
from gpu.runner import run_cases
from gpu.table import describe

from prep.dataset import read_manifest
from prep.errors import InputError

LOG = "workers.log"
LEAST_BATCH = 2  # BatchNorm needs a variance
DEVICES, AMP_TYPES = ("auto", "cpu", "cuda"), ("none", "bf16", "fp16")  # as train/main.py has them


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/gpu_suite.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="prepared dataset of real JPEGs, a few hundred will do")
    add("--split", default="train", help="default: train")
    add("--out", type=Path, required=True, metavar="DIR", help=f"for {', '.join(STAGES)} (.json each) and {LOG}")
    add("--work", type=Path, default=Path("data/gpu-suite"), metavar="DIR", help="default: data/gpu-suite")
    add("--minutes", type=float, default=9.0, help="until the deadline, all included (default: 9)")
    add("--only", nargs="+", default=[], metavar="NAME", help="these cases (* fits anything) and those they need")
    add("--list", action="store_true", help="print the cases with limits and estimates, and stop")
    add("--device", choices=DEVICES, default="auto", help="cpu: a rehearsal (default: auto)")
    add("--batch-size", type=int, default=256, help="default: 256")
    add("--size", type=int, default=224, help="pixels (default: 224)")
    add("--models", nargs="+", default=["resnet50", "resnet50d"], help="of timm's; compilation is tried on the first")
    add("--amp", choices=AMP_TYPES, default="bf16", help="default: bf16")
    add("--repetitions", type=int, default=3, help="of each rate (default: 3)")
    add("--seconds", type=float, default=1.5, help="of a repetition, about (default: 1.5)")
    add("--epochs", type=int, default=40, help="of the training case, of all images (default: 40)")
    return parser.parse_args()


def check(arguments: argparse.Namespace) -> None:
    """Raises InputError for what cannot be measured with."""
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
            f"{arguments.batch_size}: prepare more, or take a smaller --batch-size"
        )


def find_device(wanted: str) -> str:
    """Return cpu or cuda.

    Raises:
        InputError: a GPU was asked for or is there, and cannot be used.
    """
    from loaders.device import resolve_device  # noqa: PLC0415  (imports torch)

    return resolve_device(wanted).type


def read_settings(arguments: argparse.Namespace, device: str) -> Settings:
    """Return the same, with paths that hold in every folder."""
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
    )


def make_folders(arguments: argparse.Namespace) -> None:
    """Raises InputError where a folder cannot be made."""
    for name in ("out", "work"):
        folder: Path = getattr(arguments, name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder} cannot be made a folder ({error.strerror}): choose another --{name}") from error


def run(arguments: argparse.Namespace, deadline: float) -> str:
    """Run the chosen cases until the deadline; return the table of all results in the folder."""
    settings = read_settings(arguments, find_device(arguments.device))
    cases = build_cases(settings)
    kept = Kept(arguments.out, describe_settings(settings), describe_origin())
    chosen = choose(cases, arguments.only, kept.results)
    make_folders(arguments)
    with Log(arguments.out / LOG) as log, Crew(log) as crew:
        run_cases(chosen, kept, crew, deadline)
    return describe(in_order(cases, kept))


def in_order(cases: list[Case], kept: Kept) -> dict[str, dict]:
    """Return all results, those of known cases in their order."""
    known = [case.name for case in cases if case.name in kept.results]
    return {name: kept.results[name] for name in (*known, *kept.results)}


def main() -> None:
    """Run, then show all that is known."""
    deadline = time.monotonic()
    arguments = parse_arguments()
    check(arguments)
    deadline += 60 * arguments.minutes
    if arguments.list:
        cases = build_cases(read_settings(arguments, find_device(arguments.device)))
        print(list_cases(choose(cases, arguments.only, {})))
        return
    print(run(arguments, deadline))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # the workers end with it
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
