"""`benchmarks/throughput.py --tune`: finds the loader's fastest settings on this machine.

Between the command line and the parts of this package: what is asked for comes in as a `Request`, the file's content
goes out. `train/main.py --loader.tuned FILE` takes it.
"""

from dataclasses import dataclass, replace
from typing import Any

from record import describe_dali, describe_origin, describe_placement, say
from tuning.budget import Budget
from tuning.report import build_record, describe, describe_step
from tuning.rule import WINS
from tuning.search import Comparison, Found, HasTime, search
from tuning.sizes import measure_sizes
from tuning.space import Space, find_space
from tuning.turns import FAILURES, Turns, Workload, in_a_line

from loaders import LoaderConfig
from prep.errors import InputError
from train.tuned import agree_on_placement

WINDOWS_A_BUDGET, SHORTEST_WINDOW, LONGEST_WINDOW = 150, 0.05, 2.0  # seconds
LAST_PAIRS, SIZES_PAIRS = WINS + 1, 4  # the time of so many pairs is kept for the last comparison, and for the batches


@dataclass(frozen=True)
class Request:
    """What a user asks of a search."""

    work: Workload
    start: LoaderConfig  # what the search begins with, and must be beaten in the end
    minutes: float = 5.0
    script: str = "benchmarks/throughput.py"

    def check(self) -> None:
        """Raises InputError for what cannot be done."""
        if not self.minutes > 0:
            raise InputError(f"{self.minutes:g} minutes are no time to measure in: take 1 or more")


class Tuner:
    """A search that says what it does."""

    def __init__(self, request: Request, turns: Turns, budget: Budget) -> None:
        self.request, self.turns, self.budget = request, turns, budget

    def find(self, space: Space) -> Found:
        """The fastest settings, within the budget."""
        return search(self.request.start, space, self.compare, self.may_try, self.may_prolong)

    def may_try(self) -> bool:
        """Whether another pair leaves time for all that comes after."""
        return self.budget.has((1 + LAST_PAIRS + SIZES_PAIRS) * self.turns.pair_seconds)

    def may_prolong(self) -> bool:
        """Whether the last comparison may take another pair."""
        return self.budget.has((1 + SIZES_PAIRS) * self.turns.pair_seconds)

    def compare(self, candidate: LoaderConfig, other: LoaderConfig, least: int, has_time: HasTime) -> Comparison:
        """As the loaders tell, and a line of it."""
        comparison = self.turns.compare(candidate, other, least, has_time)
        self.say(describe_step(comparison))
        return comparison

    def say(self, text: str) -> None:
        """A line from rank 0, with the time."""
        spent, whole = self.budget.spent(), self.budget.seconds
        if self.request.work.world.rank == 0:
            say(f"{spent:.0f} s, at most {max(0, whole - spent):.0f} s left: {text}")


def run(request: Request) -> dict[str, Any]:
    """Search, and say what was found.

    Returns:
        The file's content, on every rank.

    Raises:
        InputError: it cannot be measured.
    """
    request.check()
    # The search moves between explicit settings, and so the file holds explicit ones: what "auto" means is resolved
    # once, here.
    work, choice = request.work, agree_on_placement(request.start, request.work.world)
    request = replace(request, start=choice.config)
    space = find_space(request.start, work.world)
    budget = Budget(60 * request.minutes, work.world)
    window_seconds = min(LONGEST_WINDOW, max(SHORTEST_WINDOW, budget.seconds / WINDOWS_A_BUDGET))
    with Turns(work, request.start, window_seconds) as turns:
        tuner = Tuner(request, turns, budget)
        tuner.say(f"begins at about {turns.first_rate:,.0f} images/s a process; {choice}")
        found = tuner.find(space)
        num_images, round_seconds = turns.num_steps * work.batch_size // 2, 2 * turns.pair_seconds
    try:
        sizes = measure_sizes(work, found.config, num_images, lambda: budget.has(round_seconds))
    except FAILURES as error:  # as where memory is not enough; of several processes the others could not go on
        if work.world.size > 1:
            raise
        sizes = {}
        tuner.say(f"other sizes of the batch cannot be measured ({in_a_line(error)})")
    origin = describe_origin(request.script, work.world, **describe_dali(found.config.backend))
    record = build_record(work, found, sizes) | {
        "starts_with": describe_placement(choice),
        "minutes": request.minutes,
        **origin,
    }
    if work.world.rank == 0:
        say("\n".join(describe(record)))
    return record
