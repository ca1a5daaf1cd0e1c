"""`python benchmarks/prove_tuning.py --data DIR`: does `throughput.py --tune` ever do harm, and does it do good?

Each round tunes anew from the defaults, then holds what came of it against the defaults in fresh pairs of windows. A
last round starts with one thread and nothing ahead, which a search must better. One JSON record goes to stdout, a line
for people to stderr; the exit status is 1 where a round is slower by more than the noise, or the last one not faster.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from record import describe_command, publish, say, summarize
from tuning.command import Request, run
from tuning.report import describe_comparison, describe_step
from tuning.rule import WINS, judge
from tuning.search import Comparison
from tuning.turns import Turns, Workload

from loaders import LoaderConfig, Split, World
from loaders.device import join_environment
from loaders.placement import choose_placement
from prep.errors import InputError, exit_with

DEFAULTS, BAD_START = LoaderConfig(), LoaderConfig(num_threads=1, batches_ahead=1)
SAME, FASTER, EQUAL, SLOWER = "the defaults", "faster", "equal but for the noise", "slower"
COMMON = ("dataset", "batch_size", "size", "num_processes", "device", "starts_with")
COMMON += ("commit", "versions", "hardware", "date")
OF_A_ROUND = ("settings", "is_changed", "best", "comparisons")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/prove_tuning.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="a prepared dataset")
    add("--rounds", type=int, default=5, help="that start from the defaults (default: 5)")
    add("--minutes", type=float, default=1.0, help="of a search (default: 1)")
    add("--seconds", type=float, default=0.5, help="of a window afterwards, about (default: 0.5)")
    add("--batch-size", type=int, default=64, help="images a step (default: 64)")
    add("--size", type=int, default=224, help="pixels (default: 224)")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--out", type=Path, metavar="FILE", help="write the record here too")
    return parser.parse_args()


def check(arguments: argparse.Namespace, world: World) -> None:
    """Raises InputError for what cannot be proved with."""
    if arguments.rounds < 1 or not arguments.seconds > 0:
        raise InputError("rounds and seconds must be more than 0")
    if arguments.out and not arguments.out.resolve().parent.is_dir():
        raise InputError(f"{arguments.out.parent} does not exist: create it or choose another --out")
    if world.size > 1:
        raise InputError("the proof is of one process: start it without torchrun")


def take_round(arguments: argparse.Namespace, work: Workload, start: LoaderConfig) -> dict[str, Any]:
    """A search, and what it found against where it started, in pairs of windows that it knows nothing of."""
    start = choose_placement(start, work.world).config  # what was found is explicit too, and so can equal it
    record = run(Request(work, start, arguments.minutes, script="benchmarks/prove_tuning.py"))
    tuned = LoaderConfig(**record["settings"])
    with Turns(work, start, arguments.seconds) as turns:
        check = turns.compare(tuned, start, WINS, lambda: True)
    outcome = describe_outcome(check)
    say(f"afterwards: {describe_step(check)}: {outcome}")
    return {
        "outcome": outcome,
        "check": describe_comparison(check),
        "common": {name: record[name] for name in COMMON},
        **{name: record[name] for name in OF_A_ROUND},
    }


def describe_outcome(check: Comparison) -> str:
    """What fresh pairs say of what was tuned: slower is what loses by the rule that it had to win by."""
    if check.candidate == check.other:
        return SAME
    if check.is_better:
        return FASTER
    swapped = [(other, candidate) for candidate, other in check.pairs]
    return SLOWER if judge(swapped) else EQUAL


def build_record(arguments: argparse.Namespace, rounds: list[dict[str, Any]], last: dict[str, Any]) -> dict[str, Any]:
    """All rounds, and how far apart the same settings are when they are measured twice."""
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
    """The ratios of pairs in which nothing differed."""
    return [
        ratio
        for figures in (each["best"], each["check"])
        if not figures["changes"]
        for ratio in figures["ratio"]["repetitions"]
    ]


def is_passed(rounds: list[dict[str, Any]], last: dict[str, Any]) -> bool:
    """Whether no round did harm and the last did good."""
    return all(each["outcome"] != SLOWER for each in rounds) and last["outcome"] == FASTER


def main() -> None:
    """All rounds, then the record."""
    arguments = parse_arguments()
    world = join_environment(arguments.device)
    check(arguments, world)
    work = Workload(Split(arguments.data, "train"), world, arguments.batch_size, arguments.size)
    rounds = []
    for number in range(arguments.rounds):
        say(f"round {number + 1} of {arguments.rounds}")
        rounds.append(take_round(arguments, work, DEFAULTS))
    say("from one thread and one batch ahead")
    record = build_record(arguments, rounds, take_round(arguments, work, BAD_START))
    publish(record, arguments.out)
    if not record["passed"]:
        sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        exit_with(error)
