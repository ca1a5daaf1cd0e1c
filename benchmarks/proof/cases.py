"""The cases that test the verdict: one throttled stage each, the expected bottleneck, and how to follow its advice.

The networks and the images are small, since a CPU trains them; the photographs are decoded as usual.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from signs.sign import COMMUNICATION, LAUNCHING
from verdict.advice import Advice
from verdict.bounds import CORES, DECODE, MODEL, STORAGE

SMALL_MODEL, LARGE_MODEL = "test_resnet", "resnet10t"


@dataclass(frozen=True)
class Conditions:
    """The conditions that the real code runs under, and its command line."""

    model: str = SMALL_MODEL
    size: int = 64  # pixels
    batch_size: int = 64
    num_threads: int = 0  # decoding threads; 0: one per core
    megabytes_per_second: float | None = None  # bandwidth of storage; None: not throttled
    num_cores: int | None = None  # cores of this machine to use; None: all
    is_smaller: bool = False  # the shards were prepared with --max-side 500 --quality 90
    num_processes: int = 1
    exchange_seconds: float = 0.0  # delay of each exchange of gradients
    launch_seconds: float = 0.0  # delay of each convolution
    recipe: str = ""  # measure its resolutions, scaled down
    scale: float = 1.0
    slow_size: int = 0  # resolution at which batches are delayed
    batch_seconds: float = 0.0  # delay of each of those batches


@dataclass(frozen=True)
class Case:
    """One stage throttled on purpose."""

    name: str
    throttle: str  # description
    binds: str  # the bottleneck that the verdict must name
    lifted_by: str  # key in `Advice.change` of the advice that removes this throttle
    conditions: Conditions = field(default_factory=Conditions)
    sign: str = ""  # the sign that the verdict must find, besides the bottleneck


CASES = (
    Case(
        "slow-storage",
        "storage at 20 MB/s: a thread that reads sleeps",
        STORAGE,
        "megabytes_per_second",
        Conditions(batch_size=32, megabytes_per_second=20.0),
    ),
    Case("one-thread", "one decoding thread", DECODE, "num_threads", Conditions(size=32, num_threads=1)),
    Case("tiny-model", "a tiny model, so that decoding is the slowest stage", DECODE, "max_side", Conditions(size=32)),
    Case("large-model", "a large model", MODEL, "size", Conditions(LARGE_MODEL, size=96, batch_size=32)),
    Case("one-core", "one core of the machine", CORES, "cores", Conditions(size=48, num_cores=1)),
    Case(
        "slow-exchange",
        "two processes: each exchange of gradients sleeps for 0.2 s",
        MODEL,
        "batch_size",
        Conditions(size=32, batch_size=32, num_processes=2, exchange_seconds=0.2),
        COMMUNICATION,
    ),
    Case(
        "slow-launches",
        "each convolution sleeps for 20 ms before it starts",
        MODEL,
        "batch_size",
        Conditions(size=32, batch_size=16, launch_seconds=0.02),
        LAUNCHING,
    ),
)
# One resolution of a recipe is slow; the model, which is large, must bind at all others. One decoding thread leaves a
# core for the model, so that the two do not slow each other down once the throttle is removed.
PHASES = Case(
    "slow-at-one-size",
    "the loader at 40 of 40, 48 px (160, 192 px of fast_24): each batch sleeps for 0.6 s",
    DECODE,
    "throttle",
    Conditions(
        LARGE_MODEL, batch_size=32, num_threads=1, recipe="fast_24", scale=0.25, slow_size=40, batch_seconds=0.6
    ),
)


def follow_advice(advice: Advice, conditions: Conditions, num_cores: int) -> Conditions | None:
    """Return the conditions with one advice followed; None if this machine, which has `num_cores`, cannot follow it."""
    change: dict[str, Any] = advice.change
    (name, value), *_ = change.items()
    if name in ("megabytes_per_second", "num_threads", "size", "batch_size"):  # the conditions have the same names
        return replace(conditions, **{name: value})
    if "max_side" in change:
        return replace(conditions, is_smaller=True)
    if "cores" in change and change["cores"] <= num_cores:
        return replace(conditions, num_cores=None if change["cores"] == num_cores else int(change["cores"]))
    return None
