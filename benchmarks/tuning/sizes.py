"""How the size of a batch changes the rate, for people to see: a recipe decides it, not the loader's settings."""

from contextlib import ExitStack, closing
from dataclasses import replace

from tuning.search import HasTime
from tuning.turns import Runner, Workload

from loaders import LoaderConfig

REPETITIONS = 5


def measure_sizes(work: Workload, config: LoaderConfig, num_images: int, has_time: HasTime) -> dict[int, list[float]]:
    """Images/s a process at half the batch, at the batch and at double it, in rounds in which each has a window.

    Args:
        num_images: of a window, about.
        has_time: for another round; the first is always taken.
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
            turn = repetition % len(sizes)
            for size in sizes[turn:] + sizes[:turn]:
                num_steps = max(1, round(num_images / size))
                rates[size].append(runners[size].window(runners[size].num_untimed, num_steps))
    return rates
