"""A stage: a part of the pipeline that can run alone, one batch at a time, and how a window of it is timed.

A window: untimed batches until the stage runs at its steady rate (`rest`), then `num_steps` timed ones.
"""

import time
from dataclasses import dataclass, field
from itertools import pairwise
from types import TracebackType

from pace import SPENT, read_clock, warm_up

from loaders import Stats, World
from train.dist import barrier

READ_COLD, READ_WARM, DECODE, LOADER, MODEL, TRAIN = "read cold", "read warm", "decode", "loader", "model", "train"


@dataclass(frozen=True)
class Window:
    """One measurement of a stage, in this process."""

    seconds: float
    num_images: int
    cpu_seconds: float  # user and system time of all threads of the process
    num_bytes: int = 0  # of the encoded images, read
    image_bytes: int = 0  # size of these images in the shards; from restart shards only a part of it is read
    decode_bytes: int = 0  # of the JPEGs that were passed to the decoder
    spent: dict[str, float] = field(default_factory=dict)  # milliseconds per batch, by kind of work
    batch_seconds: tuple[float, ...] = ()  # from batch to batch, as the consumer sees it


class Stage:
    """One part of the pipeline, in this process. Use as a context manager: it holds threads, files and memory."""

    def __init__(self, name: str, batch_size: int, world: World) -> None:
        self.name, self.batch_size, self.world = name, batch_size, world
        self.num_steps = 0  # batches of a window

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        """Release all threads, files and memory."""

    def take(self) -> None:
        """Send one batch through the stage."""
        raise NotImplementedError

    def calibrate(self, seconds: float) -> None:
        """Run until the rate is steady, and set the number of batches of a window of about `seconds`."""
        self.num_steps = warm_up(self.take, seconds, self.world)

    def rest(self) -> None:
        """Do what comes before a window and is not timed."""

    def stats(self) -> Stats | None:
        """Return the loader's counters so far; None for a stage without a loader."""
        return None


def measure_window(stage: Stage, is_steady: bool = False) -> Window:
    """Measure one window of a stage; all processes start it together.

    Args:
        is_steady: the stage runs at its steady rate already, because the window follows another one without a pause.
    """
    # Bring the stage to its steady rate; then all processes start the clock together.
    if not is_steady:
        stage.rest()
    barrier(stage.world)
    before, cpu_seconds, started = stage.stats(), time.process_time(), read_clock(stage.world)
    marks = [time.perf_counter()]
    for _ in range(stage.num_steps):
        stage.take()
        marks.append(time.perf_counter())
    seconds = read_clock(stage.world) - started
    cpu_seconds, after = time.process_time() - cpu_seconds, stage.stats()

    # The difference of the loader's counters is what happened in the window.
    spent, num_bytes = {}, (0, 0, 0)
    if before is not None and after is not None:
        interval = after.since(before)
        spent = split_time(stage, interval, seconds)
        num_bytes = (interval.read_bytes, interval.image_bytes, interval.decode_bytes)
    batch_seconds = tuple(end - start for start, end in pairwise(marks))
    return Window(seconds, stage.num_steps * stage.batch_size, cpu_seconds, *num_bytes, spent, batch_seconds)


def split_time(stage: Stage, interval: Stats, seconds: float) -> dict[str, float]:
    """Return how the time of a batch is spent, in milliseconds per batch.

    `wait`, `take` and `step` are the consumer's time; `read`, `decode` and `copy` happen at the same time in threads.
    """
    each = 1000 / stage.num_steps
    spent = {name: each * getattr(interval, f"{name}_seconds") for name in SPENT}
    # A step's share is what is left of the wall time after waiting for the batch and taking it.
    if stage.name in (MODEL, TRAIN):
        spent["step"] = max(0.0, each * seconds - spent["wait"] - spent["take"])
    return spent
