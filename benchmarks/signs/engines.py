"""The GPU's JPEG engines: how much of the time they work, and how unevenly batches arrive (p99 of a batch's time).

The share of the images that the engines get (hw_decoder_load) should be chosen by p99 as well as by the mean: training
waits for the slowest batches (DALI's pull request 6366: p99 rises from 24.5 to 34.3 ms at a load of 0.90).
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

from signs.sign import ENGINES, Sign
from stages.setting import Setting
from stages.stage import measure_window
from stages.stepping import Feed, Feeding
from tuning.turns import FAILURES

from loaders import Loader, build_loader

LOADS = (0.0, 0.65, 0.99)
LEAST_BATCHES = 100  # fewer have no 99th percentile
MOST_UNEVEN = 1.5  # p99 / p50
AS_FAST = 0.97  # share of the fastest load's images/s that another load may have
Times = Sequence[float]  # seconds of each batch


def percentile(times: Times, share: float) -> float:
    """Return the smallest time that at least `share` of all times do not exceed."""
    ordered = sorted(times)
    return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)]


def measure_loads(loader: Loader, setting: Setting) -> dict[float, Times]:
    """Return the seconds of each batch of the loader alone, at several loads; loads that fail are absent."""
    times = {}
    for load in sorted({*LOADS, loader.config.hw_decoder_load}):
        config = replace(loader.config, hw_decoder_load=load)
        try:
            other = build_loader(loader.split, loader.transform, loader.batch_size, loader.world, config=config)
            with Feed(other) as feed:
                times[load] = _time_batches(Feeding(feed), setting.seconds)
        except FAILURES:
            if loader.world.size > 1:  # the other processes wait for this one
                raise
    return times


def _time_batches(stage: Feeding, seconds: float) -> Times:
    """Return the seconds of each batch, of at least LEAST_BATCHES batches without a pause."""
    stage.calibrate(seconds)
    stage.num_steps = max(LEAST_BATCHES, stage.num_steps)
    return measure_window(stage).batch_seconds


def judge_engines(load: float, times: dict[float, Times], busy: float | None = None) -> Sign | None:
    """Return the sign; None if the present load was not measured.

    Args:
        load: the present one.
        times: by load.
        busy: share of the time that the engines work at the present load.
    """
    if load not in times:
        return None

    # The load with the lowest p99 among those that are about as fast as the fastest.
    means = {each: statistics.mean(times[each]) for each in times}
    p50, p99 = ({each: percentile(times[each], share) for each in times} for share in (0.5, 0.99))
    fast = [each for each in times if means[each] * AS_FAST <= min(means.values())]
    best = min(fast, key=lambda each: p99[each])
    is_uneven = p99[load] > MOST_UNEVEN * p50[load]
    working = "" if busy is None else f", and its JPEG engines work {busy:.0%} of the time"
    says = (
        f"At hw_decoder_load {load:g} the GPU decodes a batch in {1000 * p50[load]:,.1f} ms (p50), "
        f"{1000 * p99[load]:,.1f} ms (p99){working}"
    )
    if best != load:
        says += (
            f": --loader.hw-decoder-load {best:g} takes {1000 * means[best]:,.1f} ms on average instead of "
            f"{1000 * means[load]:,.1f}, with a p99 of {1000 * p99[best]:,.1f} ms"
        )
    elif is_uneven:
        says += ": more --loader.batches-ahead evens out slow batches"
    figures = {"load": load, "best": best, "p50": p50, "p99": p99, "mean": means, "busy": busy}
    return Sign(ENGINES, best != load or is_uneven, 1 - p50[load] / p99[load], f"{says}.", figures)
