"""Show the progress of a slow method for maps: its cost, then a live line, or a line from time to time in a log."""

import sys
import time
from types import TracebackType

from prep.progress import SECONDS_BETWEEN_LINES, format_duration
from serve.maps import MapMaker

MANY_PASSES = 20  # forward passes per picture from which progress is shown


class MapProgress:
    """Count pictures whose maps are ready, on standard error; fast methods show nothing."""

    def __init__(self, cam: MapMaker, num_pictures: int) -> None:
        self.name, self.total, self.passes, self.done = cam.name, num_pictures, cam.passes, 0
        self.is_shown = cam.passes >= MANY_PASSES
        self.started = self.last_line = time.monotonic()

    def __enter__(self) -> "MapProgress":
        if self.is_shown:
            _say(f"{self.name}: {self.passes:,} forward passes for each of {self.total:,} pictures")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self.is_shown and sys.stderr.isatty():
            _say("")

    def add(self) -> None:
        """Count one picture. The first one gives the estimate of the time that the others need."""
        self.done += 1
        now = time.monotonic()
        is_due = self.done in (1, self.total) or now - self.last_line > SECONDS_BETWEEN_LINES
        if not self.is_shown or not (is_due or sys.stderr.isatty()):
            return
        self.last_line = now
        left = (now - self.started) / self.done * (self.total - self.done)
        line = f"{self.name}: {self.done:,} of {self.total:,} pictures, {format_duration(left)} left"
        _say(line, end="\r" if sys.stderr.isatty() else "\n")


def _say(line: str, end: str = "\n") -> None:
    print(line, end=end, file=sys.stderr, flush=True)
