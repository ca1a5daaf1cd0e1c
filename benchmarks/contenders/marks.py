"""The moment at which a process asks its source for the first image, noted by every process that does.

From the earliest of these moments a contender's time counts, whoever it is: what comes before (imports, starting
worker processes) is reported apart. Runs under the peers' interpreters too: the standard library alone.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = "PENSTOCK_BENCHMARK_MARKS"  # the environment variable by which worker processes find it
_noted: set[int] = set()  # process ids: a forked worker notes its own


def note_first_image() -> None:
    """To be called just before an image is read; only a process's first call does anything."""
    if os.getpid() in _noted:
        return
    _noted.add(os.getpid())
    mark = {"at": time.monotonic(), "cpu_seconds": time.process_time()}
    (Path(os.environ[FOLDER]) / f"{os.getpid()}.json").write_text(json.dumps(mark))


def read_marks() -> Iterator[dict[str, Any]]:
    """The marks of all processes: `at` on the clock that they share, CPU time spent before it, process id."""
    for path in Path(os.environ[FOLDER]).iterdir():
        yield json.loads(path.read_text()) | {"pid": int(path.stem)}
