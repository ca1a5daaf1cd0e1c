"""`python -m certificates.take JOB`: one rank takes images from a loader in its own process and writes their arrays.

Each line on standard output is a number: images taken since the previous line. Errors go to standard error.
"""

import importlib
import json
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import numpy as np
from answer import take_stdout
from certificates.job import ENTRIES, Job, Span

from prep.errors import InputError

Part = dict[str, np.ndarray]  # arrays of some images: rows, labels, epochs, and others that depend on the loader


def main() -> None:
    """Take all images of the job, then write the arrays."""
    fields = json.loads(sys.argv[1])
    job, channel = Job(**fields | {"spans": tuple(Span(**span) for span in fields["spans"])}), take_stdout()
    parts = importlib.import_module(f"certificates.{ENTRIES[job.loader]}").take_images(job)
    np.savez(job.out, **join_parts(report_counts(parts, channel)))  # pyright: ignore[reportArgumentType]


def report_counts(parts: Iterator[Part], channel: TextIO) -> Iterator[Part]:
    """Yield the same parts; print the number of images of each."""
    for part in parts:
        print(len(part["rows"]), file=channel, flush=True)
        yield part


def join_parts(parts: Iterator[Part]) -> dict[str, Any]:
    """Concatenate the arrays of all parts."""
    every = list(parts)
    return {name: np.concatenate([part[name] for part in every]) for name in every[0]}


if __name__ == "__main__":
    # Not prep.errors.run, which prints errors of rank 0 only: a peer sets RANK in this process.
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
