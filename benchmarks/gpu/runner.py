"""Run the cases in worker processes until the deadline; each outcome is on disk before the next case begins.

Statuses of a case:

* done: it has a result.
* failed: it raised an exception or found nothing to measure; the reason says why.
* crashed: its process ended, usually by a signal.
* hung: it ran longer than its own limit.
* cut: it ran into the suite's deadline.
* skipped: it was not started.

One file per stage is rewritten after each case and each part of a case. A later call with the same settings writes its
cases into the same files and keeps the cases that it does not run.

The figures that a case reported before it failed, crashed, hung or was cut are kept as its result. A spare worker does
its imports while the current worker runs cases, so that the suite need not wait ten seconds for each new process.
"""

import faulthandler
import gc
import importlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any

from gpu.cases import STAGES, TIMED, Case, Job, Options, Results, resolve_job
from record import describe_command, describe_date, describe_hardware, print_progress, write_json
from reports.gpu_runs import summarize_case
from worker import BENCHMARKS, EndedError, FailedError, HungError, start_worker
from worker_main import Progress, describe_versions, load_entry

from prep.dataset import Manifest
from prep.errors import InputError
from train.versions import describe_commit

Outcome = dict[str, Any]

CHECKOUT = BENCHMARKS.parent
PACKAGES = [
    *("penstock", "torch", "torchvision", "timm", "numpy", "pillow", "pytest"),
    *("nvidia-dali-cuda120", "nvidia-dali-cuda130", "nvidia-nvimgcodec-cu12", "nvidia-nvimgcodec-cu13"),
    "nvidia-nvjpeg",
]
PLACES = ("data", "work", "run")  # fields of a job with paths of this machine, which a record does not need
QUERY = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
SLOW_IMPORTS = ("torch", "timm", "gpu.rates", "loaders.dali")
# A case is started only with this much time before the deadline: seconds, and a share of its estimate.
LEAST_SECONDS, LEAST_SHARE = 5.0, 0.5
MOST_START_SECONDS = 90.0  # for a worker's imports
STACKS_SECONDS = 0.5  # before its limit, a case writes the stacks of its threads to the log
INSTALLED = re.compile(r'"/[^"]*/(?:site-packages|python3\.\d+)/')
MOST_STDERR_LINES = 30  # of a crashed process, in its record
MOST_LOG_BYTES = 8 << 20  # size of workers.log; its end is kept


class CaseRecords:
    """The records in a folder.

    Args:
        folder: the folder of the stages' files.
        settings: of this call; figures with other settings are not comparable.
        origin: command, commit, versions and hardware of this call (`describe_origin`).

    Raises:
        InputError: the folder holds other files of these names, or records with other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], origin: dict[str, Any]) -> None:
        self.folder, self.settings, self.origin = folder, settings, origin
        self.stages = {stage: self._read(folder / f"{stage}.json") for stage in STAGES}

    @property
    def results(self) -> Results:
        """All records, by the name of their case."""
        return {name: record for stage in self.stages.values() for name, record in stage.items()}

    @property
    def contents(self) -> list[dict[str, Any]]:
        """The contents of the files."""
        return [self.describe_stage(stage) for stage, cases in self.stages.items() if cases]

    def add(self, case: Case, job: dict[str, Any], outcome: dict[str, Any]) -> None:
        """Write an outcome to disk, with all that is needed to repeat it.

        A result of an earlier call is not replaced by a case that had no time in this call.
        """
        stage = self.stages[case.stage]
        if outcome["status"] in ("skipped", "cut") and stage.get(case.name, {}).get("status") == "done":
            return
        told = {name: value for name, value in job.items() if name not in PLACES}
        stage[case.name] = {"seconds": 0.0, **outcome, "job": told, **self.origin}
        write_json(self.folder / f"{case.stage}.json", self.describe_stage(case.stage))

    def describe_stage(self, stage: str) -> dict[str, Any]:
        """Return the content of a stage's file."""
        return {"what": "gpu suite", "stage": stage, "settings": self.settings, "cases": self.stages[stage]}

    def _read(self, path: Path) -> Results:
        """Return the records of a stage.

        Raises:
            InputError: the file is not a stage's, or has other settings.
        """
        if not path.exists():
            return {}
        try:
            content = json.loads(path.read_text())
            settings, cases = content["settings"], content["cases"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} holds no records of this suite: delete it or choose another --out") from error
        for name, value in self.settings.items():
            if settings.get(name) != value:
                raise InputError(
                    f"{path} holds records with {name} {settings.get(name)}, and this call has {value}: "
                    "choose another --out, or the same settings"
                )
        return cases


def describe_settings(options: Options, manifest: Manifest) -> dict[str, Any]:
    """Return the settings that must be equal for all records of a folder."""
    images = f"{manifest.num_images} of {manifest.source.name}" + ", restarts" * manifest.has_segments
    return {name: getattr(options, name) for name in ("device", "batch_size", "size", "amp")} | {"images": images}


def describe_origin() -> dict[str, Any]:
    """Return the origin of a call, the same for all its cases: command, commit, versions, hardware and date."""
    return {
        "command": describe_command("benchmarks/gpu_suite.py"),
        "commit": describe_commit(),
        "versions": describe_versions(PACKAGES),
        "hardware": describe_hardware(describe_gpu()),
        "date": describe_date(),
    }


def describe_gpu() -> str | None:
    """Return name, driver and memory of the GPUs as nvidia-smi prints them; None without a GPU.

    Asking torch would occupy memory of the GPU while the cases run.
    """
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return "; ".join(done.stdout.splitlines())


class Process:
    """A worker process, which imports what cases need as soon as it has started, and runs one case after another."""

    def __init__(self, log: Path, imports: tuple[str, ...]) -> None:
        # The commands that cases start run in another folder: make paths absolute.
        folders = [str(CHECKOUT), *map(os.path.abspath, filter(None, os.environ.get("PYTHONPATH", "").split(":")))]
        environment = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(folders))}
        job = {"imports": imports, "stacks_after": MOST_START_SECONDS - STACKS_SECONDS}
        self.stack = ExitStack()
        self.worker = self.stack.enter_context(
            start_worker("gpu.runner:serve_cases", job, environment=environment, errors=log)
        )
        self.prepare()

    def prepare(self) -> None:
        """Let the process do its imports or release the last case's memory, in the background."""
        self.is_ready = False
        self.worker.send()

    def wait_ready(self, deadline: float) -> None:
        """Wait until the process can run a case: a crash before that is not attributed to the case.

        Raises:
            FailedError: it has ended, or is not ready at the deadline.
        """
        if not self.is_ready:
            self.worker.receive(min(MOST_START_SECONDS, deadline - time.monotonic()))
            self.is_ready = True

    def end(self) -> int:
        """End the process and its child processes; return the exit status, 0 if this had to kill it."""
        self.stack.close()
        status = self.worker.process.returncode
        return 0 if status is None or (status == -signal.SIGKILL and self.worker.is_killed) else status


def serve_cases(job: Job) -> Iterator[Any]:
    """Run cases in this process: the entry of its worker. A request is None, to get ready, or a case."""
    # Crashes leave stacks in the log, and no core, which would have tens of gigabytes.
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.dump_traceback_later(job["stacks_after"])
    for name in job["imports"]:
        with suppress(Exception):  # the cases that need a missing package report it themselves
            importlib.import_module(name)
    faulthandler.cancel_dump_traceback_later()
    answer = None
    while True:
        request = yield answer
        if request is None:
            release_memory()
            answer = None
            continue
        # The last value of a case is its result. An exception may have spoiled the process, and ends it; a refusal
        # does not.
        faulthandler.dump_traceback_later(request["stacks_after"])
        result = None
        try:
            for result in load_entry(request["entry"])(request["job"]):
                yield Progress(result)
            answer = {"status": "done", "result": result, "reason": None}
        except InputError as error:
            answer = {"status": "failed", "result": result, "reason": str(error)}
        faulthandler.cancel_dump_traceback_later()


def release_memory() -> None:
    """Release the last case's memory, and reset the peak for the next case."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


class Runner:
    """Runs cases group by group. A group shares a process; if it ends, the rest of the group gets a new one.

    Use as a context manager, which ends the processes.

    Args:
        records: where the outcomes are written.
        log: file for the standard error of all cases.
        deadline: a time of time.monotonic(); nothing runs beyond it.
        imports: modules that each process imports before its first case.
    """

    def __init__(
        self, records: CaseRecords, log: Path, deadline: float, imports: tuple[str, ...] = SLOW_IMPORTS
    ) -> None:
        self.records, self.log, self.deadline, self.imports = records, log, deadline, imports
        self.process: Process | None = None
        self.spare: Process | None = None
        self.last: tuple[Case, Job] | None = None  # the last case that the process ran, with its job
        log.touch()

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        for process in filter(None, (self.process, self.spare)):
            process.worker.kill()
            process.end()
        # Drop the beginning of a log that is too large: no process writes to it any more.
        if self.log.stat().st_size > MOST_LOG_BYTES:
            self.log.write_bytes(self.log.read_bytes()[-MOST_LOG_BYTES:])

    def run_all(self, cases: list[Case]) -> None:
        """Run the cases in their order; cases of one group are neighbours."""
        groups = [list(group) for _, group in groupby(cases, key=lambda case: case.group or case.stage)]
        for number, group in enumerate(groups):
            for case in group:
                try:
                    self.check_needs(case)
                    job = resolve_job(case, self.records.results)
                except InputError as error:
                    self.keep(case, case.job, {"status": "skipped", "reason": str(error)})
                    continue
                seconds_left = self.deadline - time.monotonic()
                if seconds_left < max(LEAST_SECONDS, LEAST_SHARE * case.estimate):
                    reason = f"no time was left: {seconds_left:.0f} s, and it takes about {case.estimate:.0f} s"
                    self.keep(case, job, {"status": "skipped", "reason": reason})
                else:
                    self.run_case(case, job, starts_spare=number < len(groups) - 1)
            self.end_process()

    def check_needs(self, case: Case) -> None:
        """Check that a case can run on this device, and has what it needs; raise InputError if not."""
        if case.unable:
            raise InputError(case.unable)
        statuses = {name: self.records.results.get(name, {}).get("status", "not run") for name in case.needs}
        if missing := [f"{name} ({status})" for name, status in statuses.items() if status != "done"]:
            raise InputError(f"it needs {', '.join(missing)}")

    def run_case(self, case: Case, job: Job, starts_spare: bool) -> None:
        """Run a case and write its outcome; with `starts_spare` the next group's process starts at the same time."""
        try:
            process = self.find_process()
        except FailedError as error:
            self.end_process()
            reason = f"its process did not start: {error}; see {self.log.name}"
            self.keep(case, job, {"status": "failed", "reason": reason})
            return
        if starts_spare and self.spare is None:
            self.spare = Process(self.log, self.imports)
        if case.entry in TIMED and self.spare:  # imports must not use a core while a case is timed
            try:
                self.spare.wait_ready(self.deadline)
            except FailedError:
                self.spare.end()
                self.spare = None
        self.keep(case, job, self.ask(process, case, job))
        self.last = (case, job) if self.process else None

    def find_process(self) -> Process:
        """Return the group's process, ready for a case; the spare one, or a new one, if it has ended.

        Raises:
            FailedError: the process cannot start.
        """
        if self.process:
            with suppress(FailedError):
                self.process.wait_ready(self.deadline)
                return self.process
            self.end_process()
        self.process, self.spare = self.spare or Process(self.log, self.imports), None
        self.process.wait_ready(self.deadline)
        return self.process

    def ask(self, process: Process, case: Case, job: Job) -> Outcome:
        """Have a process run a case; return the outcome. Without an answer, the process has ended."""
        log_start, started = self.log.stat().st_size, time.monotonic()
        with self.log.open("a") as log:
            print(f"== {case.name}", file=log)
        seconds = min(case.limit, self.deadline - started)
        request = {"entry": case.entry, "job": job, "stacks_after": max(0.1, seconds - STACKS_SECONDS)}
        part = None

        def keep_part(value: dict[str, Any]) -> None:
            """Write the figures so far: the suite itself may be killed."""
            nonlocal part
            part = value
            self.records.add(case, job, {"status": "cut", "result": part, "reason": "the suite ended meanwhile"})

        try:
            outcome = process.worker.ask(seconds, request, keep_part)
            process.prepare()
        except FailedError as error:
            outcome = {"status": "failed", "result": part, "reason": str(error)}
            if isinstance(error, HungError):
                status, end = ("hung", "its limit of") if seconds == case.limit else ("cut", "the deadline, after")
                outcome |= {"status": status, "reason": f"it ran over {end} {seconds:.0f} s"}
            elif isinstance(error, EndedError):
                outcome |= {"status": "crashed", "reason": explain_crash(error.status, self.read_log(log_start))}
            if outcome["status"] == "failed":
                process.is_ready = False  # it ends now; whoever waits for it next sees how
            else:
                outcome["stderr"] = self.read_log(log_start)[-MOST_STDERR_LINES:]
                process.end()
                self.process = None
        return outcome | {"seconds": round(time.monotonic() - started, 1)}

    def read_log(self, start: int) -> list[str]:
        """Return the log's lines from a position on; paths begin at the checkout or at the package."""
        text = self.log.read_bytes()[start:].decode(errors="replace")
        lines = [line.rstrip() for line in text.splitlines() if line.strip()]
        return [INSTALLED.sub('"', line.replace(f"{CHECKOUT}/", "")) for line in lines]

    def keep(self, case: Case, job: Job, outcome: Outcome) -> None:
        """Write an outcome to disk, and a line about it to standard error."""
        outcome = {"result": None, "seconds": 0.0} | outcome
        self.records.add(case, job, outcome)
        print_progress(f"{case.name}: {outcome['status']}, {outcome['seconds']:.1f} s, {summarize_case(outcome)}")

    def end_process(self) -> None:
        """End the group's process. If it crashes after its last answer, write that to its last case's record."""
        if self.process:
            status, self.process = self.process.end(), None
            if status < 0 and self.last:
                case, job = self.last
                end = {"end": f"its process ended by {signal.Signals(-status).name}"}
                self.keep(case, job, self.records.results[case.name] | end)
        self.last = None


def explain_crash(status: int, lines: list[str]) -> str:
    """Return why a process ended without an answer: the signal, and the place from its stacks."""
    name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    fatal = next((i for i, line in enumerate(lines) if line.startswith("Fatal Python error")), None)
    # The stacks of the other threads come before that of the one that crashed.
    crashed = next((i for i, line in enumerate(lines) if line.startswith("Current thread")), fatal)
    place = lines[-1] if fatal is None else next((line for line in lines[crashed:] if line.startswith("  File ")), "")
    return f"{name}; {place.strip()}" if lines[1:] else f"{name}; nothing on standard error"
