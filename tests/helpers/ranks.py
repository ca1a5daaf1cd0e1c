"""Processes that train together, forked from one that has imported torch and DALI: each starts at once, not in 6 s.

`Ranks` is what tests use. The script below it is the warm process: it forks the ranks of one group at a time, each of
which runs a job of `rank_jobs.py` and ends as a command would: by itself, in one line, by a traceback or by a signal.
"""

import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from helpers.commands import CHECKOUT

PEER_LOST, UNEXPECTED = 3, 70  # exit statuses, besides 0 and 1
HUNG = 0x7FFF  # in place of an exit status: it had to be killed


def read_log(group: Path, size: int) -> dict[int, list[Any]]:
    """The images of each global batch, by position, that all ranks logged; a line that was cut off does not count."""
    parts: list[dict[int, list[Any]]] = []
    for rank in range(size):
        path = group / f"log-{rank}"
        text = path.read_text() if path.exists() else ""
        entries = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        parts.append({entry["position"]: entry["images"] for entry in entries})
    positions = set.intersection(*(set(part) for part in parts))
    return {position: [image for part in parts for image in part[position]] for position in sorted(positions)}


@dataclass(frozen=True)
class Ended:
    """The end of a rank, and its output."""

    status: int  # of its exit; negative: the signal that it died by
    stderr: str


class Ranks:
    """Starts groups of ranks, one after the other. Use as a context manager.

    Args:
        modules: to be imported before ranks are forked, besides those of all jobs.
        environment: variables to set.
    """

    def __init__(self, *modules: str, **environment: str) -> None:
        self.command = [sys.executable, "-m", "helpers.ranks", *modules]
        paths = [str(CHECKOUT), str(CHECKOUT / "tests"), os.environ.get("PYTHONPATH", "")]
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            **environment,
        }
        self.num_groups = 0

    def __enter__(self) -> "Ranks":
        self.server = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.server.communicate(timeout=60)  # closes its stdin: it kills what still runs, and ends

    def start(self, job: str, size: int, folder: Path, **arguments: Any) -> Path:
        """Fork `size` ranks that run a job; the new folder below `folder` where the group keeps its files."""
        self.num_groups += 1
        self.group = folder / f"group-{self.num_groups}"
        self.group.mkdir(parents=True)
        self._ask({"job": job, "size": size, "group": str(self.group), "arguments": arguments})
        return self.group

    def wait(self, seconds: float) -> list[Ended]:
        """Return how each rank ended; those still running after `seconds` are killed, with the status HUNG."""
        return self._collect(self._ask({"wait": seconds}))

    def kill(self) -> list[Ended]:
        """Kill all ranks at once by SIGKILL."""
        return self._collect(self._ask({"kill": True}))

    def signal(self, rank: int, number: int) -> None:
        """Send a signal to one rank."""
        self._ask({"signal": number, "rank": rank})

    def run(self, job: str, size: int, folder: Path, **arguments: Any) -> list[Ended]:
        """Start and wait, at most a minute."""
        self.start(job, size, folder, **arguments)
        return self.wait(60)

    def run_command(
        self, folder: Path, script: str | Path, *arguments: object, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Run a script of the checkout alone: as `helpers.commands.run_command` does, without its 5 s of imports."""
        words = list(map(str, arguments))
        group = self.start("command", 1, folder, script=str(CHECKOUT / script), arguments=words)
        (ended,) = self.wait(timeout)
        assert ended.status != HUNG, f"{script} did not end within {timeout} seconds"
        return subprocess.CompletedProcess(
            [str(script), *words], ended.status, (group / "stdout-0").read_text(), ended.stderr
        )

    def _collect(self, statuses: list[int]) -> list[Ended]:
        paths = [self.group / f"stderr-{rank}" for rank in range(len(statuses))]
        return [Ended(status, path.read_text()) for status, path in zip(statuses, paths, strict=True)]

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())


class Group:
    """The children of the warm process."""

    def __init__(self) -> None:
        self.pids: list[int] = []

    def fork(self, size: int) -> int | None:
        """The child's rank in each child, None in the warm process."""
        for rank in range(size):
            pid = os.fork()
            if pid == 0:
                return rank
            self.pids.append(pid)
        return None

    def wait(self, seconds: float) -> list[int]:
        """Their statuses, in the order of ranks."""
        deadline, statuses = time.monotonic() + seconds, []
        for pid in self.pids:
            ended = os.pidfd_open(pid)
            is_hung = not select.select([ended], [], [], max(0.0, deadline - time.monotonic()))[0]
            os.close(ended)
            if is_hung:
                os.kill(pid, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            statuses.append(HUNG if is_hung else status)
        self.pids = []
        return statuses

    def kill(self) -> list[int]:
        """Kill all; what has ended is a zombie that still has its id."""
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)
        return self.wait(60)


def serve(group: Group) -> tuple[int, dict[str, Any]] | None:
    """Answer requests until there are no more; in a forked child its rank and the request to serve."""
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        answer: Any = None
        if "job" in request:
            rank = group.fork(request["size"])
            if rank is not None:
                return rank, request
        elif "signal" in request:
            os.kill(group.pids[request["rank"]], request["signal"])
        else:
            answer = group.kill() if "kill" in request else group.wait(request["wait"])
        print(json.dumps(answer), flush=True)
    group.kill()
    return None


def run_rank(rank: int, request: dict[str, Any]) -> int:
    """Run a job; the exit status. An InputError is one line, as commands end with."""
    from helpers.rank_jobs import JOBS, PeerLostError  # noqa: PLC0415  (the client needs none of it)
    from prep.errors import InputError  # noqa: PLC0415

    group = Path(request["group"])
    for number, path in enumerate((os.devnull, group / f"stdout-{rank}", group / f"stderr-{rank}")):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    try:
        os.environ.update(request["arguments"].pop("environment", {}))
        JOBS[request["job"]](rank, request["size"], group, **request["arguments"])
        return 0
    except SystemExit:
        raise
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    except PeerLostError:
        return PEER_LOST
    except BaseException:
        traceback.print_exc()
        return UNEXPECTED


if __name__ == "__main__":
    for name in ("helpers.rank_jobs", *sys.argv[1:]):
        importlib.import_module(name)  # what all ranks share
    gc.freeze()  # or each rank copies, at its end, all the memory that it shares with the others
    child = serve(Group())
    if child is None:
        os._exit(0)  # without the complaints of libraries about what is frozen
    sys.exit(run_rank(*child))  # by Python's own end, where threads that were left would hang
