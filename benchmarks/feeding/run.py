"""`python run.py JOB`: run one contender in a separate process, as long as its standard input is open.

It imports everything and answers with its versions. At "open" it opens the data and takes a first batch. At each "go"
it takes batches for a while, after a warm-up. Each answer is one line of JSON. Uses the standard library only, since
peers have separate environments.
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
    """Answer requests until standard input is closed."""
    job, channel = Job(**json.loads(sys.argv[1])), take_stdout()
    batches = load_entry(job.entry)(job)
    write_answer(channel, {"versions": describe_versions(job.packages)})
    for word in sys.stdin:
        write_answer(channel, open_feed(batches) if word == "open\n" else measure_window(batches, job))


def take_stdout() -> TextIO:
    """Return a stream to standard output for answers alone; what contenders print goes to standard error."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return channel


def write_answer(channel: TextIO, content: dict[str, Any]) -> None:
    """Write one answer, as a line of JSON."""
    print(json.dumps(content), file=channel, flush=True)


def load_entry(entry: str) -> Callable[[Job], Iterator[Any]]:
    """Import `module:function`; the module imports all that its function needs."""
    module, _, function = entry.partition(":")
    return getattr(importlib.import_module(module), function)


def open_feed(batches: Iterator[Any]) -> dict[str, Any]:
    """Open the data and take the first batch; return the time and the batch's shape and type."""
    started = time.monotonic()
    images = next(batches)
    return {
        "first_batch_seconds": time.monotonic() - started,
        "batch": [len(images), *images[0].shape],
        "type": str(images[0].dtype).removeprefix("torch."),
    }


def measure_window(batches: Iterator[Any], job: Job) -> dict[str, float]:
    """Measure one window, from the end of one batch to the end of another.

    `others_busy_cores` shows the load from other processes, which may have disturbed the window.
    """
    count_images(batches, job.warmup)
    started, own, machine = time.monotonic(), read_cpu_seconds(), read_machine_seconds()
    num_images = count_images(batches, job.seconds)
    seconds = time.monotonic() - started
    own, machine = read_cpu_seconds() - own, read_machine_seconds() - machine
    return {
        "images_per_second": num_images / seconds,
        "cpu_seconds_per_1000_images": 1000 * own / num_images,
        "memory_bytes": read_memory_bytes(),
        "others_busy_cores": max(0.0, machine - own) / seconds,
    }


def count_images(batches: Iterator[Any], seconds: float) -> int:
    """Take batches for at least `seconds`; return the number of their images."""
    started, num_images = time.monotonic(), 0
    while time.monotonic() - started < seconds:
        num_images += len(next(batches))
    return num_images


def describe_versions(packages: list[str]) -> dict[str, str]:
    """Return the versions of this interpreter and of those packages that it has."""
    versions = {"python": sys.version.split()[0]}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


if __name__ == "__main__":
    main()
