"""`python benchmarks/gpu_model.py`: what a ResNet-50's training step can do on this GPU, in a minute, without data.

Bandwidth and matmul; the eager step in bf16 and fp16; the step of train/step.py; BatchNorm, ReLU and the addition fused
by prototype kernels, checked first; 160, 128 and 88 pixels; torch.compile and CUDA graphs where --minutes allow it. No
case passes the deadline; what was measured before it is kept. On a CPU it is a rehearsal: small networks, 2 images of
32 pixels, the kernels in Triton's interpreter. Needs torch, timm and numpy, with what Penstock imports (pyarrow,
scipy, safetensors), and Triton on a GPU; neither DALI nor a dataset.
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

from prep.errors import InputError
from prep.files import write_whole

LEAST_REPETITIONS = 3
LEAST_SIZE = 32  # pixels: a ResNet halves them five times


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/gpu_model.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--seconds", type=float, default=0.5, metavar="S", help="of a repetition, about (default: 0.5)")
    add("--repetitions", type=int, default=LEAST_REPETITIONS, help="of each case (default, and least: 3)")
    add("--minutes", type=float, default=1.0, help="until the deadline, all included (default: 1; all cases: 8)")
    add("--only", nargs="+", default=[], metavar="PATTERN", help="these cases (* fits anything) and those they need")
    add("--list", action="store_true", help="print the cases' names in order and stop")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU where there is one")
    add("--batch-size", type=int, metavar="N", help="of every case (default: each case's own; 2 on a CPU)")
    add("--size", type=int, metavar="PX", help="of every case (default: each case's own; 32 on a CPU)")
    add("--out", type=Path, metavar="FILE", help="for the record: rewritten after every case")
    return parser.parse_args()


def check(arguments: argparse.Namespace) -> None:
    """Raises InputError for what cannot be measured with."""
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
        InputError: a pattern fits none.
    """
    cases = build_cases()
    for pattern in patterns:
        if not choose_cases(cases, [pattern]):
            raise InputError(f"unknown case {pattern}: --list names all cases")
    return choose_cases(cases, patterns)


def make_keep(out: Path | None) -> Callable[[Runner, str], None]:
    """Return what happens after every case: a line on standard error, and the record in its file."""

    def keep(runner: Runner, name: str) -> None:
        print(describe_case(name, runner.results[name], runner.results), file=sys.stderr, flush=True)
        if out:
            write_whole(out, (json.dumps(runner.content, indent=1) + "\n").encode())

    return keep


def main() -> None:
    """Measure until the deadline, then show all that is known."""
    started = time.monotonic()
    arguments = parse_arguments()
    check(arguments)
    cases = find_cases(arguments.only)
    if arguments.list:
        print("\n".join(case.name for case in cases))
        return
    names = ("device", "minutes", "seconds", "repetitions", "batch_size", "size")
    options = Options(arguments=tuple(sys.argv[1:]), **{name: getattr(arguments, name) for name in names})
    with tempfile.TemporaryDirectory(prefix="gpu-model-", ignore_cleanup_errors=True) as caches:
        runner = Runner(options, Path(caches), started, make_keep(arguments.out))
        runner.run(cases)
    print(describe_results(runner.content))


if __name__ == "__main__":
    try:
        main()
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: --out holds what was measured")
