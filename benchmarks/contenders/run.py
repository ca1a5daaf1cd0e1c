"""`python run.py JOB`: run one contender once in a separate process, under an interpreter that has its packages.

It imports, opens the source and starts the worker processes that can be started in advance. It answers "ready", waits
for "go", works, and answers with its figures; each answer is one line. JOB is JSON: entry (module:function), counter,
source, out, options. Uses the standard library only, since peers have separate environments.
"""

import importlib
import json
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

from marks import read_marks

PACKAGES = ("litdata", "mosaicml-streaming", "numpy", "pillow", "pyarrow", "torch", "webdataset")


def main() -> None:
    """Get ready, wait for "go", work, and report the figures."""
    job, channel = json.loads(sys.argv[1]), take_stdout()
    stages = load_function(job["entry"])(job)
    next(stages)
    print(json.dumps({"ready": True, "versions": describe_versions()}), file=channel, flush=True)
    if sys.stdin.readline() == "go\n":
        print(json.dumps(measure_work(stages) | count_output(job)), file=channel, flush=True)


def take_stdout() -> TextIO:
    """Return a stream to standard output for answers alone; what contenders print goes to standard error."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return channel


def load_function(entry: str) -> Callable[..., Any]:
    """Import `module:function`. A contender is a generator that yields when it is ready, and when its work is done."""
    module, _, function = entry.partition(":")
    return getattr(importlib.import_module(module), function)


def measure_work(stages: Iterator[None]) -> dict[str, float]:
    """Return the wall and CPU time of the work.

    seconds: from the first image that any process reads to the end. call_seconds: from "go" to the end, including
    worker processes that a contender starts within its call. sync_seconds: the time of os.sync() afterwards.
    cpu_seconds: of all processes, each from its first image on.
    """
    # Let the contender work until its second yield, then write everything to disk.
    started, own, children = time.monotonic(), time.process_time(), children_seconds()
    next(stages)
    ended, own = time.monotonic(), time.process_time() - own
    os.sync()
    synced = time.monotonic()
    next(stages, None)
    # The CPU time of child processes is known only after they have ended.
    for child in multiprocessing.active_children():
        child.join(10)
    marks = list(read_marks())
    # Subtract the CPU time of worker processes before their first image.
    before = sum(mark["cpu_seconds"] for mark in marks if mark["pid"] != os.getpid())
    return {
        "seconds": ended - min(mark["at"] for mark in marks),
        "call_seconds": ended - started,
        "sync_seconds": synced - ended,
        "cpu_seconds": own + children_seconds() - children - before,
    }


def children_seconds() -> float:
    """Return the CPU time of the child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def count_output(job: dict[str, Any]) -> dict[str, int]:
    """Count the images and bytes on disk."""
    num_images = load_function(job["counter"])(Path(job["out"]))
    size_bytes = sum(path.stat().st_size for path in Path(job["out"]).rglob("*") if path.is_file())
    return {"num_images": num_images, "output_bytes": size_bytes}


def describe_versions() -> dict[str, str]:
    """Return the versions of this interpreter and of the packages that it may use."""
    versions = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


if __name__ == "__main__":
    main()
