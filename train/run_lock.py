"""Lock a run folder, so that it belongs to one run at a time; a heartbeat covers file systems without locks.

Two runs in one folder would overwrite each other's files: a command started twice, or a job requeued while the old one
still runs on another node. So rank 0 holds two files there while it runs:

run.lock     locked with flock. The kernel releases the lock however the process ends. flock does not exist on some
             file systems, and on others each node keeps its own locks (Lustre with localflock, FUSE).
holder.json  the process that holds the folder, with a number that grows every few seconds. Another process that gets
             the lock reads it. It looks up a holder on the same machine by its process id and start time; for a holder
             on another machine it watches whether the number grows. Times of two machines are never compared.
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
from train.config import HOLDER, LOCK
from train.dist import resolve_on_rank0

BEAT_SECONDS = 5.0  # between heartbeats
STALE_SECONDS = 30.0  # without a heartbeat, until a holder on another machine is considered to have ended
LOOK_SECONDS = 0.5  # between looks at another machine's heartbeat
RACE_SECONDS = 2.0  # without flock: a second process may have read holder.json before this one wrote it, and writes now
HOLDER_BYTES = 2048  # fixed, so that a heartbeat is written in place by one call
MOST_COMMAND = 300  # characters of the command line that are kept
# Errors of flock if another process holds the lock (CIFS: EACCES). Any other error: no locks on this file system.
HELD = (BlockingIOError, PermissionError)


@dataclass(frozen=True)
class Holder:
    """The process that writes into a run folder."""

    token: str  # random, new each time that a folder is locked
    host: str
    boot: str  # id of the kernel's boot
    pid_namespace: str  # in which `pid` is valid
    pid: int
    started: int  # clock ticks after the boot: the kernel uses process ids again
    since: str  # UTC
    command: str
    beats: int = 0

    @classmethod
    def this_process(cls) -> "Holder":
        """Return this process as a holder from now on."""
        return cls(
            token=secrets.token_hex(8),
            host=socket.gethostname(),
            boot=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            pid_namespace=str(Path("/proc/self/ns/pid").readlink()),
            pid=os.getpid(),
            started=find_process_start(os.getpid()) or 0,
            since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            command=shlex.join(sys.argv)[:MOST_COMMAND],
        )

    def shares_kernel(self, other: "Holder") -> bool:
        """Return True if both run on one machine, not on two of the same name."""
        return (self.host, self.boot) == (other.host, other.boot)

    def is_visible_to(self, other: "Holder") -> bool:
        """Return True if `other` can look this process up by its id."""
        return self.shares_kernel(other) and self.pid_namespace == other.pid_namespace

    def runs(self) -> bool:
        """Return True if the process still runs; it must be visible to this one."""
        return find_process_start(self.pid) == self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}: {self.command}"


class RunLock:
    """Holds a run folder for this run. Use as a context manager on every rank; rank 0 locks it.

    Raises:
        InputError: on every rank, if another process holds the folder or it cannot be written into.
    """

    def __init__(self, run_dir: Path, world: World, stale_seconds: float = STALE_SECONDS) -> None:
        self.run_dir, self.world, self.stale_seconds = run_dir, world, stale_seconds
        self.path = run_dir / HOLDER
        self.made: list[Path] = []  # folders that this run created, innermost first
        self.has_flock = False
        self.lock = -1  # descriptor
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._beat, name="penstock-run-lock", daemon=True)

    def __enter__(self) -> "RunLock":
        resolve_on_rank0(self._acquire, self.world)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self.world.rank == 0:
            self.stopped.set()
            self.thread.join(BEAT_SECONDS)  # not longer: storage that hangs must not delay the end
            self._release()

    def confirm(self) -> None:
        """Check that no other process locked the folder at the same moment. On rank 0, before it first writes.

        Raises:
            InputError: another process did.
        """
        if not self.has_flock:
            time.sleep(max(0.0, self.taken_at + RACE_SECONDS - time.monotonic()))
        if (holder := read_holder(self.path)) is not None and holder.token != self.holder.token:
            self._refuse(holder)

    def _acquire(self) -> Holder:
        self.holder = Holder.this_process()
        try:
            self._make_folder()
            self._lock_file()
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

    def _lock_file(self) -> None:
        """Lock run.lock; try again if a process that ended in the meantime has deleted the file that was locked."""
        while True:
            self.lock = os.open(self.run_dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.has_flock = True
            except HELD:
                self._refuse(read_holder(self.path))
            except OSError:
                self.has_flock = False
            # The locked file must still be the one that other processes find under its name.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self.lock), (self.run_dir / LOCK).stat()):
                    return
            os.close(self.lock)

    def _await_end_of_holder(self) -> None:
        """Return once the holder in holder.json is known to have ended; raise InputError if it still runs."""
        holder = read_holder(self.path)
        if holder is None:
            return

        # On this machine: look the process up. This also covers file systems where flock does nothing.
        if holder.is_visible_to(self.holder):
            if holder.runs() and holder.pid != self.holder.pid:
                self._refuse(holder)
            return

        # In another container of this machine: the kernel would have refused the lock.
        if self.has_flock and holder.shares_kernel(self.holder):
            return

        # On another machine: watch its heartbeat.
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
        # A process locks the file a moment before it writes holder.json, which may still describe an earlier holder.
        is_known = holder is not None and (not holder.is_visible_to(self.holder) or holder.runs())
        raise InputError(
            f"{self.run_dir} belongs to a run that is in progress ({holder if is_known else 'another process'}): "
            "wait until it has ended, or choose another --run.dir"
        )

    def _write(self, holder: Holder) -> None:
        """Write holder.json in place: on NFS, other machines find a renamed file only when their cache has expired."""
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.pwrite(file, json.dumps(asdict(holder)).ljust(HOLDER_BYTES - 1).encode() + b"\n", 0)
            with suppress(OSError):  # some file systems have no fsync, and the next heartbeat comes soon
                os.fsync(file)
        finally:
            os.close(file)

    def _beat(self) -> None:
        """Write a heartbeat every BEAT_SECONDS; end the process if another one has locked the folder."""
        for beats in range(1, sys.maxsize):
            if self.stopped.wait(BEAT_SECONDS):
                return
            with suppress(OSError):  # a full disk, a server that does not answer for a moment
                found = read_holder(self.path)
                if found is not None and found.token != self.holder.token:
                    self._end(found)
                self._write(replace(self.holder, beats=beats))

    def _end(self, holder: Holder) -> NoReturn:
        """End this process: it was suspended or cut off for so long that another one has locked the folder."""
        with suppress(OSError):
            print(f"error: {self.run_dir} was taken by {holder}; this run ends", file=sys.stderr, flush=True)
        os._exit(1)

    def _release(self) -> None:
        """Delete both files, and the folders that this run created if it has written nothing into them."""
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
    """Return the holder that a holder.json names; None if there is none or it cannot be read."""
    for _ in range(3):  # another process may just be writing it
        try:
            return Holder(**json.loads(path.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError):
            time.sleep(0.05)
    return None


def find_process_start(pid: int) -> int | None:
    """Return when a process was started, in clock ticks after the boot; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
