"""Show the progress of long work: a live bar in a terminal, a line every 15 seconds in a log."""

import time
from types import TracebackType

SECONDS_BETWEEN_LINES = 15.0


class Meter:
    """Count images and bytes towards a known total; show images/s, MB/s and the time left."""

    def __init__(self, label: str, total: int, done: int = 0) -> None:
        from rich.console import Console  # noqa: PLC0415 - workers import this module and show no progress
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

        self.label, self.total, self.resumed, self.done, self.size_bytes = label, total, done, done, 0
        self.started = self.last_line = time.monotonic()
        console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.console = console
        self.task = self.bar.add_task(label, total=total, completed=done, rate="")

    def __enter__(self) -> "Meter":
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.bar.stop()

    def expect(self, total: int) -> None:
        """Replace the total by a better estimate."""
        self.total = total
        self.bar.update(self.task, total=total)

    def add(self, num_images: int, size_bytes: int) -> None:
        """Count finished work and show it."""
        self.done += num_images
        self.size_bytes += size_bytes
        self.bar.update(self.task, completed=self.done, rate=self.describe_rate())
        # Without a terminal there is no bar: print a line from time to time.
        now = time.monotonic()
        if not self.console.is_terminal and now - self.last_line > SECONDS_BETWEEN_LINES:
            self.last_line = now
            self.console.print(
                f"{self.label} {self.done:,}/{self.total:,} {self.describe_rate()} ETA {self._estimate_time_left()}",
                highlight=False,
            )

    def describe_rate(self) -> str:
        """Return images/s and MB/s since this run began."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        return f"{(self.done - self.resumed) / seconds:,.0f} images/s {self.size_bytes / seconds / 1e6:,.1f} MB/s"

    def _estimate_time_left(self) -> str:
        seconds = (time.monotonic() - self.started) * (self.total - self.done) / max(1, self.done - self.resumed)
        return format_duration(seconds)


class ByteMeter:
    """Count bytes towards a known total; show GB, GB/s, the time left, and what is waited for."""

    def __init__(self, label: str, total_bytes: int) -> None:
        from rich.console import Console  # noqa: PLC0415 - as above
        from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415

        self.label, self.total_bytes, self.done_bytes = label, total_bytes, 0
        self.started = self.last_line = time.monotonic()
        self.console = Console(stderr=True)
        is_hidden = not self.console.is_terminal
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}", markup=False))
        self.bar = Progress(*columns, console=self.console, disable=is_hidden)
        self.task = self.bar.add_task(label, total=total_bytes, state="")

    def __enter__(self) -> "ByteMeter":
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.bar.stop()

    def add(self, size_bytes: int, waiting: str = "") -> None:
        """Count bytes, which may be taken back, and show them; `waiting` says what is waited for."""
        self.done_bytes += size_bytes
        now = time.monotonic()
        if self.console.is_terminal:
            self.bar.update(self.task, completed=self.done_bytes, state=self.describe(waiting))
        elif now - self.last_line > SECONDS_BETWEEN_LINES:
            self.last_line = now
            self.console.print(f"{self.label} {self.describe(waiting)}", highlight=False, markup=False, soft_wrap=True)

    def describe(self, waiting: str = "") -> str:
        """Return bytes done and in all, the rate since this began, the time left, and what is waited for."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        left = seconds * (self.total_bytes - self.done_bytes) / self.done_bytes if self.done_bytes > 0 else None
        return " ".join(
            [
                f"{format_size(self.done_bytes, self.total_bytes)}/{format_size(self.total_bytes)}",
                describe_rate(self.done_bytes, seconds),
                f"ETA {'?' if left is None else format_duration(left)}",
                *([waiting] if waiting else []),
            ]
        )


def format_size(size_bytes: float, of_bytes: float = 0) -> str:
    """Return bytes in GB, or in MB if there is less than one GB; `of_bytes` chooses the unit of a part."""
    is_large = max(size_bytes, of_bytes) >= 1e9
    return f"{size_bytes / 1e9:,.1f} GB" if is_large else f"{size_bytes / 1e6:,.1f} MB"


def describe_rate(size_bytes: float, seconds: float) -> str:
    """Return GB/s, or MB/s if it is less than 0.1 GB/s."""
    rate = size_bytes / max(seconds, 1e-9)
    return f"{rate / 1e9:,.2f} GB/s" if rate >= 1e8 else f"{rate / 1e6:,.1f} MB/s"


def format_duration(seconds: float) -> str:
    """Return seconds as hours, minutes and seconds: 3725 becomes '1:02:05'."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
