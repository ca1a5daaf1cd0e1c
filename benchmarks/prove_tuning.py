"""`python benchmarks/prove_tuning.py --data DIR`: check that `throughput.py --tune` never makes the loader slower.

Each round runs the search from the default settings, then compares the settings that it found with the defaults in new
pairs of windows. The last round starts with one thread and one batch ahead, which a search must improve. One JSON
record goes to stdout, progress to stderr. The exit status is 1 if a round is slower by more than the noise, or if the
last round is not faster.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from record import describe_command, print_progress, publish, summarize
from tuning.rule import WINS, is_faster

from loaders.config import LoaderConfig
from prep.errors import InputError, run

if TYPE_CHECKING:
    from tuning.search import Comparison
    from tuning.turns import Workload


DEFAULTS, BAD_START = LoaderConfig(), LoaderConfig(num_threads=1, batches_ahead=1)
SAME, FASTER, EQUAL, SLOWER = "the defaults", "faster", "equal within the noise", "slower"
COMMON = ("dataset", "batch_size", "size", "num_processes", "device", "starts_with")
COMMON += ("commit", "versions", "hardware", "date")
OF_A_ROUND = ("settings", "is_changed", "best", "comparisons")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/prove_tuning.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="a prepared dataset")
    add("--rounds", type=int, default=5, help="number of rounds that start from the defaults (default: 5)")
    add("--minutes", type=float, default=1.0, help="length of each search (default: 1)")
    add("--seconds", type=float, default=0.5, help="approximate length of a window of the final check (default: 0.5)")
    add("--batch-size", type=int, default=64, help="images per step (default: 64)")
    add("--size", type=int, default=224, help="image size in pixels (default: 224)")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--out", type=Path, metavar="FILE", help="also write the record to this file")
    return parser.parse_args()


def check_arguments(arguments: argparse.Namespace) -> None:
    """Check the values of the flags; raise InputError for the first one that cannot be used."""
    if arguments.rounds < 1 or not arguments.seconds > 0:
        raise InputError(
            f"--rounds must be at least 1 and --seconds greater than 0, got {arguments.rounds} and {arguments.seconds}"
        )
    if arguments.out and not arguments.out.resolve().parent.is_dir():
        raise InputError(f"{arguments.out.parent} does not exist: create it or choose another --out")


def run_round(arguments: argparse.Namespace, work: "Workload", start: LoaderConfig) -> dict[str, Any]:
    """Run one search from `start`, then compare its result with `start` in pairs of windows that it has not seen."""
    from tuning.command import Request, run_search  # noqa: PLC0415
    from tuning.report import describe_comparison, describe_step  # noqa: PLC0415
    from tuning.turns import PairedWindows  # noqa: PLC0415

    from loaders.placement import choose_placement  # noqa: PLC0415

    # Resolve "auto": the search returns explicit settings, which can only equal explicit ones.
    start = choose_placement(start, work.world).config
    record = run_search(Request(work, start, arguments.minutes, script="benchmarks/prove_tuning.py"))
    tuned = LoaderConfig(**record["settings"])
    with PairedWindows(work, start, arguments.seconds) as windows:
        check = windows.compare(tuned, start, WINS, lambda: True)
    outcome = describe_outcome(check)
    print_progress(f"final check: {describe_step(check)}: {outcome}")
    return {
        "outcome": outcome,
        "check": describe_comparison(check),
        "common": {name: record[name] for name in COMMON},
        **{name: record[name] for name in OF_A_ROUND},
    }


def describe_outcome(check: "Comparison") -> str:
    """Return the outcome of the final check; "slower" is a loss by the same rule by which a candidate has to win."""
    if check.candidate == check.other:
        return SAME
    if check.is_better:
        return FASTER
    swapped = [(other, candidate) for candidate, other in check.pairs]
    return SLOWER if is_faster(swapped) else EQUAL


def build_record(arguments: argparse.Namespace, rounds: list[dict[str, Any]], last: dict[str, Any]) -> dict[str, Any]:
    """Return the record of all rounds, with the spread of pairs that measured the same settings twice."""
    common = last.pop("common")
    for each in rounds:
        del each["common"]
    ratios = [ratio for each in [*rounds, last] for ratio in list_noise(each)]
    return {
        "what": "tuning",
        "passed": is_passed(rounds, last),
        "rounds": rounds,
        "bad_start": {"start": {"num_threads": 1, "batches_ahead": 1}, **last},
        "same_settings_twice": summarize(ratios) if ratios else None,
        "minutes": arguments.minutes,
        "command": describe_command("benchmarks/prove_tuning.py"),
        **common,
    }


def list_noise(each: dict[str, Any]) -> list[float]:
    """Return the ratios of a round's pairs in which both sides had the same settings: they differ by noise alone."""
    return [
        ratio
        for figures in (each["best"], each["check"])
        if not figures["changes"]
        for ratio in figures["ratio"]["repetitions"]
    ]


def is_passed(rounds: list[dict[str, Any]], last: dict[str, Any]) -> bool:
    """Return True if no round made the loader slower and the last one made it faster."""
    return all(each["outcome"] != SLOWER for each in rounds) and last["outcome"] == FASTER


def main() -> int:
    """Run all rounds and publish the record; return the exit status."""
    arguments = parse_arguments()
    check_arguments(arguments)

    # These imports cost seconds: --help and a refused flag must not wait for them.
    from tuning.turns import Workload  # noqa: PLC0415

    from loaders import Split  # noqa: PLC0415
    from loaders.world import join_environment  # noqa: PLC0415

    world = join_environment(arguments.device)
    if world.size > 1:
        raise InputError(f"expected one process, got {world.size}: start this command without torchrun")
    work = Workload(Split(arguments.data, "train"), world, arguments.batch_size, arguments.size)
    rounds = []
    for number in range(arguments.rounds):
        print_progress(f"round {number + 1} of {arguments.rounds}")
        rounds.append(run_round(arguments, work, DEFAULTS))
    print_progress("last round: start with one thread and one batch ahead")
    record = build_record(arguments, rounds, run_round(arguments, work, BAD_START))
    publish(record, arguments.out)
    return 0 if record["passed"] else 1


if __name__ == "__main__":
    run(main)
