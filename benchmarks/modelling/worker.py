"""`python -m modelling.worker JOB`: measure the cases that come on standard input, one line of JSON each.

It answers each case with a line of JSON. The command (`modelling/runner.py`) kills this process if a case takes too
long, and starts a new one if it died. The first line has the device in use and the origin of the record.
"""

import ctypes
import importlib
import json
import os
import signal
import sys
import time
from importlib.util import find_spec
from types import ModuleType
from typing import Any, TextIO

import torch
from answer import take_stdout
from modelling.cases import DONE, FAILED, WRONG, Case, Outcome
from record import describe_origin

from loaders import World
from loaders.world import has_nvidia_gpu
from prep.errors import InputError
from train.compile import SpeedConfig, set_precision

PR_SET_PDEATHSIG = 1
SCRIPT = "benchmarks/gpu_model.py"
LONGEST_REASON = 300


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends for any reason (only on Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent ended before the call
            sys.exit(1)


def find_device(wanted: str) -> torch.device:
    """Return the device; DALI does not have to support it.

    Raises:
        InputError: a GPU was asked for or is present, but torch cannot use it.
    """
    if wanted == "cpu" or (wanted == "auto" and not has_nvidia_gpu()):
        return torch.device("cpu")
    if torch.cuda.is_available():
        torch.cuda.set_device(0)
        return torch.device("cuda", 0)
    if not has_nvidia_gpu():
        raise InputError("--device cuda needs an NVIDIA GPU and this machine shows none: choose --device cpu")
    raise InputError(
        f"an NVIDIA GPU is here but torch {torch.__version__}, built for CUDA {torch.version.cuda}, cannot use it: "
        "update the driver or install a matching torch, or choose --device cpu"
    )


def describe_start(job: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the first answer: the device, and the origin of the record."""
    sys.argv[1:] = job["arguments"]  # the user's arguments: describe_origin writes them as the record's command
    versions = {"python": sys.version.split()[0], "cuda": torch.version.cuda, "triton": find_triton()}
    if device.type == "cuda":
        versions["cudnn"] = str(torch.backends.cudnn.version())
    known = {name: version for name, version in versions.items() if version}
    return {"device": device.type, "origin": describe_origin(SCRIPT, World(device=device), **known)}


def find_triton() -> str | None:
    """Return Triton's version, None if it is not installed."""
    if find_spec("triton") is None:
        return None
    import triton  # noqa: PLC0415

    return triton.__version__


def measure_outcome(measure: ModuleType, case: Case, job: dict[str, Any], device: torch.device) -> Outcome:
    """Return the outcome of a case, also if it raises an error.

    `is_broken` in the outcome means that this process can no longer use the device, as after an illegal memory access.
    """
    try:
        result = measure.measure_case(case, measure.Timing(job["seconds"], job["repetitions"]), device)
        return {"status": DONE, "result": result, "reason": None}
    except measure.WrongError as error:
        return {"status": WRONG, "result": error.result, "reason": str(error)}
    except Exception as error:  # any error: the other cases continue
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_REASON]

    # Find out whether the device still works.
    outcome: Outcome = {"status": FAILED, "result": None, "reason": reason}
    try:
        if device.type == "cuda":
            torch.cuda.synchronize()
    except RuntimeError:
        outcome["is_broken"] = True
    return outcome


def serve(job: dict[str, Any], channel: TextIO) -> None:
    """Answer requests until standard input ends or the device is broken."""

    def send(content: dict[str, Any]) -> None:
        print(json.dumps(content), file=channel, flush=True)

    # Import everything, then tell the device and the origin.
    try:
        device = find_device(job["device"])
        if device.type == "cpu":
            os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported, which timm does
        measure = importlib.import_module("modelling.measure")
        set_precision(SpeedConfig())
        send(describe_start(job, device))
    except InputError as error:
        send({"error": str(error)})
        return

    # Measure one case per line.
    for line in sys.stdin:
        started = time.perf_counter()
        outcome = measure_outcome(measure, Case(**json.loads(line)), job, device)
        send(outcome | {"seconds": round(time.perf_counter() - started, 2)})
        if outcome.get("is_broken"):
            return


if __name__ == "__main__":
    die_with(json.loads(sys.argv[1])["parent"])
    serve(json.loads(sys.argv[1]), take_stdout())
