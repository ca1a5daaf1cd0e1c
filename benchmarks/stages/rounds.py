"""Open all stages of a measurement together and measure them in rounds, so that other load affects all alike.

A stage that is not being measured is idle: its queues are full and its threads wait.
"""

import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from stages.decoding import Decoding, hold_batches
from stages.machine import available_bytes
from stages.reading import ColdReading, WarmReading
from stages.setting import Setting
from stages.stage import READ_COLD, Stage, Window, measure_window
from stages.stepping import Feed, Feeding, Stepping, build_step, open_synthetic

from loaders import Loader
from train.step import Step

STEPS = "steps"  # a mode of `open_stages` for loader, model and training, without reading and decoding alone
READ_SHARE = 0.25  # of the available memory, which the images of a cold window may fill
Windows = dict[str, list[Window]]
Report = Callable[[str, float], None]  # gets the last result, and the share of all work that is finished


@contextmanager
def open_stages(mode: str, loader: Loader, setting: Setting, step: Step | None = None) -> Iterator[list[Stage]]:
    """Yield the calibrated stages of a mode in the pipeline's order; without `read cold` if reading is not cold.

    Args:
        mode: one of MODES, or STEPS for loader, model and training alone.
        step: the training step; None: a new one, if the mode needs it.
    """
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
        _open_steps(mode, loader, setting, stack, add, step)
        yield stages


def _open_steps(
    mode: str, loader: Loader, setting: Setting, stack: ExitStack, add: Callable[[Stage], None], step: Step | None
) -> None:
    """Open the stages with a loader or a step; they share one loader and one network."""
    # Open what the mode needs; the mode `train` needs a loader and a step, but measures neither alone.
    feed = stack.enter_context(Feed(loader)) if mode in ("all", STEPS, "loader", "train") else None
    if mode not in ("all", STEPS, "model", "train"):
        step = None
    elif step is None:
        step = build_step(setting, loader)
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


def run_in_turn(stages: list[Stage], repetitions: int, report: Report) -> Windows:
    """Measure all windows of a stage one after another without a pause, then those of the next stage.

    Takes half the time of `run_rounds`, since a stage is brought to its steady rate only once. But a disturbance of
    the machine may affect one stage alone.
    """
    windows: Windows = {}
    for stage in stages:
        windows[stage.name] = [measure_window(stage, is_steady=number > 0) for number in range(repetitions)]
        rate = statistics.median(window.num_images / window.seconds for window in windows[stage.name])
        report(f"{stage.name}: {rate:,.0f} images/s", len(windows) / len(stages))
    return windows
