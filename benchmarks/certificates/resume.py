"""The certificate of resuming: stopped and taken up in fresh processes, by another number of ranks, bit for bit.

The stretch of the stream goes over the end of the first epoch; where it begins and where it stops is drawn.
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
    """The job with a batch that divides by all numbers of ranks; start, stop and end of the stretch."""
    multiple = math.lcm(*ranks)
    batch_size = job.batch_size // multiple * multiple
    if not batch_size:
        raise InputError(f"a batch of {job.batch_size} cannot be shared by {ranks} ranks: take {multiple} or more")
    draws = np.random.Generator(np.random.Philox(job.seed)).integers(1, MOST_BATCHES, size=2, endpoint=True)
    last = num_images // batch_size
    first, end = max(0, last - int(draws[0])), last + int(draws[1]) + 1
    stop = int(np.random.Generator(np.random.Philox([job.seed, 1])).integers(first + 1, end))
    return replace(job, batch_size=batch_size, digests=True), [batch_size * place for place in (first, stop, end)]


def certify_resume(job: Job, ranks: list[int], num_images: int, folder: Path, report: Report) -> Certificate:
    """One process in one go against ranks[0] processes that stop, and others that go on from their state.

    Those are as many as the last of `ranks` says, or one where there is but one number.
    """
    first, then = ranks[0], ranks[-1] if len(ranks) > 1 else 1
    job, (start, stop, end) = place_stretch(job, ranks, num_images)
    state = str(folder / STATE)

    def run(size: int, begin: int, finish: int, **files: str) -> list[Arrays]:
        return collect(replace(job, size=size, spans=(Span(begin, finish, True),), **files), folder, report)

    whole = in_order(run(1, start, end))
    before = in_order(run(first, start, stop, state_out=state))
    after = in_order(run(then, stop, end, state_in=state))
    figures = compare(whole, before, after)
    same = not any(figures.values())
    return Certificate(
        "resume",
        same,
        f"stopped at image {stop:,} by {first} ranks, taken up by {then}, {start:,} to {end:,}: "
        + ("same images in the same order, pixels bit-equal" if same else describe_fault(figures)),
        f"the {end - start:,} images of one uninterrupted process",
        "none may differ: the state is the position alone, and what follows from it is fixed",
        figures | {"start": start, "stop": stop, "end": end, "ranks": [1, first, then]},
    )


def in_order(ranks: list[Arrays]) -> Arrays:
    """What all ranks took, in the stream's order."""
    joined = {name: np.concatenate([each[name] for each in ranks]) for name in ranks[0]}
    order = np.argsort(joined["positions"], kind="stable")
    return {name: array[order] for name, array in joined.items()}


def compare(whole: Arrays, before: Arrays, after: Arrays) -> dict[str, int]:
    """How many images of the two parts are not those of the whole: in place, in row, in pixels."""
    parts = {name: np.concatenate([before[name], after[name]]) for name in ("positions", "rows", "digests")}
    if not np.array_equal(parts["positions"], whole["positions"]):
        lost = np.setxor1d(parts["positions"], whole["positions"])
        return {"positions": max(1, len(lost)), "rows": 0, "pixels": 0}
    return {name: int((parts[key] != whole[key]).sum()) for name, key in COMPARED.items()}


def describe_fault(figures: dict[str, int]) -> str:
    """What differs."""
    return ", ".join(f"{count:,} images differ in {name}" for name, count in figures.items() if count)
