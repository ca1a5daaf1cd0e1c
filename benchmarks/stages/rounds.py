"""All stages of a measurement, opened together and measured in rounds: each in turn, so that unrest hits all alike.

A stage that is not being measured stands still: its queues are full, and its threads wait.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from stages.decoding import Decoding, hold_batches
from stages.machine import available_bytes
from stages.reading import ColdReading, WarmReading
from stages.setting import Setting
from stages.stage import READ_COLD, Stage, Window, measure
from stages.stepping import Feed, Feeding, Stepping, build_step, open_synthetic

from loaders import Loader

MODES = ("all", "read", "decode", "loader", "model", "train")
READ_SHARE = 0.25  # of the memory that is available, which the images of a cold window may take
Windows = dict[str, list[Window]]
Report = Callable[[str, float], None]  # what was done, and the share of all that is done by then


@contextmanager
def opened(mode: str, loader: Loader, setting: Setting) -> Iterator[list[Stage]]:
    """The stages of a mode, calibrated, in the order of the flow; cold reading is left out where it is not cold."""
    with ExitStack() as stack:
        stages: list[Stage] = []

        def add(stage: Stage) -> None:
            stages.append(stack.enter_context(stage))
            stage.calibrate(setting.seconds)

        if mode in ("all", "read"):
            cold = ColdReading(loader, READ_SHARE * available_bytes())
            add(cold)
            add(WarmReading(loader, cold.num_steps))
            if not cold.is_cold:
                stages.remove(cold)
        if mode in ("all", "decode"):
            add(Decoding(loader, hold_batches(loader)))
        _open_steps(mode, loader, setting, stack, add)
        yield stages


def _open_steps(mode: str, loader: Loader, setting: Setting, stack: ExitStack, add: Callable[[Stage], None]) -> None:
    """One loader and one network serve all the stages that need them."""
    feed = stack.enter_context(Feed(loader)) if mode in ("all", "loader", "train") else None
    step = build_step(setting, loader) if mode in ("all", "model", "train") else None
    if feed and mode != "train":
        add(Feeding(feed))
    if step and mode != "train":
        add(Stepping(stack.enter_context(Feed(open_synthetic(loader, setting.size))), step))
    if feed and step:
        add(Stepping(feed, step))


def run_rounds(stages: list[Stage], repetitions: int, report: Report) -> Windows:
    """Every stage once a round; the order turns by one each time, so that none always follows the same one."""
    windows: Windows = {stage.name: [] for stage in stages}
    for repetition in range(repetitions):
        turn = repetition % len(stages)
        for i, stage in enumerate(stages[turn:] + stages[:turn]):
            window = measure(stage)
            windows[stage.name].append(window)
            done = (repetition * len(stages) + i + 1) / (repetitions * len(stages))
            rate = window.num_images / window.seconds
            report(f"round {repetition + 1} of {repetitions}, {stage.name}: {rate:,.0f} images/s", done)
    for stage in [stage for stage in stages if stage.name == READ_COLD]:
        if isinstance(stage, ColdReading) and not stage.is_cold:
            del windows[READ_COLD]  # somebody has brought the shards into memory meanwhile
    return windows
