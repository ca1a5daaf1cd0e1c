"""`python -m certificates.take JOB`: one rank takes images from a loader in a process of its own, and writes them down.

Each line on standard output is a number: images taken since the line before. What fails is said on standard error.
"""

import importlib
import json
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import numpy as np
from answer import take_stdout
from certificates.job import Job, Span

from prep.errors import InputError

ENTRIES = {"penstock": "ours", "webdataset": "peer_webdataset", "dali-reader": "peer_dali"}
Part = dict[str, np.ndarray]  # arrays of some images: rows, labels, epochs, and what else the loader tells


def main() -> None:
    """Take everything, then write it down."""
    fields = json.loads(sys.argv[1])
    job, channel = Job(**fields | {"spans": tuple(Span(**span) for span in fields["spans"])}), take_stdout()
    parts = importlib.import_module(f"certificates.{ENTRIES[job.loader]}").take(job)
    np.savez(job.out, **join(follow(parts, channel)))  # pyright: ignore[reportArgumentType]


def follow(parts: Iterator[Part], channel: TextIO) -> Iterator[Part]:
    """The same, counted."""
    for part in parts:
        print(len(part["rows"]), file=channel, flush=True)
        yield part


def join(parts: Iterator[Part]) -> dict[str, Any]:
    """All parts as one."""
    taken = list(parts)
    return {name: np.concatenate([part[name] for part in taken]) for name in taken[0]}


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
