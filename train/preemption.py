"""Leave early without losing anything: signals, spot notices and a lost torchrun.

* `Notices` records the reasons to leave and makes all ranks agree on one. The trainer asks once per step, saves and
  leaves. A signal that comes again while it saves changes nothing, except for a second Ctrl-C.
* `SpotWatch` asks EC2's metadata service whether the spot instance is about to end, two minutes ahead; and whether EC2
  recommends to leave it because that is likely (rebalance), which can come earlier: the run saves once and goes on.
  https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html (IMDSv2: a token first)
  https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/rebalance-recommendations.html
* `watch_launcher` ends a process when its torchrun has ended. It would otherwise continue unnoticed and hold its GPU,
  with no process left to end or restart it: torchrun starts its processes in separate sessions, so if it is killed by
  SIGKILL or by the out-of-memory killer, they get no signal, neither from torchrun nor from a terminal that is closed.
"""

import json
import logging
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from enum import IntEnum
from pathlib import Path
from types import FrameType, TracebackType

from loaders import World
from prep.errors import InputError
from prep.files import write_whole
from prep.metadata import ask_metadata, find_endpoint, find_token
from train.config import CONTINUE, SpotKind
from train.dist import AsyncMax

LEFT_EARLY = os.EX_TEMPFAIL  # exit status of a run that left early and can be resumed

# Paths of the metadata service.
INSTANCE_ID = "/latest/meta-data/instance-id"
NOTICE = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
POLL_SECONDS = 5.0  # as EC2 advises

LOOK_SECONDS = 0.5  # between looks at this process's parent
LAUNCHERS = ("python", "torch", "accelerate")  # in the command line of torchrun, however it was started
log = logging.getLogger("penstock")


class Reason(IntEnum):
    """The reason to leave early; of several, the largest counts."""

    NONE = 0
    REBALANCE = 1  # a reason to save once, not to leave
    NOT_UPLOADED = 2  # trained to its end, which the mirror does not have yet
    SIGINT = 3
    SIGHUP = 4
    SIGTERM = 5
    SPOT_NOTICE = 6
    TAKEN_OVER = 7  # by a run that was started later with the same mirror


class Notices:
    """Records notices while it is open. Use as a context manager, in the main thread."""

    def __init__(self, spot: SpotKind, world: World) -> None:
        self.reason = Reason.NONE  # the same on every rank
        self.own_reasons = [Reason.NONE]  # known to this process alone
        self.was_advised = False  # of a rebalance recommendation, on every rank
        self.should_save = False  # because of it; the trainer sets it back
        self.was_interrupted = False  # by Ctrl-C
        self.largest = AsyncMax(world)
        self.spot = SpotWatch(spot if world.local_rank == 0 else "off", self.record)
        self.stack = ExitStack()

    def __enter__(self) -> "Notices":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # started by nohup: the run outlives its terminal
            before = signal.signal(number, self._on_signal)
            self.stack.callback(signal.signal, number, before)
        self.stack.enter_context(self.spot)
        self.stack.enter_context(self.largest)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.stack.__exit__(kind, error, trace)

    def agreed(self) -> Reason:
        """Return the reason to leave, the same on every rank; every rank must ask equally often. It never goes away.

        A notice that one rank got is agreed on at the next call or the one after it, without waiting.
        """
        if self.reason:
            return self.reason
        found = Reason(self.largest.ask(max(self.own_reasons)))
        if found != Reason.REBALANCE:
            self.reason = found
        elif not self.was_advised:
            self.was_advised = self.should_save = True
        return self.reason

    def record(self, reason: Reason) -> None:
        """Record a reason that this process knows. May be called from any thread, and by a signal handler."""
        self.own_reasons.append(reason)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.was_interrupted:
                signal.default_int_handler(number, frame)  # a second Ctrl-C ends the process at once
            self.was_interrupted = True
        self.record(Reason[signal.Signals(number).name])


def write_marker(run_dir: Path, reason: Reason, clock: int, world: World) -> None:
    """Write continue.json, on rank 0: the run left early and can be resumed. torchrun's exit status cannot say that."""
    if world.rank == 0:
        marker = {"reason": reason.name, "clock": clock, "command": shlex.join(sys.argv)}
        write_whole(run_dir / CONTINUE, (json.dumps(marker, indent=1) + "\n").encode())


def remove_marker(run_dir: Path) -> None:
    """Delete continue.json, if it exists: the run has been resumed."""
    (run_dir / CONTINUE).unlink(missing_ok=True)


# EC2 spot notices.


class SpotWatch:
    """Watches whether this instance is about to end, in a separate thread. Use as a context manager.

    Args:
        kind: auto watches if there is a metadata service; on warns if there is none, and keeps asking.
        notify: is called once with REBALANCE, if EC2 recommends that, and once with SPOT_NOTICE.
    """

    def __init__(self, kind: SpotKind, notify: Callable[[Reason], None], poll_seconds: float = POLL_SECONDS) -> None:
        self.kind, self.notify, self.poll_seconds = kind, notify, poll_seconds
        self.stopped = threading.Event()

    def __enter__(self) -> "SpotWatch":
        if self.kind != "off":
            threading.Thread(target=self._watch, name="penstock-spot", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.stopped.set()  # without joining the thread, which may be waiting for an answer

    def _watch(self) -> None:
        if not find_token():
            if self.kind == "auto":
                return
            log.warning("no EC2 metadata service answers at %s: a spot notice would not be seen yet", find_endpoint())
        waiting = {Reason.REBALANCE: REBALANCE, Reason.SPOT_NOTICE: NOTICE}
        while Reason.SPOT_NOTICE in waiting:
            for reason in [each for each, path in waiting.items() if ask_metadata(path) is not None]:
                del waiting[reason]
                if not self.stopped.is_set():
                    self.notify(reason)
            if self.stopped.wait(self.poll_seconds if waiting else 0):
                return


def find_instance_id() -> str | None:
    """Return the id of this EC2 instance; None elsewhere."""
    return ask_metadata(INSTANCE_ID)


# A lost torchrun.


def watch_launcher() -> None:
    """Send this process SIGTERM once the torchrun that started it has ended; do nothing without torchrun.

    SIGTERM already has the right effect: training saves and leaves, other commands end at once. The parent is watched
    by its process id, because PR_SET_PDEATHSIG also signals when only the thread that started this process ends.

    Raises:
        InputError: torchrun has ended before the watch began.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    parent = os.getppid()
    if is_orphan(parent):
        raise InputError("the torchrun that started this process has ended: start it again")
    threading.Thread(target=_watch_parent, args=(parent,), name="penstock-launcher", daemon=True).start()


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    with suppress(OSError):  # its terminal may have been closed too
        print(f"torchrun (process {parent}) has ended: this process ends too", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)


def is_orphan(pid: int) -> bool:
    """Return True if neither process `pid`, the parent of one that torchrun started, nor any above it is a launcher.

    Orphans are adopted by init or a session manager. There may be scripts between torchrun and its processes
    (`--no-python`), and torchrun itself may be process 1 of a container. A process that cannot be read may be a
    launcher.
    """
    while pid > 0:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return False
        if any(name in command for name in LAUNCHERS):
            return False
        if pid == 1:
            return True
        pid = int(fields[1])  # its parent
    return False
