"""Build a dataset or a network once for all workers of pytest-xdist."""

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def find_shared_folder(factory: pytest.TempPathFactory, config: pytest.Config) -> Path:
    """Return a temporary folder that all workers of this test run share."""
    base = factory.getbasetemp()
    return base.parent if hasattr(config, "workerinput") else base


def build_once(folder: Path, name: str, build: Callable[[Path], object]) -> Path:
    """Return `folder/name`, built by the first worker that asks for it. The others wait, and must only read it."""
    built, done = folder / name, folder / f"{name}.done"
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed, also if its process is killed
        if not done.exists():
            # An earlier build may have failed, e.g. for a missing package: build again, and fail for the same reason.
            shutil.rmtree(built, ignore_errors=True)
            built.mkdir()
            build(built)
            done.touch()
    return built
