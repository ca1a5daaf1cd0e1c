"""Run jobs in parallel: in processes of this machine, or on the workers of a Ray cluster. Both write the same bytes."""

import ctypes
import logging
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from prep.errors import InputError

PR_SET_PDEATHSIG = 1  # linux/prctl.h
RAY_RETRIES = 5  # of a shard whose worker or node died: spot machines
SECONDS_TO_ANSWER = 10

Job = TypeVar("Job")
# Call a function with each job, in any order; yield each job and its result when it is done.
Pool = Callable[[Callable[[Job], Any], list[Job]], Iterator[tuple[Job, Any]]]


def local_pool(num_workers: int) -> Pool[Any]:
    """Return a pool of at most `num_workers` processes of this machine."""

    def run_jobs(function: Callable[[Job], Any], jobs: list[Job]) -> Iterator[tuple[Job, Any]]:
        context = multiprocessing.get_context("spawn")  # a fork would inherit the lock and threads of pyarrow
        size = max(1, min(num_workers, len(jobs)))
        with ProcessPoolExecutor(size, context, initializer=die_with_parent, initargs=(os.getpid(),)) as pool:
            futures = {pool.submit(function, job): job for job in jobs}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            except BrokenProcessPool as error:
                raise InputError("a worker process was killed (out of memory?): run the same command again") from error
            finally:
                pool.shutdown(cancel_futures=True)  # and wait: its thread must not still be closing when Python exits

    return run_jobs


def die_with_parent(parent: int) -> None:
    """Let this worker die with its parent; otherwise it and the next run would write the same shard."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before prctl was called
        os.kill(os.getpid(), signal.SIGKILL)


def ray_pool(address: str) -> Pool[Any]:
    """Return the workers of a Ray cluster as a pool; Penstock must be installed there.

    The jobs of a worker that is lost run again.

    Args:
        address: HOST:PORT, ray://HOST:PORT, or "auto" for the cluster of this machine.

    Raises:
        InputError: Ray is not installed. The pool raises it too, if there is no cluster or a job is lost repeatedly.
    """
    try:
        import ray  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise InputError(f"--ray needs Ray ({error}): pip install -e '.[ray]'") from error

    def run_jobs(function: Callable[[Job], Any], jobs: list[Job]) -> Iterator[tuple[Job, Any]]:
        _connect_to_ray(address)
        try:
            remote = ray.remote(max_retries=RAY_RETRIES)(function)
            waiting = {remote.remote(job): job for job in jobs}
            while waiting:
                (done,), _ = ray.wait(list(waiting), num_returns=1)
                yield waiting.pop(done), _get_ray_result(done)
        finally:
            ray.shutdown()

    return run_jobs


def _connect_to_ray(address: str) -> None:
    import ray  # noqa: PLC0415 - an extra

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        _check_port(address)
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:
        cause = " ".join(str(error).split())[:200]
        raise InputError(f"no Ray cluster at {address} ({cause}): start one with `ray start --head`") from error


def _check_port(address: str) -> None:
    """Connect once to the cluster's port; Ray itself tries for many minutes if nothing listens there.

    "auto" is resolved as Ray does it, and may name a cluster that has ended.
    """
    if address == "auto":
        note = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")  # written by `ray start`
        address = os.environ.get("RAY_ADDRESS") or (note.read_text() if note.is_file() else "")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_ANSWER).close()


def _get_ray_result(done: Any) -> Any:
    import ray  # noqa: PLC0415 - an extra
    from ray.exceptions import RayError, RayTaskError  # noqa: PLC0415

    try:
        return ray.get(done)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, ImportError):
            raise InputError(f"a worker of the Ray cluster lacks Penstock ({cause}): install it there") from error
        raise cause from None  # what the function itself raised, without Ray's own traceback
    except RayError as error:
        cause = " ".join(str(error).split())[:200]
        raise InputError(f"a shard was lost {RAY_RETRIES + 1} times ({cause}): run the same command again") from error
