"""Timestamps at which processes ask their source for the first image, written by every process that reads.

The time of every contender counts from the earliest timestamp. What comes before (imports, the start of worker
processes) is reported separately. Runs under the peers' interpreters too, so it uses the standard library only.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = "PENSTOCK_BENCHMARK_MARKS"  # environment variable with the folder of the timestamps
_written: set[int] = set()  # ids of processes that have a timestamp: a forked worker needs its own


def note_first_image() -> None:
    """Write this process's timestamp. Call it before each image is read; only the first call has an effect."""
    if os.getpid() in _written:
        return
    _written.add(os.getpid())
    mark = {"at": time.monotonic(), "cpu_seconds": time.process_time()}
    (Path(os.environ[FOLDER]) / f"{os.getpid()}.json").write_text(json.dumps(mark))


def read_marks() -> Iterator[dict[str, Any]]:
    """Yield the timestamps of all processes: `at` on their common clock, CPU seconds before it, process id."""
    for path in Path(os.environ[FOLDER]).iterdir():
        yield json.loads(path.read_text()) | {"pid": int(path.stem)}
