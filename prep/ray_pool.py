"""Shards written by the workers of a Ray cluster: the same jobs, the same bytes, and a lost worker's are done again."""

import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prep.errors import InputError
from prep.pools import Job, Pool

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
except ImportError as error:
    raise InputError(f"--ray needs Ray ({error}): pip install 'penstock[ray]'") from error

RETRIES = 5  # of a shard whose worker or node died: spot machines
SECONDS_TO_ANSWER = 10


def ray_pool(address: str) -> Pool[Any]:
    """The workers of the cluster at `address` (auto: the one of this machine), where Penstock must be installed."""

    def run(function: Callable[[Job], Any], jobs: list[Job]) -> Iterator[tuple[Job, Any]]:
        _connect(address)
        try:
            remote = ray.remote(max_retries=RETRIES)(function)
            waiting = {remote.remote(job): job for job in jobs}
            while waiting:
                (done,), _ = ray.wait(list(waiting), num_returns=1)
                yield waiting.pop(done), _result(done)
        finally:
            ray.shutdown()

    return run


def _connect(address: str) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        _check_port(address)
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:
        cause = " ".join(str(error).split())[:200]
        raise InputError(f"no Ray cluster at {address} ({cause}): start one with `ray start --head`") from error


def _check_port(address: str) -> None:
    """Ray itself goes on trying for many minutes where nobody listens; `auto` may name a cluster that is gone."""
    if address == "auto":
        note = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")  # as `ray start` leaves it
        address = os.environ.get("RAY_ADDRESS") or (note.read_text() if note.is_file() else "")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_ANSWER).close()


def _result(done: Any) -> Any:
    try:
        return ray.get(done)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, ImportError):
            raise InputError(f"a worker of the Ray cluster lacks Penstock ({cause}): install it there") from error
        raise cause from None  # what the function itself raised, without Ray's page around it
    except RayError as error:
        cause = " ".join(str(error).split())[:200]
        raise InputError(f"a shard was lost {RETRIES + 1} times ({cause}): run the same command again") from error
