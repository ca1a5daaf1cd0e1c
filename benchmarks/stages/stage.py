"""What a stage is: a part of the flow that can be run on its own, one batch at a time, and how a window of it is timed.

A window: untimed batches until the stage is at its own pace (`rest`), then `num_steps` timed ones.
"""

import time
from dataclasses import dataclass, field
from types import TracebackType

from pace import SPENT, read_clock, warm_up

from loaders import Stats, World
from train.dist import meet

READ_COLD, READ_WARM, DECODE, LOADER, MODEL, TRAIN = "read cold", "read warm", "decode", "loader", "model", "train"


@dataclass(frozen=True)
class Window:
    """One stage measured once, in this process."""

    seconds: float
    num_images: int
    cpu_seconds: float  # user and system, of all threads of the process
    num_bytes: int = 0  # of encoded images that were read
    spent: dict[str, float] = field(default_factory=dict)  # milliseconds a batch, by what took them


class Stage:
    """One part of the flow, in this process. Use as a context manager: it holds threads, files and memory."""

    def __init__(self, name: str, batch_size: int, world: World) -> None:
        self.name, self.batch_size, self.world = name, batch_size, world
        self.num_steps = 0  # of a window

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        """Give everything back."""

    def take(self) -> None:
        """One batch."""
        raise NotImplementedError

    def calibrate(self, seconds: float) -> None:
        """Run until rates are steady, and settle how many batches a window of about `seconds` has."""
        self.num_steps = warm_up(self.take, seconds, self.world)

    def rest(self) -> None:
        """What comes before a window and is not timed."""

    def stats(self) -> Stats | None:
        """The loader's figures so far, where one takes part."""
        return None


def measure(stage: Stage) -> Window:
    """One window; all processes begin it together."""
    stage.rest()
    meet(stage.world)
    before, cpu_seconds, started = stage.stats(), time.process_time(), read_clock(stage.world)
    for _ in range(stage.num_steps):
        stage.take()
    seconds = read_clock(stage.world) - started
    cpu_seconds, after = time.process_time() - cpu_seconds, stage.stats()
    spent, num_bytes = {}, 0
    if before is not None and after is not None:
        interval = after.since(before)
        spent, num_bytes = split_time(stage, interval, seconds), interval.read_bytes
    return Window(seconds, stage.num_steps * stage.batch_size, cpu_seconds, num_bytes, spent)


def split_time(stage: Stage, interval: Stats, seconds: float) -> dict[str, float]:
    """Milliseconds a batch: the consumer's `wait`, `take` and `step`; `read`, `decode`, `copy` go on beside them."""
    each = 1000 / stage.num_steps
    spent = {name: each * getattr(interval, f"{name}_seconds") for name in SPENT}
    if stage.name in (MODEL, TRAIN):
        spent["step"] = max(0.0, each * seconds - spent["wait"] - spent["take"])
    return spent
