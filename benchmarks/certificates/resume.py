"""The certificate of resuming: stop, then resume in new processes with another number of ranks, bit for bit.

The stretch of the stream contains the end of the first epoch. Its begin, stop and end are drawn at random.
"""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from certificates.collect import Arrays, Report, collect
from certificates.job import Job, Span
from certificates.verdict import Certificate

from prep.errors import InputError

MOST_BATCHES = 4  # on either side of the epoch's end
STATE = "state.json"
COMPARED = {"positions": "positions", "rows": "rows", "pixels": "digests"}


def place_stretch(job: Job, ranks: list[int], num_images: int) -> tuple[Job, list[int]]:
    """Return the job with a batch size that all numbers of ranks divide; and start, stop and end of the stretch.

    Raises:
        InputError: the batch is too small.
    """
    multiple = math.lcm(*ranks)
    batch_size = job.batch_size // multiple * multiple
    if not batch_size:
        raise InputError(
            f"--batch-size must be at least {multiple} to be divided among {ranks} ranks, got {job.batch_size}"
        )
    draws = np.random.Generator(np.random.Philox(job.seed)).integers(1, MOST_BATCHES, size=2, endpoint=True)
    last = num_images // batch_size
    first, end = max(0, last - int(draws[0])), last + int(draws[1]) + 1
    stop = int(np.random.Generator(np.random.Philox([job.seed, 1])).integers(first + 1, end))
    return replace(job, batch_size=batch_size, digests=True), [batch_size * place for place in (first, stop, end)]


def certify_resume(job: Job, ranks: list[int], num_images: int, folder: Path, report: Report) -> Certificate:
    """Compare one uninterrupted process with ranks[0] processes that stop and others that resume from their state.

    ranks[-1] processes resume, or one process if `ranks` has only one number.
    """
    first, then = ranks[0], ranks[-1] if len(ranks) > 1 else 1
    job, (start, stop, end) = place_stretch(job, ranks, num_images)
    state = str(folder / STATE)

    def collect_span(size: int, begin: int, finish: int, **files: str) -> list[Arrays]:
        return collect(replace(job, size=size, spans=(Span(begin, finish, True),), **files), folder, report)

    # Three runs: uninterrupted; until the stop; from the state of the stop.
    whole = in_order(collect_span(1, start, end))
    before = in_order(collect_span(first, start, stop, state_out=state))
    after = in_order(collect_span(then, stop, end, state_in=state))
    figures = count_differences(whole, before, after)
    same = not any(figures.values())
    return Certificate(
        "resume",
        same,
        f"{first} ranks stopped at image {stop:,}, {then} resumed; images {start:,} to {end:,}: "
        + ("same images in the same order, pixels bit-equal" if same else describe_fault(figures)),
        f"the {end - start:,} images of one uninterrupted process",
        "none may differ: the state is the position alone, and what follows from it is fixed",
        figures | {"start": start, "stop": stop, "end": end, "ranks": [1, first, then]},
    )


def in_order(ranks: list[Arrays]) -> Arrays:
    """Return the images of all ranks in the stream's order."""
    joined = {name: np.concatenate([each[name] for each in ranks]) for name in ranks[0]}
    order = np.argsort(joined["positions"], kind="stable")
    return {name: array[order] for name, array in joined.items()}


def count_differences(whole: Arrays, before: Arrays, after: Arrays) -> dict[str, int]:
    """Count the images of the two parts that differ from the uninterrupted run in position, in row, in pixels."""
    parts = {name: np.concatenate([before[name], after[name]]) for name in ("positions", "rows", "digests")}
    if not np.array_equal(parts["positions"], whole["positions"]):
        lost = np.setxor1d(parts["positions"], whole["positions"])
        return {"positions": max(1, len(lost)), "rows": 0, "pixels": 0}
    return {name: int((parts[key] != whole[key]).sum()) for name, key in COMPARED.items()}


def describe_fault(figures: dict[str, int]) -> str:
    """Return the numbers of images that differ, in words."""
    return ", ".join(f"{count:,} images differ in {name}" for name, count in figures.items() if count)
