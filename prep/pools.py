"""Who writes the shards: processes of this machine, or the workers of a Ray cluster. The bytes are the same."""

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from prep.errors import InputError

PR_SET_PDEATHSIG = 1  # linux/prctl.h

Job = TypeVar("Job")
# Does a function for each job, in any order; gives each job and its result when it is done.
Pool = Callable[[Callable[[Job], Any], list[Job]], Iterator[tuple[Job, Any]]]


def local_pool(num_workers: int) -> Pool[Any]:
    """Processes of this machine."""

    def run(function: Callable[[Job], Any], jobs: list[Job]) -> Iterator[tuple[Job, Any]]:
        context = multiprocessing.get_context("spawn")  # a fork would inherit the lock and threads of pyarrow
        size = max(1, min(num_workers, len(jobs)))
        with ProcessPoolExecutor(size, context, initializer=_die_with_parent, initargs=(os.getpid(),)) as pool:
            futures = {pool.submit(function, job): job for job in jobs}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            except BrokenProcessPool as error:
                raise InputError("a worker process was killed (out of memory?): run the same command again") from error
            finally:
                pool.shutdown(cancel_futures=True)  # and waits: its thread must not be closing as Python ends

    return run


def _die_with_parent(parent: int) -> None:
    """A worker must not outlive a killed parent: the next run would write the same shard beside it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
