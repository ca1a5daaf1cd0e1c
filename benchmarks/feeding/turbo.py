"""The upper bound: libjpeg-turbo decodes the same files in full, in threads, and the images are dropped."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from job import Job

AHEAD = 2  # batches in progress per thread


def decode_alone(job: Job) -> Iterator[list[Any]]:
    """Yield lists of uint8 HWC arrays, of the images' own sizes.

    simplejpeg releases the interpreter's lock, so that the threads decode at the same time.
    """
    paths = cycle(sorted(Path(job.data).rglob("*.jpg")))
    pending: deque[Any] = deque()
    with ThreadPoolExecutor(job.workers) as threads:
        while True:
            while len(pending) < AHEAD * job.workers:
                pending.append(threads.submit(decode, list(islice(paths, job.batch_size))))
            yield pending.popleft().result()


def decode(paths: list[Path]) -> list[Any]:
    """Return the decoded images of some files."""
    import simplejpeg  # noqa: PLC0415 - only this contender needs it

    return [simplejpeg.decode_jpeg(path.read_bytes(), "RGB") for path in paths]
