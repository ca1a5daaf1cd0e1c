"""A run folder belongs to one run at a time: a lock that goes with its process, and a heartbeat for where locks fail.

Two runs in one folder would write into each other: a command started twice, a job requeued while the old one lives on
another node. So rank 0 holds two files there as long as it runs:

run.lock     locked with flock. The kernel releases it however the process ends. It says nothing on file systems
             without flock, and nothing to other nodes where each keeps locks to itself (Lustre with localflock, FUSE).
holder.json  who holds the folder, with a number that grows every few seconds. Another process that can take the lock
             reads it. A holder on the same machine is looked up by its process id and start time; for one on another
             machine it watches whether the number grows. Times of two machines are never compared.
"""

import fcntl
import json
import os
import secrets
import shlex
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from loaders import World
from prep.errors import InputError, print_or_discard
from train.run_folder import HOLDER, LOCK
from train.tuned import resolve_on_rank_0

BEAT_SECONDS = 5.0  # between heartbeats
STALE_SECONDS = 30.0  # without one, watched from another machine, until a holder counts as gone
LOOK_SECONDS = 0.5  # between looks at another machine's heartbeat
RACE_SECONDS = 2.0  # without flock: for a second process, which read the file before it was written, to write its own
HOLDER_BYTES = 2048  # fixed, so that a heartbeat is written in place by one call
MOST_COMMAND = 300  # characters of the command line that are kept
HELD = (BlockingIOError, PermissionError)  # of flock: CIFS says EACCES. Any other error: no locks on this file system


@dataclass(frozen=True)
class Holder:
    """The process that writes into a run folder."""

    token: str  # drawn anew each time that a folder is taken
    host: str
    boot: str  # of the kernel
    pid_namespace: str  # in which `pid` counts
    pid: int
    started: int  # clock ticks after the boot: a process id is used again
    since: str  # UTC
    command: str
    beats: int = 0

    @classmethod
    def this_process(cls) -> "Holder":
        """This process, as holder of a folder from now on."""
        return cls(
            token=secrets.token_hex(8),
            host=socket.gethostname(),
            boot=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            pid_namespace=str(Path("/proc/self/ns/pid").readlink()),
            pid=os.getpid(),
            started=find_start(os.getpid()) or 0,
            since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            command=shlex.join(sys.argv)[:MOST_COMMAND],
        )

    def shares_kernel(self, other: "Holder") -> bool:
        """Whether both run on one machine, and not only on two of the same name."""
        return (self.host, self.boot) == (other.host, other.boot)

    def is_visible_to(self, other: "Holder") -> bool:
        """Whether `other` can look this process up by its id."""
        return self.shares_kernel(other) and self.pid_namespace == other.pid_namespace

    def runs(self) -> bool:
        """Whether the process is there; it must be visible to this one."""
        return find_start(self.pid) == self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}: {self.command}"


class RunLock:
    """Holds a run folder for this run. Use as a context manager, on every rank; rank 0 takes it.

    Raises:
        InputError: on every rank, where another process holds the folder, or it cannot be written into.
    """

    def __init__(self, run_dir: Path, world: World, stale_seconds: float = STALE_SECONDS) -> None:
        self.run_dir, self.world, self.stale_seconds = run_dir, world, stale_seconds
        self.path = run_dir / HOLDER
        self.made: list[Path] = []  # folders that were not there, innermost first
        self.has_flock = False
        self.lock = -1  # descriptor
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._beat, name="penstock-run-lock", daemon=True)

    def __enter__(self) -> "RunLock":
        resolve_on_rank_0(self._acquire, self.world)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self.world.rank == 0:
            self.stopped.set()
            self.thread.join(BEAT_SECONDS)  # no longer: storage that hangs must not hold up the end
            self._release()

    def confirm(self) -> None:
        """Check, on rank 0 and before it first writes, that no other process took the folder in the same moment.

        Raises:
            InputError: one did.
        """
        if not self.has_flock:
            time.sleep(max(0.0, self.taken_at + RACE_SECONDS - time.monotonic()))
        if (holder := read_holder(self.path)) is not None and holder.token != self.holder.token:
            self._refuse(holder)

    def _acquire(self) -> Holder:
        self.holder = Holder.this_process()
        try:
            self._make_folder()
            self._take_flock()
            self._await_end_of_holder()
            self._write(self.holder)
        except OSError as error:
            self._release()
            raise InputError(
                f"{self.run_dir} cannot be written into ({error.strerror}): choose another --run.dir"
            ) from error
        except InputError:
            os.close(self.lock)
            raise
        self.taken_at = time.monotonic()
        self.thread.start()
        return self.holder

    def _make_folder(self) -> None:
        folder = self.run_dir.absolute()
        self.made = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)

    def _take_flock(self) -> None:
        """Lock the file; again where a process that ended meanwhile has removed the file that was locked."""
        while True:
            self.lock = os.open(self.run_dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.has_flock = True
            except HELD:
                self._refuse(read_holder(self.path))
            except OSError:
                self.has_flock = False
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self.lock), (self.run_dir / LOCK).stat()):
                    return
            os.close(self.lock)

    def _await_end_of_holder(self) -> None:
        """Return once the holder that is written down is known to be gone; raise InputError where it is not."""
        holder = read_holder(self.path)
        if holder is None:
            return
        if holder.is_visible_to(self.holder):
            if holder.runs() and holder.pid != self.holder.pid:  # without flock, or with one that locks nothing
                self._refuse(holder)
            return
        if self.has_flock and holder.shares_kernel(self.holder):  # in another container: the kernel knows
            return
        print_or_discard(
            f"{self.run_dir} was last held by {holder}; watching for {self.stale_seconds:g} s whether it still runs"
        )
        end = time.monotonic() + self.stale_seconds
        while time.monotonic() < end:
            time.sleep(LOOK_SECONDS)
            now = read_holder(self.path)
            if now is None:
                return
            if now != holder:
                self._refuse(now)

    def _refuse(self, holder: Holder | None) -> NoReturn:
        # The lock is taken a moment before the holder is written down: the line of an earlier one would be wrong.
        is_known = holder is not None and (not holder.is_visible_to(self.holder) or holder.runs())
        raise InputError(
            f"{self.run_dir} belongs to a run that is in progress ({holder if is_known else 'another process'}): "
            "wait until it has ended, or choose another --run.dir"
        )

    def _write(self, holder: Holder) -> None:
        """In place: on NFS another machine would find a file that was renamed only when its cache has expired."""
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.pwrite(file, json.dumps(asdict(holder)).ljust(HOLDER_BYTES - 1).encode() + b"\n", 0)
            with suppress(OSError):  # some file systems have none, and the next heartbeat comes soon
                os.fsync(file)
        finally:
            os.close(file)

    def _beat(self) -> None:
        for beats in range(1, sys.maxsize):
            if self.stopped.wait(BEAT_SECONDS):
                return
            with suppress(OSError):  # a full disk, a server that is away for a moment
                found = read_holder(self.path)
                if found is not None and found.token != self.holder.token:
                    self._end(found)
                self._write(replace(self.holder, beats=beats))

    def _end(self, holder: Holder) -> NoReturn:
        """End this process: it was suspended or cut off for so long that another one has taken the folder."""
        with suppress(OSError):
            print(f"error: {self.run_dir} was taken by {holder}; this run ends", file=sys.stderr, flush=True)
        os._exit(1)

    def _release(self) -> None:
        """Remove both files, and the folder where the run came to write nothing into it."""
        with suppress(OSError):
            found = read_holder(self.path)
            if found is None or found.token == self.holder.token:
                self.path.unlink(missing_ok=True)
                (self.run_dir / LOCK).unlink(missing_ok=True)
            for folder in self.made:
                folder.rmdir()
        if self.lock >= 0:
            os.close(self.lock)


def read_holder(path: Path) -> Holder | None:
    """Return the holder that is written down; None where there is none, or none that can be read."""
    for _ in range(3):  # it may be in the middle of being written
        try:
            return Holder(**json.loads(path.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError):
            time.sleep(0.05)
    return None


def find_start(pid: int) -> int | None:
    """Return when a process was started, in clock ticks after the boot; None where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
