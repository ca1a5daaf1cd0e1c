"""What this process and those that it starts write to standard error, read back while they run."""

import os
import stat
from pathlib import Path

STDERR = Path("/proc/self/fd/2")


class OwnLog:
    """The part of standard error that is written from now on. Empty where standard error is not a file."""

    def __init__(self) -> None:
        self.is_file = stat.S_ISREG(os.fstat(2).st_mode)
        self.start = os.fstat(2).st_size if self.is_file else 0

    def read(self) -> str:
        """Return the text so far."""
        if not self.is_file:
            return ""
        with STDERR.open("rb") as file:  # by /proc: a file that has been deleted can be read too
            file.seek(self.start)
            return file.read().decode(errors="replace")
