"""`python run.py JOB`: one contender in a process of its own, for as long as its standard input is open.

It imports, and says so with its versions; at "open" it opens the data and takes a first batch; at each "go" it takes
batches for a while, a warm-up first. Each answer is one line of JSON. The standard library alone, for peers have
environments of their own.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TextIO

from job import Job
from meters import read_cpu_seconds, read_machine_seconds, read_memory_bytes


def main() -> None:
    """Answer until nobody asks any more."""
    job, channel = Job(**json.loads(sys.argv[1])), take_stdout()
    batches = load(job.entry)(job)
    answer(channel, {"versions": describe_versions(job.packages)})
    for word in sys.stdin:
        answer(channel, open_feed(batches) if word == "open\n" else measure(batches, job))


def take_stdout() -> TextIO:
    """Standard output for the exchange alone: what contenders and their workers print goes to standard error."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return channel


def answer(channel: TextIO, content: dict[str, Any]) -> None:
    """One line."""
    print(json.dumps(content), file=channel, flush=True)


def load(entry: str) -> Callable[[Job], Iterator[Any]]:
    """`module:function`; the module imports all that its function needs."""
    module, _, function = entry.partition(":")
    return getattr(importlib.import_module(module), function)


def open_feed(batches: Iterator[Any]) -> dict[str, Any]:
    """Everything up to the first batch, and what that batch is."""
    started = time.monotonic()
    images = next(batches)
    return {
        "first_batch_seconds": time.monotonic() - started,
        "batch": [len(images), *images[0].shape],
        "type": str(images[0].dtype).removeprefix("torch."),
    }


def measure(batches: Iterator[Any], job: Job) -> dict[str, float]:
    """One window, from the end of one batch to the end of another; the busy processors of others tell of unrest."""
    take(batches, job.warmup)
    started, own, machine = time.monotonic(), read_cpu_seconds(), read_machine_seconds()
    num_images = take(batches, job.seconds)
    seconds = time.monotonic() - started
    own, machine = read_cpu_seconds() - own, read_machine_seconds() - machine
    return {
        "images_per_second": num_images / seconds,
        "cpu_seconds_per_1000_images": 1000 * own / num_images,
        "memory_bytes": read_memory_bytes(),
        "others_busy_cores": max(0.0, machine - own) / seconds,
    }


def take(batches: Iterator[Any], seconds: float) -> int:
    """Batches for at least so long; the number of their images."""
    started, num_images = time.monotonic(), 0
    while time.monotonic() - started < seconds:
        num_images += len(next(batches))
    return num_images


def describe_versions(packages: list[str]) -> dict[str, str]:
    """Of this interpreter, and of those packages that it has."""
    versions = {"python": sys.version.split()[0]}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


if __name__ == "__main__":
    main()
