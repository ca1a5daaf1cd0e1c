"""The cases that prove the verdict: one stage throttled each, what must be named, and how its advice is applied.

The networks are small and so are the images, since a CPU trains them; the photographs are decoded as everywhere.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from verdict.advice import Advice
from verdict.bounds import CORES, DECODE, MODEL, STORAGE

SMALL_MODEL, LARGE_MODEL = "test_resnet", "resnet10t"


@dataclass(frozen=True)
class Conditions:
    """What the real code runs under, and the command line that it is given."""

    model: str = SMALL_MODEL
    size: int = 64  # pixels
    batch_size: int = 64
    num_threads: int = 0  # decoding threads; 0: one a core
    megabytes_per_second: float | None = None  # of storage; None: the machine's own
    num_cores: int | None = None  # of this machine; None: all
    is_smaller: bool = False  # the shards were prepared with --max-side 500 --quality 90


@dataclass(frozen=True)
class Case:
    """One stage throttled on purpose."""

    name: str
    throttle: str  # in words
    binds: str  # what the verdict must name
    lifted_by: str  # the advice that lifts this throttle, by the name of its change
    conditions: Conditions = field(default_factory=Conditions)


CASES = (
    Case(
        "slow-storage",
        "reads at 20 MB/s: whoever reads sleeps",
        STORAGE,
        "megabytes_per_second",
        Conditions(batch_size=32, megabytes_per_second=20.0),
    ),
    Case("one-thread", "one decoding thread", DECODE, "num_threads", Conditions(size=32, num_threads=1)),
    Case("tiny-model", "a tiny model, so that decoding is left", DECODE, "max_side", Conditions(size=32)),
    Case("large-model", "a large model", MODEL, "size", Conditions(LARGE_MODEL, size=96, batch_size=32)),
    Case("one-core", "one core of the machine's", CORES, "cores", Conditions(size=48, num_cores=1)),
)


def apply(advice: Advice, conditions: Conditions, num_cores: int) -> Conditions | None:
    """The conditions with one advice followed; None where this machine, of `num_cores`, cannot follow it."""
    change: dict[str, Any] = advice.change
    if "megabytes_per_second" in change:
        return replace(conditions, megabytes_per_second=change["megabytes_per_second"])
    if "num_threads" in change:
        return replace(conditions, num_threads=change["num_threads"])
    if "max_side" in change:
        return replace(conditions, is_smaller=True)
    if "size" in change:
        return replace(conditions, size=change["size"])
    if "cores" in change and change["cores"] <= num_cores:
        return replace(conditions, num_cores=None if change["cores"] == num_cores else int(change["cores"]))
    return None
