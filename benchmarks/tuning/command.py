"""`benchmarks/throughput.py --tune`: search the loader's fastest settings on this machine.

This module connects the command line with the parts of the package: it gets a `Request` and returns the content of the
file, which `train/main.py --loader.tuned FILE` reads.
"""

from dataclasses import dataclass, replace
from typing import Any

from record import describe_dali, describe_origin, describe_placement, print_progress
from tuning.budget import Budget
from tuning.report import build_record, describe_step, format_record
from tuning.rule import WINS
from tuning.search import Comparison, Found, HasTime, search
from tuning.sizes import measure_sizes
from tuning.space import Space, find_space
from tuning.turns import FAILURES, PairedWindows, Workload, shorten_error

from loaders import LoaderConfig
from prep.errors import InputError
from train.loader_settings import agree_on_placement

WINDOWS_PER_BUDGET, SHORTEST_WINDOW, LONGEST_WINDOW = 150, 0.05, 2.0  # a number, and seconds
# Pairs of windows whose time is reserved for the last comparison, and for the measurement of other batch sizes.
LAST_PAIRS, SIZES_PAIRS = WINS + 1, 4


@dataclass(frozen=True)
class Request:
    """The options of a search."""

    work: Workload
    start: LoaderConfig  # the settings that the search starts with, and that its result must beat
    minutes: float = 5.0
    script: str = "benchmarks/throughput.py"

    def check(self) -> None:
        """Check the options; raise InputError for a value that cannot be used."""
        if not self.minutes > 0:
            raise InputError(f"--minutes must be greater than 0 (1 or more is useful), got {self.minutes:g}")


class Tuner:
    """A search that reports its steps."""

    def __init__(self, request: Request, windows: PairedWindows, budget: Budget) -> None:
        self.request, self.windows, self.budget = request, windows, budget

    def find(self, space: Space) -> Found:
        """Return the fastest settings that were found within the budget."""
        return search(self.request.start, space, self.compare, self.may_try, self.may_prolong)

    def may_try(self) -> bool:
        """Return True if there is time for another pair, besides the steps that follow the search."""
        return self.budget.has((1 + LAST_PAIRS + SIZES_PAIRS) * self.windows.pair_seconds)

    def may_prolong(self) -> bool:
        """Return True if there is time for another pair of the last comparison."""
        return self.budget.has((1 + SIZES_PAIRS) * self.windows.pair_seconds)

    def compare(self, candidate: LoaderConfig, other: LoaderConfig, least: int, has_time: HasTime) -> Comparison:
        """Compare two settings and report the result."""
        comparison = self.windows.compare(candidate, other, least, has_time)
        self.report(describe_step(comparison))
        return comparison

    def report(self, text: str) -> None:
        """Print a line on rank 0, with the time spent and the time left."""
        spent, total = self.budget.spent(), self.budget.seconds
        if self.request.work.world.rank == 0:
            print_progress(f"{spent:.0f} s, at most {max(0, total - spent):.0f} s left: {text}")


def run_search(request: Request) -> dict[str, Any]:
    """Search the fastest settings and report them.

    Returns:
        The file's content, on every rank.

    Raises:
        InputError: the settings cannot be measured.
    """
    request.check()

    # Resolve "auto" once: the search moves between explicit settings, and the file holds explicit ones.
    work, choice = request.work, agree_on_placement(request.start, request.work.world)
    request = replace(request, start=choice.config)
    space = find_space(request.start, work.world)

    # Find the fastest settings. Windows get longer with the budget, so that it suffices for about 150 of them.
    budget = Budget(60 * request.minutes, work.world)
    window_seconds = min(LONGEST_WINDOW, max(SHORTEST_WINDOW, budget.seconds / WINDOWS_PER_BUDGET))
    with PairedWindows(work, request.start, window_seconds) as windows:
        tuner = Tuner(request, windows, budget)
        tuner.report(f"starting at about {windows.first_rate:,.0f} images/s per process; {choice}")
        found = tuner.find(space)
        num_images, round_seconds = windows.num_steps * work.batch_size // 2, 2 * windows.pair_seconds

    # Measure other batch sizes with the settings that were found.
    try:
        sizes = measure_sizes(work, found.config, num_images, lambda: budget.has(round_seconds))
    except FAILURES as error:
        # For example too little memory. With several processes the others would wait for this one, so all must end.
        if work.world.size > 1:
            raise
        sizes = {}
        tuner.report(f"other batch sizes cannot be measured ({shorten_error(error)})")

    # Build the file's content.
    origin = describe_origin(request.script, work.world, **describe_dali(found.config.backend))
    record = build_record(work, found, sizes) | {
        "starts_with": describe_placement(choice),
        "minutes": request.minutes,
        **origin,
    }
    if work.world.rank == 0:
        print_progress("\n".join(format_record(record)))
    return record
