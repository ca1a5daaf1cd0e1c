"""Start one process per rank, all ranks of a world at the same time, and collect the arrays that they wrote."""

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from certificates.job import Job
from certificates.taken import Taken, split_epochs

from prep.errors import InputError

BENCHMARKS = Path(__file__).resolve().parent.parent
Report = Callable[[int], None]  # called with the number of images taken since the last call
Arrays = dict[str, np.ndarray]


def collect(job: Job, folder: Path, report: Report) -> list[Arrays]:
    """Run a job on all ranks of its world; return each rank's arrays. The processes write to `folder`.

    Raises:
        InputError: a process failed; the message has the last line of its standard error.
    """
    jobs = [replace(job, rank=rank, out=str(folder / f"rank-{rank}.npz")) for rank in range(job.size)]
    with ExitStack() as stack:
        processes = [stack.enter_context(_Rank(each, folder)) for each in jobs]
        with ThreadPoolExecutor(len(processes)) as threads:
            list(threads.map(lambda process: process.follow(report), processes))
    return [_read(Path(each.out)) for each in jobs]


def _read(path: Path) -> Arrays:
    with np.load(path) as arrays:
        return dict(arrays)


class _Rank:
    """One process, killed at the end of the `with` if it still runs."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self.errors = job, folder / f"stderr-{job.rank}"

    def __enter__(self) -> "_Rank":
        with self.errors.open("w") as errors:
            command = [sys.executable, "-m", "certificates.take", json.dumps(asdict(self.job))]
            self.process = subprocess.Popen(command, cwd=BENCHMARKS, stdout=subprocess.PIPE, stderr=errors, text=True)
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.kill()
        self.process.communicate()

    def follow(self, report: Report) -> None:
        """Report the process's counts until it ends.

        Raises:
            InputError: it ended with an error.
        """
        assert self.process.stdout
        for line in self.process.stdout:
            report(int(line))
        if self.process.wait():
            lines = self.errors.read_text(errors="replace").strip().splitlines() or [
                "it exited without an error message"
            ]
            reason = lines[-1].removeprefix("error: ")
            raise InputError(f"{self.job.loader}, rank {self.job.rank} of {self.job.size}: {reason}")


def as_epochs(arrays: Arrays, job: Job, num_images: int, num_epochs: int) -> list[Taken]:
    """Split one rank's arrays into epochs. Our batches continue over an epoch's end, a peer's begin with each epoch."""
    ours = bool(job.spans)
    firsts = [-epoch * num_images % job.batch_size if ours else 0 for epoch in range(num_epochs)]
    return split_epochs(arrays["rows"], arrays["labels"], arrays["epochs"], firsts)
