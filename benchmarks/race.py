"""Contenders raced against each other: each run in a process of its own, interleaved, on the same warm source.

A race is one source and those who take it; who fails drops out and is named, the others go on.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from record import summarize

from prep.errors import InputError

CONTENDERS = Path(__file__).resolve().parent / "contenders"
RUN, MAKE_SOURCE = CONTENDERS / "run.py", CONTENDERS / "source.py"
LEAST_REPETITIONS = 5
LONGEST_SECONDS = 600  # a run that takes longer hangs
NO_SYNC = "none: what is written may still be in memory alone when it returns"


class FailedError(RuntimeError):
    """A contender's run that came to nothing, in one line."""


@dataclass(frozen=True)
class Contender:
    """Who races: the generator `entry` in contenders/, the reader-back `counter`, under `python`."""

    name: str
    what: str
    entry: str
    counter: str = "counts:tars"
    options: dict[str, Any] = field(default_factory=dict)
    durability: str = NO_SYNC
    python: str = sys.executable
    module: str = ""  # what its interpreter must have
    install: str = ""  # how it gets it


@dataclass(frozen=True)
class Race:
    """One source, those who take it, and the first of them, whom the others are held against."""

    name: str
    source: Path
    facts: dict[str, Any]  # num_images, image_bytes, source_bytes
    contenders: tuple[Contender, ...]


Report = Callable[[str], None]


def last_line(errors: str) -> str:
    """The reason why a process failed, from its standard error."""
    lines = errors.strip().splitlines() or ["ended without a word"]
    return " ".join(lines[-1].split())[-300:]


def check_places(repetitions: int, out: Path | None, work: Path | None) -> None:
    """Raises InputError for what no race can be held with."""
    if repetitions < LEAST_REPETITIONS:
        raise InputError(f"{repetitions} repetitions show no spread: take {LEAST_REPETITIONS} or more")
    if out and not out.resolve().parent.is_dir():
        raise InputError(f"{out.parent} does not exist: create it or choose another --out")
    if work and not work.is_dir():
        raise InputError(f"{work} is no folder: create it or choose another --work")


def make_source(source: str, num_images: int, out: Path) -> dict[str, Any]:
    """The source of a race, parquet made from `source`; its facts.

    Raises:
        InputError: the given one cannot be used.
    """
    command = [sys.executable, str(MAKE_SOURCE), source, str(num_images), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = last_line(done.stderr)
        raise InputError(f"{source} cannot be used: {reason.partition('InputError: ')[2] or reason}")
    return json.loads(done.stdout)


def split_missing(contenders: tuple[Contender, ...]) -> tuple[tuple[Contender, ...], dict[str, str]]:
    """Those whose interpreter has what they need; why the others are skipped."""
    skipped = {}
    for contender in contenders:
        if contender.module and not has_module(contender.python, contender.module):
            skipped[contender.name] = f"{contender.module} is not there: {contender.install}"
    return tuple(contender for contender in contenders if contender.name not in skipped), skipped


def has_module(python: str, module: str) -> bool:
    """Whether an interpreter is there and could import it."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    try:
        return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def hold(race: Race, repetitions: int, work: Path, report: Report) -> tuple[dict[str, Any], dict[str, str]]:
    """All repetitions of a race: each contender's figures, and why some failed.

    The order turns by one from repetition to repetition, so that nobody always follows the same one.
    """
    runs: dict[str, list[dict[str, Any]]] = {contender.name: [] for contender in race.contenders}
    failed: dict[str, str] = {}
    for repetition in range(repetitions):
        turn = repetition % len(race.contenders)
        for contender in race.contenders[turn:] + race.contenders[:turn]:
            if contender.name in failed:
                continue
            try:
                runs[contender.name].append(run_once(race, contender, work))
                shown = f"{runs[contender.name][-1]['seconds']:.2f} s"
            except FailedError as error:
                failed[contender.name] = shown = str(error)
            report(f"{race.name}, {repetition + 1} of {repetitions}, {contender.name}: {shown}")
    whole = [contender for contender in race.contenders if contender.name not in failed]
    return {contender.name: describe_runs(race, contender, runs[contender.name]) for contender in whole}, failed


def run_once(race: Race, contender: Contender, work: Path) -> dict[str, Any]:
    """One run into an empty folder, the source in memory, nothing waiting to be written.

    Raises:
        FailedError: it ended, hung, or did not write every image.
    """
    folder = work / "run"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "marks").mkdir(parents=True)
    job = {"entry": contender.entry, "counter": contender.counter, "options": contender.options}
    job |= {"source": str(race.source), "out": str(folder / "out")}
    with _started(contender.python, job, folder) as process:
        ready = _answer(process, folder)
        read_all(race.source)
        os.sync()
        assert process.stdin
        with suppress(BrokenPipeError):  # it ended meanwhile, which its missing answer tells
            process.stdin.write("go\n")
            process.stdin.flush()
        result = _answer(process, folder)
    shutil.rmtree(folder)
    if result["num_images"] != race.facts["num_images"]:
        raise FailedError(f"wrote {result['num_images']:,} of {race.facts['num_images']:,} images")
    return result | {"versions": ready["versions"]}


def read_all(folder: Path) -> None:
    """Bring a folder's files into the page cache."""
    buffer = bytearray(1 << 22)
    for path in filter(Path.is_file, folder.rglob("*")):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


@contextmanager
def _started(python: str, job: dict[str, Any], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The contender's process, which goes with all that it started, at the latest when it takes too long."""
    environment = os.environ | {"PENSTOCK_BENCHMARK_MARKS": str(folder / "marks"), "TMPDIR": str(folder)}
    with (folder / "stderr").open("w") as errors:
        process = subprocess.Popen(
            [python, str(RUN), json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
            start_new_session=True,
        )
    watchdog = threading.Timer(LONGEST_SECONDS, _end, [process])
    watchdog.start()
    try:
        with process:
            yield process
            process.wait(LONGEST_SECONDS)
    finally:
        watchdog.cancel()
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _answer(process: subprocess.Popen[str], folder: Path) -> dict[str, Any]:
    assert process.stdout
    if line := process.stdout.readline():
        return json.loads(line)
    _end(process)
    raise FailedError(last_line((folder / "stderr").read_text(errors="replace")))


def describe_runs(race: Race, contender: Contender, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """A contender's figures, every repetition of them; the durable ones count os.sync() afterwards too."""
    num_images = race.facts["num_images"]
    size_bytes = race.facts["source_bytes" if contender.counter == "counts:parquet" else "image_bytes"]
    seconds = [run["seconds"] for run in runs]
    durable = [run["seconds"] + run["sync_seconds"] for run in runs]
    return {
        "what": contender.what,
        "durability": contender.durability,
        "images_per_second": summarize([num_images / each for each in seconds]),
        "megabytes_per_second": summarize([size_bytes / 1e6 / each for each in seconds]),
        "durable_images_per_second": summarize([num_images / each for each in durable]),
        **{name: summarize([run[name] for run in runs]) for name in ("seconds", "call_seconds", "sync_seconds")},
        "cpu_seconds": summarize([run["cpu_seconds"] for run in runs]),
        "output_bytes": runs[-1]["output_bytes"],
        "versions": runs[-1]["versions"],
    }
