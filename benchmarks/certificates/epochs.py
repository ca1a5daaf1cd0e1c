"""Collect a loader's images, one process per rank and all ranks of a world at the same time; certify that it resumes.

streams.py is what the processes run. Certificates are functions of the arrays that come back: that of resuming is
here, because it takes images itself, those of the order are in mixing.py, those of pixels in pixels.py.
"""

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from record import describe_left, print_progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from worker import FailedError, ask_all, start_worker

from prep.errors import InputError

OURS = "penstock"
LONGEST_SECONDS = 14 * 24 * 3600  # for all epochs of one process
SECONDS_BETWEEN_LINES = 60.0  # of progress in a log
MOST_BATCHES = 4  # of the resumed stretch, on either side of the epoch's end
COMPARED = {"positions": "positions", "rows": "rows", "pixels": "digests"}  # figures of resuming, and their arrays
Report = Callable[[int], None]  # called with the number of images taken since the last call
Arrays = dict[str, np.ndarray]  # of some images: rows, labels, epochs, and others that depend on the loader and the job


@dataclass(frozen=True)
class Certificate:
    """One line of the table. `passed` is None if nothing could be measured; `measured` then says why."""

    name: str
    passed: bool | None
    measured: str
    expected: str
    limit: str  # between pass and fail, with its source
    figures: dict[str, Any] = field(default_factory=dict)  # the same values for the record and the picture


class Taken(NamedTuple):
    """One rank's M images of one epoch, in the loader's order."""

    rows_M: np.ndarray  # int64, rows of the sample index; -1 for an image that is not in it
    labels_M: np.ndarray  # int64, as the loader gave them
    first: int = 0  # first image that begins a batch; those before it end a batch of the previous epoch


class Span(NamedTuple):
    """A range of positions in our endless training stream, in complete batches; planned only if not decoded."""

    start: int
    stop: int
    decoded: bool


@dataclass(frozen=True)
class Job:
    """The work of one process, as one rank of a world: the first `epochs` of a peer, or `spans` of our stream."""

    loader: str
    data: str  # folder of a prepared dataset
    split: str
    batch_size: int  # of all ranks together
    seed: int
    threads: int  # decoding threads; 0: an equal share of the cores
    out: str = ""  # file for the arrays, .npz
    rank: int = 0
    num_ranks: int = 1
    epochs: int = 1
    # For a peer.
    buffer: int = 1000  # images to shuffle among
    # For our loader.
    size: int = 224  # pixels of the square output
    device: str = "cpu"
    placement: str = "cpu"  # where images are decoded; never "auto", so that any number of ranks does the same
    decode: str = "roi"
    spans: tuple[Span, ...] = ()
    kept: tuple[int, ...] = ()  # positions whose images are returned
    digests: bool = False  # return the sha256 of each image's pixels
    state_in: str = ""  # file of a saved loader state: the spans begin at its position
    state_out: str = ""  # file to which rank 0 writes the loader state after the last batch


def place_spans(batch_size: int, num_images: int, epochs: int, most_decoded: int) -> tuple[Span, ...]:
    """Return spans that cover the first epochs; in each epoch an equal share of `most_decoded` images is decoded."""
    # Our batches continue over the end of an epoch: an epoch here begins with its first complete batch.
    bounds = [-(-epoch * num_images // batch_size) * batch_size for epoch in range(epochs + 1)]
    if most_decoded >= bounds[-1]:
        return (Span(0, bounds[-1], True),)
    share = most_decoded // epochs // batch_size * batch_size
    parts: list[Span] = []
    for start, stop in pairwise(bounds):
        middle = min(stop, start + share)
        parts += [Span(start, middle, True), Span(middle, stop, False)]
    return tuple(span for span in parts if span.start < span.stop)


@contextmanager
def show_progress(name: str, total: int) -> Iterator[Report]:
    """Show the images done, the rate and the time left, as a bar in a terminal, as a line per minute in a log.

    Yields:
        The function that advances it.
    """
    console, started = Console(stderr=True), time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)
    done, last_line, lock = 0, started, Lock()  # several threads report, one for each rank

    def report(count: int) -> None:
        nonlocal done, last_line
        with lock:
            done, now = done + count, time.monotonic()
            rate = f"{done / max(1e-9, now - started):,.0f} images/s"
            bar.update(task, completed=done, rate=rate)
            if done and not console.is_terminal and now - last_line > SECONDS_BETWEEN_LINES:
                last_line = now
                print_progress(f"{name}: {describe_left(started, done, total)}, {rate}")

    with bar:
        task = bar.add_task(name, total=total, rate="")
        yield report


def collect(job: Job, report: Report) -> list[Arrays]:
    """Run a job on all ranks of its world; return each rank's arrays.

    Raises:
        InputError: a process failed; the message names its rank and the reason.
    """
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder, ExitStack() as stack:
        jobs = [replace(job, rank=rank, out=str(Path(folder, f"{rank}.npz"))) for rank in range(job.num_ranks)]
        workers = [
            stack.enter_context(start_worker("certificates.streams:write_images", asdict(each))) for each in jobs
        ]
        try:
            ask_all(workers, LONGEST_SECONDS, report)
        except FailedError as error:
            raise InputError(f"{job.loader}, {error}") from error
        return [dict(np.load(each.out)) for each in jobs]


def split_epochs(arrays: Arrays, job: Job, num_images: int) -> list[Taken]:
    """Split one rank's arrays into epochs. Our batches continue over an epoch's end, a peer's begin with each epoch."""
    epochs: list[Taken] = []
    for epoch in range(job.epochs):
        here_M = arrays["epochs"] == epoch
        first = -epoch * num_images % job.batch_size if job.loader == OURS else 0
        epochs.append(Taken(arrays["rows"][here_M], arrays["labels"][here_M], first))
    return epochs


def place_stretch(job: Job, ranks: tuple[int, ...], num_images: int) -> tuple[Job, list[int]]:
    """Return the job with a batch size that all numbers of ranks divide; and start, stop and end of the stretch."""
    multiple = math.lcm(*ranks)
    batch_size = job.batch_size // multiple * multiple
    assert batch_size
    draws = np.random.Generator(np.random.Philox(job.seed)).integers(1, MOST_BATCHES, size=2, endpoint=True)
    last = num_images // batch_size
    first, end = max(0, last - int(draws[0])), last + int(draws[1]) + 1
    stop = int(np.random.Generator(np.random.Philox([job.seed, 1])).integers(first + 1, end))
    return replace(job, batch_size=batch_size, digests=True, kept=()), [batch_size * i for i in (first, stop, end)]


def certify_resume(job: Job, ranks: tuple[int, ...], num_images: int) -> Certificate:
    """Compare one uninterrupted process with ranks[0] processes that stop and others that resume from their state.

    ranks[-1] processes resume, or one process if `ranks` has only one number.
    """
    first, then = ranks[0], ranks[-1] if len(ranks) > 1 else 1
    job, (start, stop, end) = place_stretch(job, ranks, num_images)
    with (
        tempfile.TemporaryDirectory(prefix="penstock-") as folder,
        show_progress("resume", 2 * (end - start)) as report,
    ):

        def collect_span(num_ranks: int, begin: int, finish: int, **files: str) -> Arrays:
            spans = (Span(begin, finish, True),)
            return in_order(collect(replace(job, num_ranks=num_ranks, spans=spans, **files), report))

        # Three runs: uninterrupted; until the stop; from the state of the stop.
        state = str(Path(folder, "state.json"))
        whole = collect_span(1, start, end)
        before = collect_span(first, start, stop, state_out=state)
        after = collect_span(then, stop, end, state_in=state)
    figures = count_differences(whole, before, after)
    found = ", ".join(f"{count:,} images differ in {name}" for name, count in figures.items() if count)
    return Certificate(
        "resume",
        not found,
        f"{first} ranks stopped at image {stop:,}, {then} resumed; images {start:,} to {end:,}: "
        + (found or "same images in the same order, pixels bit-equal"),
        f"the {end - start:,} images of one uninterrupted process",
        "none may differ: the state is the position alone, and what follows from it is fixed",
        figures | {"start": start, "stop": stop, "end": end, "ranks": [1, first, then]},
    )


def in_order(ranks: list[Arrays]) -> Arrays:
    """Return the images of all ranks in the stream's order."""
    order = np.argsort(np.concatenate([each["positions"] for each in ranks]), kind="stable")
    return {name: np.concatenate([each[name] for each in ranks])[order] for name in ranks[0]}


def count_differences(whole: Arrays, before: Arrays, after: Arrays) -> dict[str, int]:
    """Count the images of the two parts that differ from the uninterrupted run in position, in row, in pixels."""
    parts = {name: np.concatenate([before[name], after[name]]) for name in COMPARED.values()}
    if not np.array_equal(parts["positions"], whole["positions"]):
        lost = np.setxor1d(parts["positions"], whole["positions"])
        return {"positions": max(1, len(lost)), "rows": 0, "pixels": 0}
    return {name: int((parts[key] != whole[key]).sum()) for name, key in COMPARED.items()}
