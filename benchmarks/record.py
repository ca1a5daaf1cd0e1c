"""What every benchmark's record says beside its figures: how to read them, and how to take them again."""

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

from loaders import World
from train.checkpoint import describe_commit, describe_versions

IMAGENET_SOURCE = "imagenet-1k"


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


def describe_gpu(world: World) -> str | None:
    """The GPU's name, if there is one in use."""
    return torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else None


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
