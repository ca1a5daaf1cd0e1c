"""`python benchmarks/gpu_model.py`: measure a ResNet-50's training step on this GPU, in one minute, without data.

Cases: memory bandwidth and matmul; the eager step in bf16 and fp16; the step of train/step.py; BatchNorm, ReLU and the
addition fused by prototype kernels, which are checked first; 160, 128 and 88 pixels; torch.compile and CUDA graphs if
--minutes allow it. No case runs past the deadline, and earlier results are kept. On a CPU it is a rehearsal: small
networks, 2 images of 32 pixels, the kernels in Triton's interpreter. It needs torch, timm and numpy, the packages that
Penstock imports (pyarrow, scipy, safetensors), and Triton on a GPU; neither DALI nor a dataset.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from modelling.cases import Case, build_cases, choose_cases
from modelling.runner import Options, Runner
from modelling.table import describe_case, describe_results

from prep.errors import InputError, run
from prep.files import write_whole

LEAST_REPETITIONS = 3
LEAST_SIZE = 32  # pixels: a ResNet halves them five times


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/gpu_model.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--seconds", type=float, default=0.5, metavar="S", help="approximate length of a repetition (default: 0.5)")
    add("--repetitions", type=int, default=LEAST_REPETITIONS, help="per case, at least 3 (default: 3)")
    add("--minutes", type=float, default=1.0, help="deadline, counted from the start (default: 1; all cases: 8)")
    add("--only", nargs="+", default=[], metavar="PATTERN", help="run these cases (with wildcards) and those they need")
    add("--list", action="store_true", help="print the names of the cases in order, and exit")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    add("--batch-size", type=int, metavar="N", help="for all cases (default: each case's own; 2 on a CPU)")
    add("--size", type=int, metavar="PX", help="pixels for all cases (default: each case's own; 32 on a CPU)")
    add("--out", type=Path, metavar="FILE", help="file for the record, rewritten after each case")
    return parser.parse_args()


def check_arguments(arguments: argparse.Namespace) -> None:
    """Check the arguments.

    Raises:
        InputError: one has a value that cannot be used.
    """
    for name in ("minutes", "seconds"):
        if not 0 < getattr(arguments, name) < float("inf"):
            raise InputError(f"--{name} must be more than 0, got {getattr(arguments, name)}")
    if arguments.repetitions < LEAST_REPETITIONS:
        raise InputError(f"--repetitions must be at least {LEAST_REPETITIONS}, got {arguments.repetitions}")
    if arguments.batch_size is not None and arguments.batch_size < 2:
        raise InputError(f"--batch-size must be at least 2, got {arguments.batch_size}: BatchNorm needs a variance")
    if arguments.size is not None and arguments.size < LEAST_SIZE:
        raise InputError(f"--size must be at least {LEAST_SIZE} pixels, got {arguments.size}")
    if arguments.out and (arguments.out.is_dir() or not arguments.out.parent.is_dir()):
        raise InputError(f"--out must be a file in an existing folder, got {arguments.out}")


def find_cases(patterns: list[str]) -> list[Case]:
    """Return the wanted cases.

    Raises:
        InputError: a pattern matches no case.
    """
    cases = build_cases()
    for pattern in patterns:
        if not choose_cases(cases, [pattern]):
            raise InputError(f"unknown case {pattern}: --list names all cases")
    return choose_cases(cases, patterns)


def make_keep(out: Path | None) -> Callable[[Runner, str], None]:
    """Return the function to call after each case: it prints its line to standard error and rewrites the record."""

    def keep(runner: Runner, name: str) -> None:
        print(describe_case(name, runner.results[name], runner.results), file=sys.stderr, flush=True)
        if out:
            write_whole(out, (json.dumps(runner.content, indent=1) + "\n").encode())

    return keep


def main() -> None:
    """Measure until the deadline, then print the table of all results."""
    started = time.monotonic()
    arguments = parse_arguments()
    check_arguments(arguments)
    cases = find_cases(arguments.only)
    if arguments.list:
        print("\n".join(case.name for case in cases))
        return
    names = ("device", "minutes", "seconds", "repetitions", "batch_size", "size")
    options = Options(arguments=tuple(sys.argv[1:]), **{name: getattr(arguments, name) for name in names})
    with tempfile.TemporaryDirectory(prefix="gpu-model-", ignore_cleanup_errors=True) as caches:
        runner = Runner(options, Path(caches), started, make_keep(arguments.out))
        runner.run_cases(cases)
    print(describe_results(runner.content))


if __name__ == "__main__":
    run(main, "--out has the cases that were measured")
