"""Leaving early without losing anything: signals and spot notices become one answer, the same on every rank.

Whoever learns of a notice only takes it down; the trainer asks once a step, saves and leaves. A signal that comes again
while it saves changes nothing, except for a second Ctrl-C.
"""

import json
import os
import shlex
import signal
import sys
from contextlib import ExitStack
from enum import IntEnum
from pathlib import Path
from types import FrameType, TracebackType

from loaders import World
from prep.files import write_whole
from train.config import SpotKind
from train.dist import Agreement
from train.run_folder import CONTINUE
from train.spot import SpotWatch

LEFT_EARLY = os.EX_TEMPFAIL  # exit status of a run that wants to be continued


class Reason(IntEnum):
    """Why a run is to leave; of several the largest counts."""

    NONE = 0
    SIGINT = 1
    SIGHUP = 2
    SIGTERM = 3
    SPOT_NOTICE = 4


class Notices:
    """Takes down notices as long as it is open. Use as a context manager, in the main thread."""

    def __init__(self, spot: SpotKind, world: World) -> None:
        self.reason = Reason.NONE  # agreed upon
        self.given = Reason.NONE  # known to this process
        self.was_interrupted = False  # by Ctrl-C
        self.agreement = Agreement(world)
        self.spot = SpotWatch(spot if world.local_rank == 0 else "off", self._take_down_spot)
        self.stack = ExitStack()

    def __enter__(self) -> "Notices":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup: the end of the terminal is not the end of the run
            before = signal.signal(number, self._take_down_signal)
            self.stack.callback(signal.signal, number, before)
        self.stack.enter_context(self.spot)
        self.stack.enter_context(self.agreement)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.stack.__exit__(kind, error, trace)

    def agreed(self) -> Reason:
        """Why to leave, the same on every rank; each must ask equally often. It is never taken back."""
        if not self.reason:
            self.reason = Reason(self.agreement.ask(self.given))
        return self.reason

    def _take_down_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.was_interrupted:
                signal.default_int_handler(number, frame)  # asked twice: at once
            self.was_interrupted = True
        self._take_down(Reason[signal.Signals(number).name])

    def _take_down_spot(self) -> None:
        self._take_down(Reason.SPOT_NOTICE)

    def _take_down(self, reason: Reason) -> None:
        self.given = max(self.given, reason)


def write_marker(run_dir: Path, reason: Reason, clock: int, world: World) -> None:
    """Say in the run's folder that the run wants to be continued: torchrun's exit status cannot."""
    if world.rank == 0:
        marker = {"reason": reason.name, "clock": clock, "command": shlex.join(sys.argv)}
        write_whole(run_dir / CONTINUE, (json.dumps(marker, indent=1) + "\n").encode())


def remove_marker(run_dir: Path) -> None:
    """The run goes on."""
    (run_dir / CONTINUE).unlink(missing_ok=True)
