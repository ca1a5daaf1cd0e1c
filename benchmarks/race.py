"""Compare contenders that write a dataset: each run is a separate process, interleaved, on the same warm source.

A race has one source and the contenders that read it. A contender that fails is named and drops out; the others
continue.
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
LONGEST_SECONDS = 600  # a run that takes longer is considered hung
NO_SYNC = "none: when it returns, what is written may still be in memory only"


class FailedError(InputError):
    """A contender or a command failed; the message is one line."""


@dataclass(frozen=True)
class Contender:
    """A contender: the generator `entry` in contenders/, run by the interpreter `python`.

    `counter` is the function there that counts the images in its output.
    """

    name: str
    what: str  # description
    entry: str  # module:function
    counter: str = "counts:tars"
    options: dict[str, Any] = field(default_factory=dict)
    durability: str = NO_SYNC  # what it syncs to disk before it returns
    python: str = sys.executable
    module: str = ""  # that its interpreter must be able to import
    install: str = ""  # how to install it


@dataclass(frozen=True)
class Race:
    """One source and the contenders that read it; the first contender is the baseline."""

    name: str
    source: Path
    facts: dict[str, Any]  # num_images, image_bytes, source_bytes
    contenders: tuple[Contender, ...]


Report = Callable[[str], None]


def last_line(errors: str) -> str:
    """Return the last line of a process's standard error: the reason why it failed."""
    lines = errors.strip().splitlines() or ["exited without an error message"]
    return " ".join(lines[-1].split())[-300:]


def check_race_flags(repetitions: int, out: Path | None, work: Path | None) -> None:
    """Check the flags that all races share; raise InputError for the first one that cannot be used."""
    if repetitions < LEAST_REPETITIONS:
        raise InputError(f"--repetitions must be at least {LEAST_REPETITIONS}, got {repetitions}")
    if out and not out.resolve().parent.is_dir():
        raise InputError(f"{out.parent} does not exist: create it or choose another --out")
    if work and not work.is_dir():
        raise InputError(f"{work} is not a folder: create it or choose another --work")


def make_source(source: str, num_images: int, out: Path) -> dict[str, Any]:
    """Write the source of a race, parquet files of `num_images` images from `source`; return its facts.

    Raises:
        InputError: `source` cannot be used.
    """
    command = [sys.executable, str(MAKE_SOURCE), source, str(num_images), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = last_line(done.stderr)
        raise InputError(f"{source} cannot be used: {reason.partition('InputError: ')[2] or reason}")
    return json.loads(done.stdout)


def split_missing(contenders: tuple[Contender, ...]) -> tuple[tuple[Contender, ...], dict[str, str]]:
    """Return the contenders whose packages are installed, and for each of the others the reason."""
    skipped = {}
    for contender in contenders:
        if contender.module and not has_module(contender.python, contender.module):
            skipped[contender.name] = f"{contender.module} is not installed: {contender.install}"
    return tuple(contender for contender in contenders if contender.name not in skipped), skipped


def has_module(python: str, module: str) -> bool:
    """Return True if an interpreter exists and can import a module."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    try:
        return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def run_race(race: Race, repetitions: int, work: Path, report: Report) -> tuple[dict[str, Any], dict[str, str]]:
    """Run all repetitions of a race; return the figures of each contender, and for each that failed the reason.

    The order rotates by one from repetition to repetition, so that no contender always follows the same other one.
    """
    runs: dict[str, list[dict[str, Any]]] = {contender.name: [] for contender in race.contenders}
    failed: dict[str, str] = {}
    for repetition in range(repetitions):
        first = repetition % len(race.contenders)
        for contender in race.contenders[first:] + race.contenders[:first]:
            if contender.name in failed:
                continue
            try:
                runs[contender.name].append(run_contender(race, contender, work))
                shown = f"{runs[contender.name][-1]['seconds']:.2f} s"
            except FailedError as error:
                failed[contender.name] = shown = str(error)
            report(f"{race.name}, {repetition + 1} of {repetitions}, {contender.name}: {shown}")

    # A contender that failed once has no figures at all.
    complete = [contender for contender in race.contenders if contender.name not in failed]
    return {contender.name: describe_runs(race, contender, runs[contender.name]) for contender in complete}, failed


def run_contender(race: Race, contender: Contender, work: Path) -> dict[str, Any]:
    """Run a contender once: into an empty folder, with the source in memory and nothing waiting to be written to disk.

    Raises:
        FailedError: the process ended, hung, or did not write every image.
    """
    # Empty the folder of the last run.
    folder = work / "run"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "marks").mkdir(parents=True)
    job = {"entry": contender.entry, "counter": contender.counter, "options": contender.options}
    job |= {"source": str(race.source), "out": str(folder / "out")}
    with _start_contender(contender.python, job, folder) as process:
        # It answers "ready" when its imports are done and its source is open.
        ready = _read_answer(process, folder)

        # Give every run the same state of the machine, then let it work.
        read_into_page_cache(race.source)
        os.sync()
        assert process.stdin
        with suppress(BrokenPipeError):  # it has ended; its missing answer reports that below
            process.stdin.write("go\n")
            process.stdin.flush()
        result = _read_answer(process, folder)
    shutil.rmtree(folder)

    # A contender that loses images would be fast.
    if result["num_images"] != race.facts["num_images"]:
        raise FailedError(f"wrote {result['num_images']:,} of {race.facts['num_images']:,} images")
    return result | {"versions": ready["versions"]}


def read_into_page_cache(folder: Path) -> None:
    """Read all files of a folder into the page cache."""
    buffer = bytearray(1 << 22)
    for path in filter(Path.is_file, folder.rglob("*")):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


@contextmanager
def _start_contender(python: str, job: dict[str, Any], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a contender's process; end it and its child processes when the block ends, or after LONGEST_SECONDS."""
    environment = os.environ | {"PENSTOCK_BENCHMARK_MARKS": str(folder / "marks"), "TMPDIR": str(folder)}
    with (folder / "stderr").open("w") as errors:
        process = subprocess.Popen(
            [python, str(RUN), json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
            start_new_session=True,  # so that killing its process group ends its workers too
        )

    # A hung contender would block the reading of its answer forever: kill it after LONGEST_SECONDS.
    watchdog = threading.Timer(LONGEST_SECONDS, _kill, [process])
    watchdog.start()
    try:
        with process:
            yield process
            process.wait(LONGEST_SECONDS)
    finally:
        watchdog.cancel()
        _kill(process)


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill the process and all its child processes."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _read_answer(process: subprocess.Popen[str], folder: Path) -> dict[str, Any]:
    """Return the next line of the process, parsed; raise FailedError if it ends without one."""
    assert process.stdout
    if line := process.stdout.readline():
        return json.loads(line)
    _kill(process)
    raise FailedError(last_line((folder / "stderr").read_text(errors="replace")))


def describe_runs(race: Race, contender: Contender, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a contender's figures with every repetition; the durable rates include os.sync() afterwards."""
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
