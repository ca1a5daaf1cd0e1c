"""Open all stages of a measurement together and measure them in rounds, so that other load affects all alike.

A stage that is not being measured is idle: its queues are full and its threads wait.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from stages.decoding import Decoding, hold_batches
from stages.machine import available_bytes
from stages.reading import ColdReading, WarmReading
from stages.setting import Setting
from stages.stage import READ_COLD, Stage, Window, measure_window
from stages.stepping import Feed, Feeding, Stepping, build_step, open_synthetic

from loaders import Loader

READ_SHARE = 0.25  # of the available memory, which the images of a cold window may fill
Windows = dict[str, list[Window]]
Report = Callable[[str, float], None]  # gets the last result, and the share of all work that is finished


@contextmanager
def open_stages(mode: str, loader: Loader, setting: Setting) -> Iterator[list[Stage]]:
    """Yield the calibrated stages of a mode in the pipeline's order; without `read cold` if reading is not cold."""
    with ExitStack() as stack:
        stages: list[Stage] = []

        def add(stage: Stage) -> None:
            stages.append(stack.enter_context(stage))
            stage.calibrate(setting.seconds)

        if mode in ("all", "read"):
            cold = ColdReading(loader, READ_SHARE * available_bytes())
            add(cold)
            add(WarmReading(loader, cold.num_steps))
            # The warm stage needs the cold one's first pass, even if that turns out not to be cold.
            if not cold.is_cold:
                stages.remove(cold)
        if mode in ("all", "decode"):
            add(Decoding(loader, hold_batches(loader)))
        _open_steps(mode, loader, setting, stack, add)
        yield stages


def _open_steps(mode: str, loader: Loader, setting: Setting, stack: ExitStack, add: Callable[[Stage], None]) -> None:
    """Open the stages with a loader or a step; they share one loader and one network."""
    # Open what the mode needs; the mode `train` needs a loader and a step, but measures neither alone.
    feed = stack.enter_context(Feed(loader)) if mode in ("all", "loader", "train") else None
    step = build_step(setting, loader) if mode in ("all", "model", "train") else None
    if feed and mode != "train":
        add(Feeding(feed))
    if step and mode != "train":
        add(Stepping(stack.enter_context(Feed(open_synthetic(loader, setting.size))), step))
    if feed and step:
        add(Stepping(feed, step))


def run_rounds(stages: list[Stage], repetitions: int, report: Report) -> Windows:
    """Measure every stage once per round; the order rotates by one, so that none always follows the same other."""
    windows: Windows = {stage.name: [] for stage in stages}
    for repetition in range(repetitions):
        first = repetition % len(stages)
        for i, stage in enumerate(stages[first:] + stages[:first]):
            window = measure_window(stage)
            windows[stage.name].append(window)

            # Report the rate, and the share of all windows that are done.
            done = (repetition * len(stages) + i + 1) / (repetitions * len(stages))
            rate = window.num_images / window.seconds
            report(f"round {repetition + 1} of {repetitions}, {stage.name}: {rate:,.0f} images/s", done)

    # Drop the cold reads if another process has read the shards into memory meanwhile.
    for stage in [stage for stage in stages if stage.name == READ_COLD]:
        if isinstance(stage, ColdReading) and not stage.is_cold:
            del windows[READ_COLD]
    return windows
