"""Each process ends itself if its trainer makes no progress, and reports which rank the others wait for.

This runs in threads of each process and uses no collectives. Each trainer records a heartbeat as it makes progress. A
thread publishes the heartbeats in the processes' store and reads those of the other ranks; a second one ends the
process when its own trainer has made no progress for too long.
"""

import faulthandler
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType

from loaders import Loader, World
from train.config import HANG
from train.dist import Heartbeats

PULSE_SECONDS = 1.0  # the longest pulse: the wait in one turn of the publishing or the watching thread
PULSES_TO_SILENCE = 5  # without a new heartbeat, until a process is silent: stopped, dead or cut off
WAITS = "waiting for the bucket"  # in a heartbeat, in place of what the trainer does
WRITE_SECONDS = 5.0  # to write hang.txt; the disk itself may hang


@dataclass(frozen=True)
class Heartbeat:
    """The progress of a trainer."""

    number: int = 0  # of heartbeats so far
    clock: int = 0  # images seen
    doing: str = "starting"


@dataclass(frozen=True)
class LastSeen:
    """The last published heartbeat of a process."""

    line: str = ""
    heartbeat: Heartbeat = Heartbeat()
    at: float = 0.0  # seconds on this process's monotonic clock


class Watchdog:
    """Ends this process when its trainer has sent no heartbeat for `minutes`. Use as a context manager.

    While a loader waits for a bucket that does not answer, no rank counts: the loader's patience ends that wait.

    Args:
        loaders: of the trainer.
        after: is called with the path of hang.txt when it is written, a few seconds before the process ends.
    """

    def __init__(
        self,
        minutes: float,
        run_dir: Path,
        world: World,
        loaders: Sequence[Loader] = (),
        after: Callable[[Path], None] = lambda path: None,
    ) -> None:
        self.minutes, self.run_dir, self.loaders, self.after = minutes, run_dir, loaders, after
        self.pulse = min(PULSE_SECONDS, 60 * minutes / 10)
        self.own = Heartbeat()
        self.published = Heartbeats("watchdog", world)
        self.seen = [LastSeen()] * world.size
        self.stopped = threading.Event()

    def __enter__(self) -> "Watchdog":
        for work in (self._publish, self._watch):
            threading.Thread(target=work, name="penstock-watchdog", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.stopped.set()

    def beat(self, clock: int, doing: str) -> None:
        """Record that the trainer has reached `clock` images and what it does next, e.g. "reading"."""
        self.own = Heartbeat(self.own.number + 1, clock, doing)

    def _publish(self) -> None:
        """Publish this rank's heartbeat and read the others', in its own thread: the store may block."""
        with suppress(RuntimeError):  # the store has ended; the other processes will end soon
            for count in itertools.count():
                # The count changes at every write. So others see that the process lives, even if its trainer waits.
                waits = WAITS if self._is_loader_waiting() else self.own.doing
                self.published.write(json.dumps([count, asdict(replace(self.own, doing=waits))]))
                for rank, line in enumerate(self.published.read_all()):
                    if line != self.seen[rank].line:
                        self.seen[rank] = LastSeen(line, Heartbeat(**json.loads(line)[1]), time.monotonic())
                if self.stopped.wait(self.pulse):
                    return

    def _watch(self) -> None:
        """Count own pulses without progress. Not time: a process that was stopped and resumed has not hung."""
        num_still, before = 0, self.own
        while not self.stopped.wait(self.pulse):
            is_still = self.own is before and not self._is_any_rank_waiting()
            num_still = num_still + 1 if is_still else 0
            before = self.own
            if num_still * self.pulse >= 60 * self.minutes:
                self._end()

    def _is_loader_waiting(self) -> bool:
        return any(loader.describe_wait() for loader in self.loaders)

    def _is_any_rank_waiting(self) -> bool:
        """Return True if this rank's loader, or that of a rank that is not silent, waits for its bucket."""
        if self._is_loader_waiting():
            return True
        silent_since = time.monotonic() - PULSES_TO_SILENCE * self.pulse
        return any(seen.heartbeat.doing == WAITS and seen.at >= silent_since for seen in self.seen)

    def _end(self) -> None:
        # Find out which rank the others wait for.
        silent_since = time.monotonic() - PULSES_TO_SILENCE * self.pulse
        silent = [rank for rank, seen in enumerate(self.seen) if seen.at < silent_since]
        heartbeats = [seen.heartbeat for seen in self.seen]
        heartbeats[self.published.rank] = self.own
        line = f"hung: no step in {self.minutes:g} minutes; {describe_hang(heartbeats, silent)}"

        # Report it on stderr and in hang.txt; neither the terminal nor the disk may prevent the end.
        with suppress(OSError):  # the terminal may have been closed
            print(line, file=sys.stderr, flush=True)
        writer = threading.Thread(target=self._write_file, args=(line,), daemon=True)
        writer.start()
        writer.join(WRITE_SECONDS)
        os._exit(1)

    def _write_file(self, line: str) -> None:
        """Append the line, and the stack of each thread of this process, to hang.txt."""
        with (self.run_dir / HANG).open("a") as file:
            file.write(f"{line}\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        self.after(self.run_dir / HANG)


def describe_hang(heartbeats: Sequence[Heartbeat], silent: Sequence[int]) -> str:
    """Return which ranks the others wait for, and the progress of each: the silent ones, else those furthest behind.

    Args:
        heartbeats: the last one of each rank.
        silent: ranks that no longer publish heartbeats.
    """
    if len(silent) == len(heartbeats):
        everyone = range(len(heartbeats))
        return f"the store on rank 0's machine does not answer; last seen: {_describe_ranks(heartbeats, everyone)}"
    fewest = min(heartbeat.number for heartbeat in heartbeats)
    behind = [rank for rank, heartbeat in enumerate(heartbeats) if heartbeat.number == fewest]
    waiting = [rank for rank in range(len(heartbeats)) if rank not in (silent or behind)]
    culprits = f"{_describe_ranks(heartbeats, silent)}, silent" if silent else _describe_ranks(heartbeats, behind)
    if not waiting:
        return culprits
    return f"{culprits}; waiting for it: {_describe_ranks(heartbeats, waiting)}"


def _describe_ranks(heartbeats: Sequence[Heartbeat], ranks: Sequence[int]) -> str:
    """Return e.g. `rank 0, 2 at image 960, training; rank 3 at image 896, reading`."""
    places = dict.fromkeys((heartbeats[rank].clock, heartbeats[rank].doing) for rank in ranks)
    described = []
    for clock, doing in places:
        here = [rank for rank in ranks if (heartbeats[rank].clock, heartbeats[rank].doing) == (clock, doing)]
        described.append(f"rank {', '.join(map(str, here))} at image {clock:,}, {doing}")
    return "; ".join(described)
