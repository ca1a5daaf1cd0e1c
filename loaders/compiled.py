"""Read with the extension `loaders._read`, which holds Python's global lock only at its beginning and its end.

With many reader threads this decides the rate: each read of a few kilobytes in Python gives the lock away and waits to
get it back. Where the extension was not built (no C compiler), the reader does the same in Python.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from loaders.splice import HEAD
from loaders.splice_reader import Done, Slots, Splicer
from loaders.world import World, log_once

CONTRADICTORY, UNREADABLE = 1, 2  # values of the first column of results, as in loaders/_read.c; 0: done
NUM_RESULTS = 3  # status, end in the buffer, bytes read (of an unreadable image: errno, 0 at the file's end)
Fail = Callable[[int, int], Exception]  # returns the error to raise for a row and an errno


@cache
def find_extension() -> Any | None:
    """Return the module `loaders._read`, or None if it was not built."""
    try:
        return import_module("loaders._read")
    except ImportError:
        return None


def splicing_pays(decodes_on_gpu: bool, world: World) -> bool:
    """Check whether splicing makes this loader faster; if not, a rank of this machine says once what to do.

    A GPU takes images faster than Python can splice them: an H200 with 16 reader threads read 3,504 images/s in Python
    and 23,619 with the extension; complete images in Python 9,613 (benchmarks/records/h200-restarts-python
    and h200-restarts).
    """
    if not decodes_on_gpu or find_extension() is not None:
        return True
    if world.local_rank == 0:
        log_once(
            "complete images are read although the shards have segments, since loaders/_read.c was not built: install "
            "a C compiler, then run `pip install --no-deps -e .` in the checkout"
        )
    return False


def read_whole(extension: Any, buffer: np.ndarray, rows_P: np.ndarray, jobs_P4: np.ndarray, fail: Fail) -> None:
    """Read complete images.

    Args:
        rows_P: of the images.
        jobs_P4: int64: descriptor, position in the file, start and end in the buffer.
        fail: returns the error to raise for a row that cannot be read.
    """
    num_done, error = extension.read(jobs_P4, buffer)
    if num_done < len(jobs_P4):
        raise fail(int(rows_P[num_done]), error)


def splice_part(
    extension: Any, splicer: Splicer, slots: Slots, chosen_P: np.ndarray, tar_files: list[int], fail: Fail
) -> Done:
    """Read and splice some images of a batch, as `Splicer.read_part` does.

    Args:
        chosen_P: their indices, in the order of the disk.
        tar_files: the descriptors of their tars.
        fail: returns the error to raise for a row that cannot be read.
    """
    if not len(chosen_P):
        return Done(0, [])
    rows_P, spans = slots.plan.rows_B[chosen_P], slots.spans
    assert spans is not None
    records_P = splicer.records_of(rows_P)

    # One row of the table for each image, in the order of the enum in loaders/_read.c.
    segment_files = [splicer.descriptors[shard] for shard in splicer.shards[rows_P].tolist()]
    columns = [segment_files, tar_files, records_P["first"], records_P["num_lengths"]]
    columns += [splicer.offsets[rows_P], splicer.sizes[rows_P]]
    columns += [records_P[name] for name in ("tables_start", "tables_size", "frame")]
    columns += [each[chosen_P] for each in (spans.columns_B, spans.tops_B, spans.bottoms_B)]
    columns += [each[chosen_P] for each in (spans.lefts_B, spans.rights_B)]
    columns += [*spans.sizes_B2[chosen_P].T, slots.starts_B[chosen_P]]
    table_PC = np.empty((len(chosen_P), len(columns)), np.int64)
    for i, column in enumerate(columns):
        table_PC[:, i] = column

    # Read, and take the results.
    results_P3 = np.empty((len(chosen_P), NUM_RESULTS), np.int64)
    extension.splice(table_PC, HEAD, slots.buffer, results_P3)
    statuses_P, ends_P, sizes_P = results_P3.T
    if (statuses_P == UNREADABLE).any():
        i = int((statuses_P == UNREADABLE).argmax())
        raise fail(int(rows_P[i]), int(sizes_P[i]))
    starts = slots.starts_B[chosen_P].tolist()
    for i, start, end in zip(chosen_P.tolist(), starts, ends_P.tolist(), strict=True):
        slots.images[i] = slots.buffer[start:end]
    return Done(int(sizes_P.sum()), chosen_P[statuses_P == CONTRADICTORY].tolist())
