"""Progress of a measurement on stderr: the last figure and the remaining time."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from loaders import World


class ProgressDisplay:
    """A progress bar on a terminal, lines in a log file; only rank 0 shows anything. Use as a context manager."""

    def __init__(self, world: World) -> None:
        self.console = Console(stderr=True, quiet=world.rank != 0, highlight=False, soft_wrap=True)
        columns = (BarColumn(30), TextColumn("{task.description}"), TimeElapsedColumn())
        hidden = world.rank != 0 or not self.console.is_terminal
        self.bar = Progress(*columns, console=self.console, transient=True, disable=hidden, refresh_per_second=2)
        self.task = self.bar.add_task("warming up", total=1.0)
        self.started: float | None = None  # time of the first report; the warm-up before it is not extrapolated
        self.first = 0.0  # share of the work that was finished then

    def __enter__(self) -> "ProgressDisplay":
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.bar.stop()

    def report(self, what: str, done: float) -> None:
        """Show the last result, and the remaining time from `done`, the share of all work that is finished."""
        now = time.monotonic()
        if self.started is None:
            # Extrapolate from the first report on.
            self.started, self.first = now, done
        left = (1 - done) * (now - self.started) / (done - self.first) if done > self.first else None
        line = what if left is None else f"{what}; {left:.0f} s left"
        self.bar.update(self.task, completed=done, description=line)
        if not self.console.is_terminal:
            self.console.print(line, markup=False)
