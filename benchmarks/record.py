"""Describe the origin of a record: what is needed to read its figures, and to repeat them."""

import ctypes
import datetime
import importlib
import json
import os
import platform
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prep.files import write_whole

if TYPE_CHECKING:
    from loaders import Split, World
    from loaders.placement import Choice

IMAGENET_SOURCE = "imagenet-1k"
GIB = 1 << 30


def summarize(values: list[float]) -> dict[str, Any]:
    """Return the median, the smallest and the largest value, and every repetition."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "repetitions": values}


def describe_command(script: str, start: tuple[str, ...] = ("python",)) -> str:
    """Return the command line of this process, with paths relative to the current folder."""
    words = [os.path.relpath(word) if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return shlex.join([*start, script, *words])


def describe_hardware(gpu: str | None = None) -> dict[str, Any]:
    """Return the machine's CPU model, number of usable cores and GPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {"cpu": cpu or platform.processor() or "unknown", "cores": len(os.sched_getaffinity(0)), "gpu": gpu}


def label_source(name: str) -> str:
    """Return the label of a data set's source: "ImageNet" or "not ImageNet"."""
    return "ImageNet" if name.rstrip("/").endswith(IMAGENET_SOURCE) else "not ImageNet"


def describe_dataset(split: "Split", name: str | None = None) -> dict[str, Any]:
    """Return a split's description for a record, with `name` instead of the source's name if it is given."""
    source = split.manifest.source.name
    return {
        "name": name or source,
        "label": label_source(source),
        "num_images": len(split),
        "mean_bytes": round(float(split.column("size").mean())),
    }


def describe_date() -> str:
    """Return the current time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def describe_origin(script: str, world: "World | None" = None, **versions: str) -> dict[str, Any]:
    """Return the origin of a record: command, commit, versions, hardware and date.

    Args:
        world: the processes that measured; None: this process alone, on the CPU.
        versions: versions of further packages.
    """
    from loaders import World  # noqa: PLC0415
    from train.versions import describe_commit, describe_versions  # noqa: PLC0415

    world = world or World()
    return {
        "command": describe_command(script, describe_start(world)),
        "commit": describe_commit(),
        "versions": describe_versions() | versions,
        "hardware": describe_hardware(describe_gpu(world)),
        "date": describe_date(),
    }


def describe_start(world: "World") -> tuple[str, ...]:
    """Return the first words of the command that starts a world's processes: python or torchrun."""
    return ("python",) if world.size == 1 else ("torchrun", "--nproc-per-node", str(world.local_size))


def describe_placement(choice: "Choice") -> dict[str, Any]:
    """Return where and how a loader decodes and the reason; on a GPU also its hardware decoder's share."""
    load = {"hw_decoder_load": choice.config.hw_decoder_load} if choice.side == "gpu" else {}
    return choice.to_dict() | load


def describe_default_placement() -> dict[str, Any]:
    """Return where and how a loader with default settings decodes without a GPU, and the reason."""
    from loaders import LoaderConfig, World  # noqa: PLC0415
    from loaders.placement import choose_placement  # noqa: PLC0415

    return describe_placement(choose_placement(LoaderConfig(), World()))


def describe_gpu(world: "World") -> str | None:
    """Return the name, driver and memory of the GPU in use, None on a CPU."""
    if world.device.type != "cuda":
        return None

    import torch  # noqa: PLC0415

    gpu, driver = torch.cuda.get_device_properties(world.device), find_driver()
    return ", ".join([gpu.name, *([f"driver {driver}"] * bool(driver)), f"{gpu.total_memory / GIB:.0f} GiB"])


def find_driver() -> str:
    """Return the version of NVIDIA's driver as reported by its library NVML; "" without that library."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return ""
    version = ctypes.create_string_buffer(80)  # NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE
    is_found = nvml.nvmlInit_v2() == 0 and nvml.nvmlSystemGetDriverVersion(version, len(version)) == 0
    return version.value.decode() if is_found else ""


def describe_dali(backend: str) -> dict[str, str]:
    """Return DALI's version if the backend uses it."""
    return {"dali": importlib.import_module("nvidia.dali").__version__} if backend == "dali" else {}


def write_json(out: Path, record: dict[str, Any]) -> None:
    """Write a record, or a part of one, as a file that is complete at any moment."""
    write_whole(out, (json.dumps(record, indent=1) + "\n").encode())


def print_progress(line: str) -> None:
    """Print a line for people on standard error."""
    print(line, file=sys.stderr, flush=True)


def describe_left(started: float, done: int, total: int) -> str:
    """Return how much is done, and the time left at the same rate; `started` is a time of time.monotonic."""
    left = datetime.timedelta(seconds=round((time.monotonic() - started) / done * max(0, total - done)))
    return f"{done:,} of {total:,} done, {left} left"
