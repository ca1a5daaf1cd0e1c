"""What every benchmark's record says beside its figures: how to read them, and how to take them again."""

import datetime
import os
import platform
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

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
