"""Races of readers and of writers: contenders take turns in rotating order, and one that fails drops out with a reason.

A reader is a process that lives through all its windows, and is stopped between them. A writer is a new process in each
repetition, which writes the source's images into an empty folder. The parent process measures CPU time and memory.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from machine import busy_core_seconds, has_module, read_into_page_cache
from peers.job import MARKS, Job
from peers.registry import LIBRARIES, Contender, Reader, Writer
from record import print_progress, summarize
from worker import FailedError, Worker, start_worker

LONGEST_START, LONGEST_OPEN, LONGEST_RUN = 300, 300, 600  # seconds; FFCV compiles when it opens
SPARE_SECONDS = 60  # that a window may take longer than requested
RATE, UNDISTURBED = "images_per_second", "undisturbed_images_per_second"
OTHERS, DISTURBED_CORES = "others_busy_cores", 0.2


@dataclass(frozen=True)
class Entrant:
    """A reader with all that is needed to start it."""

    reader: Reader
    job: Job
    python: str = sys.executable


@dataclass(frozen=True)
class Source:
    """A folder of parquet files that writers read."""

    folder: Path
    facts: dict[str, Any]  # name, num_images, image_bytes, source_bytes


@dataclass
class Turns:
    """What contenders measured in turns, by name: the figures of each repetition, or the reason of a failure."""

    title: str
    runs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def drop_out(self, name: str) -> Iterator[None]:
        """Note that a contender failed, instead of raising FailedError. One that failed once has no figures at all."""
        try:
            yield
        except FailedError as error:
            self.failed[name] = str(error)
            self.runs.pop(name, None)

    def take(self, names: list[str], repetitions: int, measure: Callable[[str], dict[str, Any]], shown: str) -> None:
        """Measure each contender once per repetition.

        The order rotates by one, so that no contender always follows the same other one.

        Args:
            measure: returns the figures of one turn of a contender, or raises FailedError.
            shown: format of the line of progress, from these figures.
        """
        self.runs = {name: [] for name in names if name not in self.failed}
        for repetition in range(repetitions):
            first = repetition % max(1, len(names))
            for name in names[first:] + names[:first]:
                if name in self.failed:
                    continue
                with self.drop_out(name):
                    self.runs[name].append(measure(name))
                line = self.failed.get(name) or shown.format(**self.runs[name][-1])
                print_progress(f"{self.title}, {repetition + 1} of {repetitions}, {name}: {line}")


def find_missing(contenders: list[Contender], pythons: dict[str, str], flags: dict[str, str]) -> dict[str, str]:
    """Return for each library that is not installed the reason why its contenders are skipped.

    Args:
        pythons: interpreters, by library; the others have that of this process.
        flags: the flag that names a library's interpreter, by library.
    """
    skipped = {}
    for name in dict.fromkeys(each.library for each in contenders):
        module, install = LIBRARIES[name].module, LIBRARIES[name].install
        if module and not has_module(pythons.get(name, sys.executable), module):
            skipped[name] = f"{module} is not installed: {install}, in a separate environment, and pass {flags[name]}"
    return skipped


# Readers.


def race_readers(title: str, entrants: list[Entrant], repetitions: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Measure all windows of a race; return the figures of each reader, and for each that failed the reason."""
    turns, facts = Turns(title), {}
    known = {each.reader.name: each for each in entrants}
    with ExitStack() as stack:
        # Start all processes at once; they import at the same time, then open their data one after another.
        workers = {
            name: stack.enter_context(start_worker("peers.job:read", asdict(each.job), each.python))
            for name, each in known.items()
        }
        for worker in workers.values():
            worker.send()
        for name, worker in workers.items():
            with turns.drop_out(name):
                facts[name] = worker.receive(LONGEST_START)
                worker.pause()
        for name in facts:
            with turns.drop_out(name):
                facts[name] |= workers[name].ask(LONGEST_OPEN)
                workers[name].pause()

        # Measure one window of each per repetition. Only the process whose window it is runs.
        turns.take(
            list(known),
            repetitions,
            lambda name: measure_window(workers[name], known[name].job),
            "{images_per_second:,.0f} images/s",
        )
    figures = {name: describe_windows(known[name].reader, facts[name], runs) for name, runs in turns.runs.items()}
    return figures, turns.failed


def measure_window(worker: Worker, job: Job) -> dict[str, float]:
    """Measure one window of a reader, from the end of its warm-up on; then stop it.

    `others_busy_cores` shows the load from other processes, which may have disturbed the window.
    """
    meters: list[tuple[float, float]] = []

    def read_meters(_: Any = None) -> None:
        meters.append((worker.cpu_seconds(), busy_core_seconds()))

    window = worker.ask(SPARE_SECONDS + job.warmup + job.seconds, on_progress=read_meters)
    read_meters()
    worker.pause()
    own, machine = (after - before for before, after in zip(*meters, strict=True))
    return {
        RATE: window["num_images"] / window["seconds"],
        "cpu_seconds_per_1000_images": 1000 * own / window["num_images"],
        "memory_bytes": worker.memory_bytes(),
        OTHERS: max(0.0, machine - own) / window["seconds"],
    }


def describe_windows(reader: Reader, facts: dict[str, Any], windows: list[dict[str, float]]) -> dict[str, Any]:
    """Return a reader's figures with every repetition, and its rate in windows in which others kept few cores busy."""
    figures = {name: summarize([window[name] for window in windows]) for name in windows[0]}
    if quiet := [window[RATE] for window in windows if window[OTHERS] < DISTURBED_CORES]:
        figures[UNDISTURBED] = summarize(quiet)
    return {"what": reader.what, "data": reader.data, "options": reader.options, **figures, **facts}


# Writers.


def race_writers(
    title: str, source: Source, writers: list[tuple[Writer, str]], repetitions: int, work: Path
) -> tuple[dict[str, Any], dict[str, str]]:
    """Run all repetitions of a race; return the figures of each writer, and for each that failed the reason.

    Args:
        writers: each with its interpreter.
        work: folder on the disk to measure.
    """
    turns = Turns(title)
    known = {writer.name: (writer, python) for writer, python in writers}
    turns.take(list(known), repetitions, lambda name: run_writer(*known[name], source, work), "{seconds:.2f} s")
    figures = {name: describe_runs(known[name][0], source, runs) for name, runs in turns.runs.items()}
    return figures, turns.failed


def run_writer(writer: Writer, python: str, source: Source, work: Path) -> dict[str, Any]:
    """Run a writer once: into an empty folder, with the source in memory and nothing waiting to be written to disk.

    Raises:
        FailedError: the process ended, hung, or did not write every image.
    """
    # Empty the folder of the last run.
    folder, cpu_seconds = work / "run", 0.0
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "marks").mkdir(parents=True)
    job = {"entry": writer.entry, "options": writer.options}
    job |= {"source": str(source.folder), "out": str(folder / "out")}
    environment = {MARKS: str(folder / "marks"), "TMPDIR": str(folder)}

    def read_cpu_seconds(_: Any) -> None:
        nonlocal cpu_seconds
        cpu_seconds = worker.cpu_seconds()

    with start_worker("peers.job:write", job, python, environment) as worker:
        # It answers when its imports are done and its source is open. Give every run the same state of the machine.
        ready = worker.ask(LONGEST_RUN)
        read_into_page_cache(source.folder)
        os.sync()
        result = worker.ask(LONGEST_RUN, on_progress=read_cpu_seconds)
    shutil.rmtree(folder)

    # A writer that loses images would be fast.
    if result["num_images"] != source.facts["num_images"]:
        raise FailedError(f"wrote {result['num_images']:,} of {source.facts['num_images']:,} images")
    return result | ready | {"cpu_seconds": max(0.0, cpu_seconds - result["start_cpu_seconds"])}


def describe_runs(writer: Writer, source: Source, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a writer's figures with every repetition; the durable rates include os.sync() afterwards."""
    num_images, megabytes = source.facts["num_images"], source.facts[writer.counted] / 1e6
    durable = [run["seconds"] + run["sync_seconds"] for run in runs]
    measured = ("seconds", "call_seconds", "sync_seconds", "cpu_seconds")
    return {
        "what": writer.what,
        "durability": writer.durability,
        RATE: summarize([num_images / run["seconds"] for run in runs]),
        "megabytes_per_second": summarize([megabytes / run["seconds"] for run in runs]),
        f"durable_{RATE}": summarize([num_images / seconds for seconds in durable]),
        **{name: summarize([run[name] for run in runs]) for name in measured},
        "output_bytes": runs[-1]["output_bytes"],
        "versions": runs[-1]["versions"],
    }
