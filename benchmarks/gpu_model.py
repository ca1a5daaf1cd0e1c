"""`python benchmarks/gpu_model.py`: measure a ResNet-50's training step on this GPU, in one minute, without data.

Cases: memory bandwidth and matmul; the eager step in bf16 and fp16; the step of train/step.py, plain, with fused
BatchNorm (the kernels are checked first) and as CUDA graphs; 160 and 88 pixels; torch.compile if --minutes allow
it. No case runs past the deadline, and earlier results are kept. On a CPU it is a rehearsal: small
networks, 2 images of 32 pixels, the kernels in Triton's interpreter. It needs torch, timm and numpy, the packages that
Penstock imports (pyarrow, scipy, safetensors), and Triton on a GPU; neither DALI nor a dataset.
"""

import argparse
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from modelling.cases import CRASHED, CUT, DONE, HUNG, SKIPPED, Case, Outcome, choose_cases
from record import print_progress, write_json
from reports.gpu_runs import describe_outcome
from worker import EndedError, FailedError, HungError, Worker, start_worker

from loaders.world import has_nvidia_gpu
from prep.errors import InputError, run

ENTRY = "modelling.measure:answer_cases"
LEAST_REPETITIONS = 3
LEAST_SIZE = 32  # pixels: a ResNet halves them five times
SHARE_TO_END = 0.03  # share of --minutes that is reserved for ending the worker, writing and printing


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments, checked. It is parsed by argparse, because a bare GPU machine lacks tyro.

    Raises:
        InputError: one has a value that cannot be used.
    """
    parser = argparse.ArgumentParser(
        prog="benchmarks/gpu_model.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--seconds", type=float, default=0.5, metavar="S", help="approximate length of a repetition (default: 0.5)")
    add("--repetitions", type=int, default=LEAST_REPETITIONS, help="per case, at least 3 (default: 3)")
    add("--minutes", type=float, default=1.0, help="deadline, counted from the start (default: 1; all cases: 8)")
    add("--only", nargs="+", default=[], metavar="PATTERN", help="run these cases (with wildcards) and those they need")
    add("--list", action="store_true", help="print the names of the cases in order, and exit")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    add("--batch-size", type=int, metavar="N", help="for all cases (default: each case's own; 2 on a CPU)")
    add("--size", type=int, metavar="PX", help="pixels for all cases (default: each case's own; 32 on a CPU)")
    add("--out", type=Path, metavar="FILE", help="file for the record, rewritten after each case")
    arguments = parser.parse_args()

    for name in ("minutes", "seconds"):
        if not 0 < getattr(arguments, name) < float("inf"):
            raise InputError(f"--{name} must be more than 0, got {getattr(arguments, name)}")
    if arguments.repetitions < LEAST_REPETITIONS:
        raise InputError(f"--repetitions must be at least {LEAST_REPETITIONS}, got {arguments.repetitions}")
    if arguments.batch_size is not None and arguments.batch_size < 2:
        raise InputError(f"--batch-size must be at least 2, got {arguments.batch_size}: BatchNorm needs a variance")
    if arguments.size is not None and arguments.size < LEAST_SIZE:
        raise InputError(f"--size must be at least {LEAST_SIZE} pixels, got {arguments.size}")
    if arguments.out and (arguments.out.is_dir() or not arguments.out.parent.is_dir()):
        raise InputError(f"--out must be a file in an existing folder, got {arguments.out}")
    if arguments.device == "cuda" and not has_nvidia_gpu():
        raise InputError("--device cuda needs an NVIDIA GPU and this machine shows none: choose --device cpu")
    return arguments


@dataclass
class Runner:
    """Measures cases in a worker until the deadline, and keeps the record.

    A worker, because a compilation that hangs or a kernel that never ends cannot be stopped from inside. One for all
    cases, because its start takes seconds: another one is started only after a case that broke it.
    """

    arguments: argparse.Namespace
    started: float  # the command's start, a time of time.monotonic()
    results: dict[str, Outcome] = field(default_factory=dict)  # by the case's name
    origin: dict[str, Any] = field(default_factory=dict)
    start_seconds: float = 0.0  # from the command's start to the first worker's first answer

    @property
    def device(self) -> str:
        """The device that is measured: a GPU if there is one and --device does not exclude it."""
        return "cuda" if self.arguments.device != "cpu" and has_nvidia_gpu() else "cpu"

    @property
    def on_gpu(self) -> bool:
        """Whether the figures are valid, or those of a rehearsal."""
        return self.device == "cuda"

    @property
    def seconds_left(self) -> float:
        """Seconds until the deadline for measuring; after it there is time to end everything."""
        return self.started + 60 * self.arguments.minutes * (1 - SHARE_TO_END) - time.monotonic()

    @property
    def content(self) -> dict[str, Any]:
        """The record, in its present state."""
        given = {name: getattr(self.arguments, name) for name in ("minutes", "seconds", "repetitions")}
        about = {"device": self.device, "is_rehearsal": not self.on_gpu, "seconds_to_start": self.start_seconds}
        about["kernels"] = "the kernels of train/fused.py"
        return {"what": "gpu model", **self.origin, **about, **given, "cases": self.results}

    def run_cases(self, cases: list[Case]) -> None:
        """Measure the cases until the deadline; the others are skipped.

        Raises:
            InputError: not even the first worker starts.
        """
        job = {name: getattr(self.arguments, name) for name in ("seconds", "repetitions")}
        job |= {"device": self.device, "arguments": sys.argv[1:]}
        # Triton reads the variable when it is imported, which timm does.
        environment = {} if self.on_gpu else {"TRITON_INTERPRET": "1"}
        batch_size, size = self.arguments.batch_size, self.arguments.size
        waiting, reason = [case.resized(batch_size, size, self.on_gpu) for case in cases], ""
        while waiting and not reason:
            if self.seconds_left < self.start_seconds:
                reason = "no time was left to start the measuring process again"
                break
            with start_worker(ENTRY, job, environment=environment) as worker:
                reason = self.await_start(worker)
                if not reason:
                    waiting = self.measure_cases(worker, waiting)
                worker.kill()  # at once: it has nothing to finish
        for case in waiting:
            self.add_outcome(case, {"status": SKIPPED, "result": None, "reason": reason, "seconds": 0.0})

    def await_start(self, worker: Worker) -> str:
        """Wait until a worker is ready; return why it cannot be used, "" if it can.

        Raises:
            InputError: it is the first worker, and without it nothing can be recorded.
        """
        limit = self.seconds_left
        try:
            origin, reason = worker.ask(limit), ""
        except HungError:
            origin, reason = {}, f"the measuring process was not ready after {limit:.1f} s: give more --minutes"
        except EndedError as error:
            origin, reason = {}, f"the measuring process ended at its start ({error})"
        except FailedError as error:
            origin, reason = {}, str(error)
        if not self.origin:
            if reason:
                raise InputError(reason)
            self.origin, self.start_seconds = origin, round(time.monotonic() - self.started, 2)
        return reason

    def measure_cases(self, worker: Worker, cases: list[Case]) -> list[Case]:
        """Measure cases until one breaks the worker; return the cases after that one."""
        for number, case in enumerate(cases, 1):
            if reason := self.find_obstacle(case):
                self.add_outcome(case, {"status": SKIPPED, "result": None, "reason": reason, "seconds": 0.0})
                continue
            outcome, is_alive = self.measure_case(worker, case)
            self.add_outcome(case, outcome)
            if not is_alive:
                return cases[number:]
        return []

    def find_obstacle(self, case: Case) -> str:
        """Return why a case cannot be started, "" if it can."""
        if case.graph and not self.on_gpu:
            return "a CUDA graph needs a GPU"
        if case.needs and self.results[case.needs]["status"] != DONE:
            return f"{case.needs} is {self.results[case.needs]['status']}: {self.results[case.needs]['reason']}"
        if self.seconds_left < case.expected_seconds:
            return f"it takes about {case.expected_seconds:.0f} s, {max(0.0, self.seconds_left):.0f} s were left"
        return ""

    def measure_case(self, worker: Worker, case: Case) -> tuple[Outcome, bool]:
        """Return a case's outcome, and whether the worker can measure more cases."""
        began, left = time.monotonic(), self.seconds_left
        limit = min(case.limit_seconds(self.on_gpu), left)
        try:
            outcome = worker.ask(limit, asdict(case))
            return outcome, not outcome.pop("is_broken", False)
        except HungError:
            status, what = (CUT, "the deadline came") if limit == left else (HUNG, "its limit")
            reason = f"{what} after {limit:.1f} s"
        except FailedError as error:
            status, reason = CRASHED, str(error)
        seconds = round(time.monotonic() - began, 2)
        return {"status": status, "result": None, "reason": reason, "seconds": seconds}, False

    def add_outcome(self, case: Case, outcome: Outcome) -> None:
        """Keep an outcome: in the record, on standard error, and in the file --out."""
        self.results[case.name] = outcome | {"settings": case.settings}
        print_progress(f"{case.name}: {describe_outcome(outcome)}")
        if self.arguments.out:
            write_json(self.arguments.out, self.content)


def main() -> None:
    """Measure until the deadline, then print the tables of all results."""
    started = time.monotonic()
    arguments = parse_arguments()
    cases = choose_cases(arguments.only)
    if arguments.list:
        print("\n".join(case.name for case in cases))
        return
    runner = Runner(arguments, started)
    runner.run_cases(cases)

    from reports.kinds import publish  # noqa: PLC0415  (imports the reports of all commands)

    publish(runner.content, arguments.out)


if __name__ == "__main__":
    run(main, "--out has the cases that were measured")
