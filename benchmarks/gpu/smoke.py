"""First checks on a machine: its versions, DALI's import, eight decoded images, the number of JPEG engines."""

import importlib
import importlib.util
import os
import platform
import re
import stat
import sys
from contextlib import closing
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from gpu.cases import Figures, Job
from gpu.pixels import open_loader

from loaders import World
from prep.errors import InputError
from train.dist import join_world

LOG_LEVEL = "DALI_NVIMGCODEC_LOG_LEVEL"  # 3: the decoders log what hardware they find
ENGINES = re.compile(r"num_hw_engines=(\d+)")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
RELEVANT = re.compile(r"HW |engine|warn|error|fail", re.IGNORECASE)
EXTENSION = "backend_impl.cpython-*.so"  # DALI's compiled module, one file for each Python
MOST_LOG_LINES = 12
GIB = 1 << 30
STDERR = Path("/proc/self/fd/2")  # can be read even if it is a deleted file


def describe_machine(job: Job) -> Figures:
    """Yield the number of cores, versions, and what torch reports about the GPU."""
    facts: dict[str, Any] = {
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    with join_world(job["device"]) as world:
        if world.device.type == "cuda":
            properties = torch.cuda.get_device_properties(world.device)
            facts |= {
                "gpu": properties.name,
                "compute_capability": f"{properties.major}.{properties.minor}",
                "memory_gib": properties.total_memory / GIB,
                "free_gib": free_gib(world.device),
                "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
            }
    yield facts


def find_dali(job: Job) -> Figures:
    """Yield DALI's version and the version of CUDA that it was built for."""
    dali = import_dali()
    yield {"dali": dali.__version__, "cuda": dali.__cuda_version__}


def import_dali() -> Any:
    """Import and return DALI; raise InputError with the reason if it cannot be imported."""
    try:
        importlib.import_module("nvidia.dali.fn")
        return importlib.import_module("nvidia.dali")
    except (ImportError, OSError) as error:  # OSError: a shared library that it needs is missing or damaged
        raise InputError(explain_import(error)) from error


def explain_import(error: Exception) -> str:
    """Return why DALI cannot be imported, in one line."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(path) / "dali" for path in (spec.submodule_search_locations or [] if spec else [])]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        return "DALI is not installed: install nvidia-dali-cuda130, or unpack it and put its folder on PYTHONPATH"
    tags = {path.name.split("-")[1] for path in folder.glob(EXTENSION)}  # as 312, 314t
    if sys.implementation.cache_tag.removeprefix("cpython-") not in tags:
        built = ", ".join(sorted(f"{tag[0]}.{tag[1:]}" for tag in tags)) or "no Python"
        return (
            f"DALI in {folder} is built for Python {built}, this is {sys.version_info.major}.{sys.version_info.minor}: "
            "start the suite with that Python, or unpack DALI for this one"
        )
    return f"DALI in {folder} cannot be imported: {' '.join(str(error).split())[:300]}"


def decode_eight(job: Job) -> Figures:
    """Yield the first batch's mean difference from the reference, the seconds that it took, and free GPU memory."""
    reference = next(iter(open_loader(job, {"backend": "reference"}, World())))
    with join_world(job["device"]) as world:
        before = free_gib(world.device)
        loader = open_loader(job, job["loader"], world)
        started = perf_counter()
        with closing(iter(loader)) as batches:  # pyright: ignore[reportArgumentType]  (a generator)
            images_BCHW = next(batches).images_BCHW.cpu()
            seconds, after = perf_counter() - started, free_gib(world.device)
    yield {
        "mean_difference": (images_BCHW.int() - reference.images_BCHW.int()).abs().float().mean().item(),
        "first_batch_seconds": seconds,
        "free_gib_before": before,
        "free_gib_after": after,
        **loader.placement.to_dict(),
    }


def free_gib(device: torch.device) -> float | None:
    """Return the GPU's free memory, None on the CPU."""
    return torch.cuda.mem_get_info(device)[0] / GIB if device.type == "cuda" else None


def count_engines(job: Job) -> Figures:
    """Yield the number of hardware JPEG engines in the decoder's log, None if it names none; and the log's lines."""
    os.environ[LOG_LEVEL] = "3"
    start = stderr_size()
    list(decode_eight(job))
    text = read_stderr(start)
    yield {"num_engines": parse_engines(text), "log": pick_lines(text)}


def pick_lines(log: str) -> list[str]:
    """Return the lines of a decoder's log about hardware and errors; its last lines if there are none."""
    lines = [COLOURS.sub("", line).strip() for line in log.strip().splitlines()]
    return ([line for line in lines if RELEVANT.search(line)] or lines)[-MOST_LOG_LINES:]


def parse_engines(log: str) -> int | None:
    """Return the last number of engines in a decoder's log, None if there is none."""
    found = ENGINES.findall(log)
    return int(found[-1]) if found else None


def stderr_size() -> int:
    """Return the size of the file that is this process's standard error: a position for `read_stderr`."""
    return os.fstat(2).st_size


def read_stderr(start: int) -> str:
    """Return what this process and its children have written to standard error; "" if that is not a file."""
    if not stat.S_ISREG(os.fstat(2).st_mode):
        return ""
    return STDERR.read_bytes()[start:].decode(errors="replace")
