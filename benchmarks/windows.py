"""Compare contenders that feed batches: each is a process that lives through the race, measured in alternating windows.

In a window the process continues, takes batches without counting for a while, then counts its images. Between its
windows it is stopped together with its child processes. A contender that fails is named and drops out; the others
continue.
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
SPARE_SECONDS = 60  # that a window may take longer than requested


@dataclass(frozen=True)
class Entrant:
    """A contender with all that is needed to start it: an interpreter, and the fields of feeding/job.py."""

    contender: Contender
    python: str
    job: dict[str, Any]

    @property
    def name(self) -> str:
        """The contender's name."""
        return self.contender.name

    @property
    def longest_window(self) -> float:
        """Seconds after which a window is considered hung."""
        return SPARE_SECONDS + self.job["warmup"] + self.job["seconds"]


class Feeder:
    """An entrant's process; each request is one word, each answer one line of JSON."""

    def __init__(self, process: subprocess.Popen[bytes], errors: Path) -> None:
        self.process, self.errors = process, errors

    def request(self, word: str, longest: float) -> dict[str, Any]:
        """Send a request and return the answer; the process runs only in between.

        Raises:
            FailedError: the process ended, or did not answer within `longest` seconds.
        """
        assert self.process.stdin
        self.signal(signal.SIGCONT)
        with suppress(BrokenPipeError):  # it has ended; the missing answer reports that below
            self.process.stdin.write(f"{word}\n".encode())
            self.process.stdin.flush()
        return self.read_answer(longest)

    def read_answer(self, longest: float) -> dict[str, Any]:
        """Wait for the next answer, stop the process, and return the answer.

        Raises:
            FailedError: the process ended, or did not answer within `longest` seconds.
        """
        assert self.process.stdout
        # Wait with a timeout: readline() alone would block forever if the process hangs.
        in_time = select.select([self.process.stdout], [], [], longest)[0]
        if in_time and (line := self.process.stdout.readline()):
            self.signal(signal.SIGSTOP)
            return json.loads(line)

        # No answer: the process hangs, or it has ended and its last line of standard error has the reason.
        self.signal(signal.SIGKILL)
        if not in_time:
            raise FailedError(f"no answer within {longest:.0f} s")
        raise FailedError(last_line(self.errors.read_text(errors="replace")))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and its child processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def close(self) -> None:
        """Let the process end by itself, so that it frees its shared memory; kill it after LONGEST_END seconds."""
        assert self.process.stdin
        self.signal(signal.SIGCONT)
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(LONGEST_END)
        self.signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def start_entrant(entrant: Entrant) -> Iterator[Feeder]:
    """Start an entrant's process, with a temporary folder that is deleted when the block ends."""
    with tempfile.TemporaryDirectory(prefix="penstock-") as temporary:
        errors = Path(temporary) / "stderr"
        with errors.open("w") as file:
            process = subprocess.Popen(
                [entrant.python, str(RUN), json.dumps(entrant.job)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=os.environ | {"TMPDIR": temporary},
                # A process group in this session: if this process is killed, the kernel ends the stopped ones too.
                process_group=0,
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


def measure_race(
    name: str, entrants: tuple[Entrant, ...], repetitions: int, report: Report
) -> tuple[dict[str, Any], dict[str, str]]:
    """Measure all windows of a race; return the figures of each contender, and for each that failed the reason."""
    failed: dict[str, str] = {}
    windows: dict[str, list[dict[str, float]]] = {entrant.name: [] for entrant in entrants}
    with ExitStack() as stack:
        # Start all processes at once; each is stopped as soon as it has opened its data.
        feeders = {entrant.name: stack.enter_context(start_entrant(entrant)) for entrant in entrants}
        facts = open_all(entrants, feeders, failed)

        # Measure one window of each per repetition. Only the process whose window it is runs.
        for repetition, entrant in rotate_order(entrants, repetitions):
            if entrant.name in failed:
                continue
            with _collect_failure(entrant.name, failed):
                windows[entrant.name].append(feeders[entrant.name].request("go", entrant.longest_window))
            shown = failed.get(entrant.name) or f"{windows[entrant.name][-1]['images_per_second']:,.0f} images/s"
            report(f"{name}, {repetition + 1} of {repetitions}, {entrant.name}: {shown}")

    # An entrant that failed once has no figures at all.
    complete = [entrant for entrant in entrants if entrant.name not in failed]
    return {each.name: describe_windows(each, facts[each.name], windows[each.name]) for each in complete}, failed


def open_all(
    entrants: tuple[Entrant, ...], feeders: dict[str, Feeder], failed: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """Wait until all entrants have imported, at the same time, then open them one after another; return their facts."""
    facts: dict[str, dict[str, Any]] = {}
    for entrant in entrants:
        with _collect_failure(entrant.name, failed):
            facts[entrant.name] = feeders[entrant.name].read_answer(LONGEST_START)
    for entrant in entrants:
        if entrant.name in facts:
            with _collect_failure(entrant.name, failed):
                facts[entrant.name] |= feeders[entrant.name].request("open", LONGEST_OPEN)
    return facts


def rotate_order(entrants: tuple[Entrant, ...], repetitions: int) -> Iterator[tuple[int, Entrant]]:
    """Yield every entrant once per repetition; the order rotates by one, so that none always follows the same other."""
    for repetition in range(repetitions):
        first = repetition % max(1, len(entrants))
        for entrant in entrants[first:] + entrants[:first]:
            yield repetition, entrant


@contextmanager
def _collect_failure(name: str, failed: dict[str, str]) -> Iterator[None]:
    """Record an entrant that fails in `failed`, instead of raising FailedError."""
    try:
        yield
    except FailedError as error:
        failed[name] = str(error)


def describe_windows(entrant: Entrant, facts: dict[str, Any], windows: list[dict[str, float]]) -> dict[str, Any]:
    """Return a contender's figures with every repetition."""
    contender = entrant.contender
    return {
        "what": contender.what,
        "data": contender.data,
        "options": contender.options,
        **{name: summarize([window[name] for window in windows]) for name in windows[0]},
        **facts,
    }
