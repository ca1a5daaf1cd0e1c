"""A run that hangs is ended, and who hung is said: a thread beside the trainer of each process, past all collectives.

Each trainer beats as it goes; the beats of all processes are pinned to a board for all to read.
"""

import faulthandler
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from loaders import World
from train.dist import Board
from train.run_folder import HANG

PULSE_SECONDS = 1.0  # between looks at the board, at most
PULSES_TO_SILENCE = 5  # without a new line on the board a process is silent: stopped, dead or cut off
SECONDS_TO_WRITE = 5.0  # down what happened; the disk may be what hangs


@dataclass(frozen=True)
class Beat:
    """Where a trainer is."""

    number: int = 0  # of beats so far
    clock: int = 0  # images seen
    doing: str = "starting"


@dataclass(frozen=True)
class Sight:
    """What was last seen of a process."""

    line: str = ""
    beat: Beat = Beat()
    at: float = 0.0  # seconds, this process's monotonic clock


class Watchdog:
    """Ends this process when its trainer has not beaten for so many minutes. Use as a context manager."""

    def __init__(self, minutes: float, run_dir: Path, world: World) -> None:
        self.minutes, self.run_dir = minutes, run_dir
        self.pulse = min(PULSE_SECONDS, 60 * minutes / 10)
        self.last = Beat()
        self.board = Board("watchdog", world)
        self.seen = [Sight()] * world.size
        self.stopped = threading.Event()

    def __enter__(self) -> "Watchdog":
        for work in (self._publish, self._watch):
            threading.Thread(target=work, name="penstock-watchdog", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.stopped.set()

    def beat(self, clock: int, doing: str) -> None:
        """The trainer has got so far, and does this next."""
        self.last = Beat(self.last.number + 1, clock, doing)

    def _publish(self) -> None:
        """Apart from the watch: the store may be what does not answer."""
        with suppress(RuntimeError):  # the store has ended, and soon all others
            for count in itertools.count():
                self.board.write(json.dumps([count, asdict(self.last)]))
                for rank, line in enumerate(self.board.read()):
                    if line != self.seen[rank].line:
                        self.seen[rank] = Sight(line, Beat(**json.loads(line)[1]), time.monotonic())
                if self.stopped.wait(self.pulse):
                    return

    def _watch(self) -> None:
        """Counts its own pulses, not time: a process that was stopped and goes on has not hung."""
        num_still, before = 0, self.last
        while not self.stopped.wait(self.pulse):
            num_still = num_still + 1 if self.last is before else 0
            before = self.last
            if num_still * self.pulse >= 60 * self.minutes:
                self._end()

    def _end(self) -> None:
        silent_since = time.monotonic() - PULSES_TO_SILENCE * self.pulse
        silent = [rank for rank, sight in enumerate(self.seen) if sight.at < silent_since]
        beats = [sight.beat for sight in self.seen]
        beats[self.board.rank] = self.last
        line = f"hung: no step in {self.minutes:g} minutes; {blame(beats, silent)}"
        with suppress(OSError):  # the terminal may be gone
            print(line, file=sys.stderr, flush=True)
        writer = threading.Thread(target=self._write_down, args=(line,), daemon=True)
        writer.start()
        writer.join(SECONDS_TO_WRITE)
        os._exit(1)

    def _write_down(self, line: str) -> None:
        """With where each thread of this process stands."""
        with (self.run_dir / HANG).open("a") as file:
            file.write(f"{line}\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)


def blame(beats: Sequence[Beat], silent: Sequence[int]) -> str:
    """Who holds the others up: the silent ones, else those that are furthest behind; and where each is."""
    if len(silent) == len(beats):
        return f"the store of rank 0's machine does not answer; last seen {_tell(beats, range(len(beats)))}"
    fewest = min(beat.number for beat in beats)
    behind = [rank for rank, beat in enumerate(beats) if beat.number == fewest]
    held_up = [rank for rank in range(len(beats)) if rank not in (silent or behind)]
    culprits = f"{_tell(beats, silent)}, silent" if silent else _tell(beats, behind)
    if not held_up:
        return culprits
    return f"{culprits}; held up by that {_tell(beats, held_up)}"


def _tell(beats: Sequence[Beat], ranks: Sequence[int]) -> str:
    """`rank 0, 2 at image 960, training; rank 3 at image 896, reading`."""
    places = dict.fromkeys((beats[rank].clock, beats[rank].doing) for rank in ranks)
    told = []
    for clock, doing in places:
        names = ", ".join(str(rank) for rank in ranks if (beats[rank].clock, beats[rank].doing) == (clock, doing))
        told.append(f"rank {names} at image {clock:,}, {doing}")
    return "; ".join(told)
