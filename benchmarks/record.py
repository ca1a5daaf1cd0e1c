"""What every benchmark's record says beside its figures: how to read them, and how to take them again."""

import ctypes
import datetime
import importlib
import json
import os
import platform
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from loaders import LoaderConfig, World
from loaders.placement import Choice, choose_placement
from train.checkpoint import describe_commit, describe_versions

IMAGENET_SOURCE = "imagenet-1k"
GIB = 1 << 30


def summarize(values: list[float]) -> dict[str, Any]:
    """Median and spread, with every repetition."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "repetitions": values}


def describe_command(script: str, start: tuple[str, ...] = ("python",)) -> str:
    """The command again, paths relative to where it ran."""
    words = [os.path.relpath(word) if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return shlex.join([*start, script, *words])


def describe_hardware(gpu: str | None = None) -> dict[str, Any]:
    """The machine: figures hold for no other."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {"cpu": cpu or platform.processor() or "unknown", "cores": len(os.sched_getaffinity(0)), "gpu": gpu}


def label_source(name: str) -> str:
    """Figures on other images than ImageNet's say so."""
    return "ImageNet" if name.rstrip("/").endswith(IMAGENET_SOURCE) else "not ImageNet"


def describe_date() -> str:
    """Now, to the second, in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def describe_origin(script: str, world: World | None = None, **versions: str) -> dict[str, Any]:
    """Where a record comes from: command, commit, versions (and those of more packages), hardware, date.

    Args:
        world: whose processes have measured; None: this one, on the CPU.
    """
    world = world or World()
    return {
        "command": describe_command(script, describe_start(world)),
        "commit": describe_commit(),
        "versions": describe_versions() | versions,
        "hardware": describe_hardware(describe_gpu(world)),
        "date": describe_date(),
    }


def describe_start(world: World) -> tuple[str, ...]:
    """What the command of a world's processes begins with."""
    return ("python",) if world.size == 1 else ("torchrun", "--nproc-per-node", str(world.local_size))


def describe_placement(choice: Choice) -> dict[str, Any]:
    """Return where and how a loader decodes, and why there; on a GPU also its hardware decoder's share."""
    load = {"hw_decoder_load": choice.config.hw_decoder_load} if choice.side == "gpu" else {}
    return choice.to_dict() | load


def describe_default_placement() -> dict[str, Any]:
    """Return where and how a loader with its defaults decodes in a process without a GPU, and why there."""
    return describe_placement(choose_placement(LoaderConfig(), World()))


def describe_gpu(world: World) -> str | None:
    """Return the name, driver and memory of the GPU in use, None on a CPU."""
    if world.device.type != "cuda":
        return None
    gpu, driver = torch.cuda.get_device_properties(world.device), find_driver()
    return ", ".join([gpu.name, *([f"driver {driver}"] * bool(driver)), f"{gpu.total_memory / GIB:.0f} GiB"])


def find_driver() -> str:
    """Return the version of NVIDIA's driver as its library NVML has it, "" without that library."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return ""
    version = ctypes.create_string_buffer(80)  # NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE
    is_found = nvml.nvmlInit_v2() == 0 and nvml.nvmlSystemGetDriverVersion(version, len(version)) == 0
    return version.value.decode() if is_found else ""


def describe_dali(backend: str) -> dict[str, str]:
    """DALI's version where it took part."""
    return {"dali": importlib.import_module("nvidia.dali").__version__} if backend == "dali" else {}


def publish(record: dict[str, Any], out: Path | None) -> None:
    """The record on standard output, and in a file where one is wanted."""
    print(json.dumps(record), flush=True)
    if out:
        out.write_text(json.dumps(record, indent=1) + "\n")


def say(line: str) -> None:
    """Progress and figures, for people."""
    print(line, file=sys.stderr, flush=True)
