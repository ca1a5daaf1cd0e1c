"""Visitors' pictures are deleted after a few minutes, and the oldest of them sooner where there are many.

For `serve/app.py`. Gradio's `delete_cache` does not know of an upload that was broken off, and leaves it for ever.
"""

import threading
import time
from contextlib import suppress
from pathlib import Path

KEEP_SECONDS = 300
KEEP_BYTES = 1 << 30  # of all pictures together
SWEEP_SECONDS = 10


def keep_swept(folder: Path) -> None:
    """Sweep a folder from now on, for as long as this process lives."""

    def repeat() -> None:
        while True:
            time.sleep(SWEEP_SECONDS)
            with suppress(OSError):  # a visitor's file came or went meanwhile: the next sweep sees it
                sweep(folder)

    threading.Thread(target=repeat, daemon=True, name="sweep").start()


def sweep(folder: Path, keep_seconds: float = KEEP_SECONDS, keep_bytes: int = KEEP_BYTES) -> None:
    """Delete the files below a folder that are too old, then the oldest until the others are few enough bytes."""
    files = [(path.stat(), path) for path in folder.rglob("*") if path.is_file()]
    files.sort(key=lambda each: -each[0].st_mtime)
    oldest, size_bytes = time.time() - keep_seconds, 0
    for facts, path in files:
        size_bytes += facts.st_size
        if facts.st_mtime < oldest or size_bytes > keep_bytes:
            path.unlink(missing_ok=True)
    for each in folder.iterdir():
        if each.is_dir() and each.stat().st_mtime < oldest:
            with suppress(OSError):  # it holds something
                each.rmdir()
