"""Measure how the batch size changes the rate, for information: a recipe sets it, not the loader's settings."""

from contextlib import ExitStack, closing
from dataclasses import replace

from tuning.search import HasTime
from tuning.turns import Runner, Workload

from loaders import LoaderConfig

REPETITIONS = 5


def measure_sizes(work: Workload, config: LoaderConfig, num_images: int, has_time: HasTime) -> dict[int, list[float]]:
    """Return images/s per process at half the batch size, at the batch size and at twice it; each once per round.

    Args:
        num_images: approximate images of a window.
        has_time: returns True if there is time for another round; the first one is always measured.
    """
    sizes = sorted({max(1, work.batch_size // 2), work.batch_size, 2 * work.batch_size})
    rates: dict[int, list[float]] = {size: [] for size in sizes}
    with ExitStack() as stack:
        runners = {
            size: stack.enter_context(closing(Runner(replace(work, batch_size=size), config, 0))) for size in sizes
        }
        for repetition in range(REPETITIONS):
            if repetition and not has_time():
                break
            first = repetition % len(sizes)  # rotate the order, so that no size always comes first
            for size in sizes[first:] + sizes[:first]:
                num_steps = max(1, round(num_images / size))
                rates[size].append(runners[size].window(runners[size].num_untimed, num_steps))
    return rates
