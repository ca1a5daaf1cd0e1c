"""Feeders held against each other: each in a process that stays for the whole race, measured in turns.

A window is one turn: the process goes on, takes batches untimed for a while, then its images are counted; between
its windows it is stopped, with all that it started. Who fails drops out and is named, the others go on.
"""

import json
import os
import select
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feeding.contenders import Contender
from race import FailedError, Report, last_line
from record import summarize

RUN = Path(__file__).resolve().parent / "feeding" / "run.py"
LONGEST_START, LONGEST_OPEN, LONGEST_END = 300, 300, 20  # seconds; FFCV compiles when it opens
SPARE_SECONDS = 60  # that a window may take beyond what it was asked for


@dataclass(frozen=True)
class Entrant:
    """A contender with what it needs to start: an interpreter, and the fields of feeding/job.py."""

    contender: Contender
    python: str
    job: dict[str, Any]

    @property
    def name(self) -> str:
        return self.contender.name

    @property
    def longest_window(self) -> float:
        """Seconds after which it hangs."""
        return SPARE_SECONDS + self.job["warmup"] + self.job["seconds"]


class Feeder:
    """An entrant's process: it is asked one word at a time, and answers each with one line of JSON."""

    def __init__(self, process: subprocess.Popen[bytes], errors: Path) -> None:
        self.process, self.errors = process, errors

    def ask(self, word: str, longest: float) -> dict[str, Any]:
        """What it answers, while it runs.

        Raises:
            FailedError: it ended, or does not answer within `longest` seconds.
        """
        assert self.process.stdin
        self.signal(signal.SIGCONT)
        with suppress(BrokenPipeError):  # it has ended, which its missing answer tells
            self.process.stdin.write(f"{word}\n".encode())
            self.process.stdin.flush()
        return self.hear(longest)

    def hear(self, longest: float) -> dict[str, Any]:
        """Its next answer, after which it is stopped."""
        assert self.process.stdout
        in_time = select.select([self.process.stdout], [], [], longest)[0]
        if in_time and (line := self.process.stdout.readline()):
            self.signal(signal.SIGSTOP)
            return json.loads(line)
        self.signal(signal.SIGKILL)
        if not in_time:
            raise FailedError(f"no answer within {longest:.0f} s")
        raise FailedError(last_line(self.errors.read_text(errors="replace")))

    def signal(self, number: signal.Signals) -> None:
        """To the process and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def close(self) -> None:
        """Let it end by itself, so that it tidies shared memory away; if it does not, end it."""
        assert self.process.stdin
        self.signal(signal.SIGCONT)
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(LONGEST_END)
        self.signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def started(entrant: Entrant) -> Iterator[Feeder]:
    """The entrant's process, what it leaves in its temporary folder tidied away afterwards."""
    with tempfile.TemporaryDirectory(prefix="penstock-") as temporary:
        errors = Path(temporary) / "stderr"
        with errors.open("w") as file:
            process = subprocess.Popen(
                [entrant.python, str(RUN), json.dumps(entrant.job)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=os.environ | {"TMPDIR": temporary},
                process_group=0,  # of this session: should this process be killed, the kernel ends the stopped ones too
            )
        with process:
            feeder = Feeder(process, errors)
            try:
                yield feeder
            except BaseException:
                feeder.signal(signal.SIGKILL)
                raise
            finally:
                feeder.close()


def hold(
    name: str, entrants: tuple[Entrant, ...], repetitions: int, report: Report
) -> tuple[dict[str, Any], dict[str, str]]:
    """All windows of a race: each contender's figures, and why some failed."""
    failed: dict[str, str] = {}
    windows: dict[str, list[dict[str, float]]] = {entrant.name: [] for entrant in entrants}
    with ExitStack() as stack:
        feeders = {entrant.name: stack.enter_context(started(entrant)) for entrant in entrants}
        facts = open_all(entrants, feeders, failed)
        for repetition, entrant in take_turns(entrants, repetitions):
            if entrant.name in failed:
                continue
            with _dropping_out(entrant.name, failed):
                windows[entrant.name].append(feeders[entrant.name].ask("go", entrant.longest_window))
            shown = failed.get(entrant.name) or f"{windows[entrant.name][-1]['images_per_second']:,.0f} images/s"
            report(f"{name}, {repetition + 1} of {repetitions}, {entrant.name}: {shown}")
    whole = [entrant for entrant in entrants if entrant.name not in failed]
    return {each.name: describe_windows(each, facts[each.name], windows[each.name]) for each in whole}, failed


def open_all(
    entrants: tuple[Entrant, ...], feeders: dict[str, Feeder], failed: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """Everyone's facts: all import at once, then they take their first batches one after another."""
    facts: dict[str, dict[str, Any]] = {}
    for entrant in entrants:
        with _dropping_out(entrant.name, failed):
            facts[entrant.name] = feeders[entrant.name].hear(LONGEST_START)
    for entrant in entrants:
        if entrant.name in facts:
            with _dropping_out(entrant.name, failed):
                facts[entrant.name] |= feeders[entrant.name].ask("open", LONGEST_OPEN)
    return facts


def take_turns(entrants: tuple[Entrant, ...], repetitions: int) -> Iterator[tuple[int, Entrant]]:
    """Everyone once a repetition; the order turns by one each time, so that nobody always follows the same one."""
    for repetition in range(repetitions):
        turn = repetition % max(1, len(entrants))
        for entrant in entrants[turn:] + entrants[:turn]:
            yield repetition, entrant


@contextmanager
def _dropping_out(name: str, failed: dict[str, str]) -> Iterator[None]:
    try:
        yield
    except FailedError as error:
        failed[name] = str(error)


def describe_windows(entrant: Entrant, facts: dict[str, Any], windows: list[dict[str, float]]) -> dict[str, Any]:
    """A contender's figures, every repetition of them."""
    contender = entrant.contender
    return {
        "what": contender.what,
        "data": contender.data,
        "options": contender.options,
        **{name: summarize([window[name] for window in windows]) for name in windows[0]},
        **facts,
    }
