"""`python run.py JOB`: one contender, once, in a process of its own, under whichever interpreter has it.

It imports, opens the source and starts what worker processes it can ahead of time; says "ready"; waits for "go";
works; and reports its figures, each exchange one line. JOB is JSON: entry (module:function), counter, source, out,
num_images, options. The standard library alone, for peers have environments of their own.
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
    """Prepare, wait, work, report."""
    job, channel = json.loads(sys.argv[1]), take_stdout()
    stages = load(job["entry"])(job)
    next(stages)
    print(json.dumps({"ready": True, "versions": describe_versions()}), file=channel, flush=True)
    if sys.stdin.readline() == "go\n":
        print(json.dumps(measure(stages) | count(job)), file=channel, flush=True)


def take_stdout() -> TextIO:
    """Standard output for the exchange alone: what contenders and their workers print goes to standard error."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return channel


def load(entry: str) -> Callable[..., Any]:
    """`module:function`. A contender's is a generator that stops when it is ready, and when its work is done."""
    module, _, function = entry.partition(":")
    return getattr(importlib.import_module(module), function)


def measure(stages: Iterator[None]) -> dict[str, float]:
    """Wall and CPU time of the work.

    seconds: from the first image that any process asks for to the end; call_seconds: from "go" to the end, with the
    start of worker processes that a contender starts in its call; sync_seconds: what os.sync() takes afterwards;
    cpu_seconds: of all processes, each from its first image on.
    """
    started, own, children = time.monotonic(), time.process_time(), children_seconds()
    next(stages)
    ended, own = time.monotonic(), time.process_time() - own
    os.sync()
    synced = time.monotonic()
    next(stages, None)
    for child in multiprocessing.active_children():
        child.join(10)
    marks = list(read_marks())
    before = sum(mark["cpu_seconds"] for mark in marks if mark["pid"] != os.getpid())
    return {
        "seconds": ended - min(mark["at"] for mark in marks),
        "call_seconds": ended - started,
        "sync_seconds": synced - ended,
        "cpu_seconds": own + children_seconds() - children - before,
    }


def children_seconds() -> float:
    """CPU time of the child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def count(job: dict[str, Any]) -> dict[str, int]:
    """What is on disk, read back."""
    num_images = load(job["counter"])(Path(job["out"]))
    size_bytes = sum(path.stat().st_size for path in Path(job["out"]).rglob("*") if path.is_file())
    return {"num_images": num_images, "output_bytes": size_bytes}


def describe_versions() -> dict[str, str]:
    """Of this interpreter and of what it may use."""
    versions = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


if __name__ == "__main__":
    main()
