"""Starts the processes that take images, one a rank, all of a world at once, and brings home what they took."""

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
Report = Callable[[int], None]  # of images taken since the last time
Arrays = dict[str, np.ndarray]


def collect(job: Job, folder: Path, report: Report) -> list[Arrays]:
    """What each rank of the job's world took; `folder` is for the exchange.

    Raises:
        InputError: a process failed; its reason.
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
    """One process, which does not outlive the `with`."""

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
        """Report its counts until it ends."""
        assert self.process.stdout
        for line in self.process.stdout:
            report(int(line))
        if self.process.wait():
            lines = self.errors.read_text(errors="replace").strip().splitlines() or ["it ended without a word"]
            reason = lines[-1].removeprefix("error: ")
            raise InputError(f"{self.job.loader}, rank {self.job.rank} of {self.job.size}: {reason}")


def as_epochs(arrays: Arrays, job: Job, num_images: int, num_epochs: int) -> list[Taken]:
    """One rank's epochs. Our batches go on over an epoch's end, a peer's begin with each."""
    ours = bool(job.spans)
    firsts = [-epoch * num_images % job.batch_size if ours else 0 for epoch in range(num_epochs)]
    return split_epochs(arrays["rows"], arrays["labels"], arrays["epochs"], firsts)
