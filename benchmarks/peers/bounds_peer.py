"""Bounds: libjpeg-turbo decodes the files in full and the images are dropped; a plain copy of the source's files."""

import os
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from peers.job import Job, list_source, note_first_image

AHEAD = 2  # batches in progress per thread


def decode_alone(job: Job) -> Iterator[list[Any] | None]:
    """Yield lists of uint8 HWC arrays, of the images' own sizes.

    simplejpeg releases the interpreter's lock, so that the threads decode at the same time.
    """
    import simplejpeg  # noqa: PLC0415 - the copy does not need it

    def decode(paths: list[Path]) -> list[Any]:
        return [simplejpeg.decode_jpeg(path.read_bytes(), "RGB") for path in paths]

    yield None
    paths = cycle(sorted(Path(job.data).rglob("*.jpg")))
    pending: deque[Any] = deque()
    with ThreadPoolExecutor(job.workers) as threads:
        while True:
            while len(pending) < AHEAD * job.workers:
                pending.append(threads.submit(decode, list(islice(paths, job.batch_size))))
            yield pending.popleft().result()


def copy(job: dict[str, Any]) -> Iterator[int | None]:
    """Copy the source's files one after another, with fsync."""
    import pyarrow.parquet as pq  # noqa: PLC0415 - libjpeg-turbo does not need it

    files, out = list_source(job), Path(job["out"])
    yield None
    out.mkdir()
    note_first_image()
    for path in files:
        target = out / Path(path).name
        shutil.copyfile(path, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())
    yield None
    yield sum(pq.ParquetFile(path).metadata.num_rows for path in out.rglob("*.parquet"))
