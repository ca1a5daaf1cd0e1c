"""The bound: libjpeg-turbo alone decodes the same files in full, in threads, and nothing else is done with them."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from job import Job

AHEAD = 2  # batches a thread


def decode_alone(job: Job) -> Iterator[list[Any]]:
    """Lists of uint8 HWC arrays, of the images' own sizes. simplejpeg lets go of the interpreter's lock."""
    paths = cycle(sorted(Path(job.data).rglob("*.jpg")))
    pending: deque[Any] = deque()
    with ThreadPoolExecutor(job.workers) as threads:
        while True:
            while len(pending) < AHEAD * job.workers:
                pending.append(threads.submit(decode, list(islice(paths, job.batch_size))))
            yield pending.popleft().result()


def decode(paths: list[Path]) -> list[Any]:
    """Some images."""
    import simplejpeg  # noqa: PLC0415 - for this contender alone

    return [simplejpeg.decode_jpeg(path.read_bytes(), "RGB") for path in paths]
