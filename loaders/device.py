"""Which device to run on: an NVIDIA GPU that is there is used or complained about, never silently passed over."""

import ctypes
import importlib
import os
from dataclasses import replace
from pathlib import Path

import torch

from loaders.batch import World
from loaders.ranks import PlaceError, find_world
from prep.errors import InputError

DRIVER = Path("/proc/driver/nvidia")


def join_environment(device: str | torch.device, rank: int | None = None, size: int | None = None) -> World:
    """Return this process's place in the world, and its device.

    Args:
        device: as for `resolve_device`.
        rank, size: of this process, among how many; by default `find_world` works them out.

    Raises:
        InputError: as `find_world` and `resolve_device`.
    """
    world = find_world(rank, size)
    return replace(world, device=resolve_device(device, world.local_rank))


def resolve_device(wanted: str | torch.device, local_rank: int = 0) -> torch.device:
    """Return the device for `wanted`: auto (a GPU where there is one, else the CPU), cpu, cuda or cuda:N.

    cuda and auto mean the GPU whose number is `local_rank`.

    Raises:
        InputError: a GPU is there, or was asked for, and torch or DALI cannot use it.
    """
    kind, number = _parse_device(wanted)
    if kind == "cpu" or (kind == "auto" and not has_nvidia_gpu()):
        return torch.device("cpu")
    if not has_nvidia_gpu():
        raise InputError(f"device {wanted} was asked for and this machine shows no NVIDIA GPU: choose --device cpu")
    if fault := _fault():
        raise InputError(f"{fault} ({_versions()}): update the driver or install matching wheels, or give --device cpu")
    num_gpus = torch.cuda.device_count()
    if number is not None and number >= num_gpus:
        raise PlaceError(f"there is no device {wanted}: there are {num_gpus} GPUs, numbered from 0")
    if number is None and local_rank >= num_gpus:
        raise PlaceError(
            f"process {local_rank} of this machine has no GPU of its own, there are {num_gpus}: start fewer processes, "
            "or correct LOCAL_RANK, or pass device='cuda:N' to `build`"
        )
    number = local_rank if number is None else number
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def _parse_device(wanted: str | torch.device) -> tuple[str, int | None]:
    """Return auto, cpu or cuda, and the number of the GPU if it is given."""
    if wanted == "auto":
        return "auto", None
    try:
        device = torch.device(wanted)
    except (RuntimeError, TypeError):
        device = None
    if device is None or isinstance(wanted, int) or device.type not in ("cpu", "cuda"):
        raise InputError(f"there is no device {wanted}: choose auto, cpu, cuda or cuda:N")
    return device.type, device.index


def has_nvidia_gpu() -> bool:
    """Whether the kernel shows an NVIDIA GPU that CUDA_VISIBLE_DEVICES does not hide, whatever torch thinks of it."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        return False
    return any((DRIVER / "gpus").glob("*")) or any(Path("/dev").glob("nvidia[0-9]*"))


def _fault() -> str | None:
    if not torch.cuda.is_available():
        return "an NVIDIA GPU is here but torch cannot use it"
    driver, dali = _driver_cuda(), _dali_cuda()
    if driver and dali and driver[0] < dali[0]:
        return "an NVIDIA GPU is here but its driver is too old for DALI"
    return None


def _versions() -> str:
    driver = DRIVER / "version"
    name = driver.read_text().splitlines()[0] if driver.exists() else "driver unknown"
    return f"{name}, which offers CUDA {_dotted(_driver_cuda())}; torch is for CUDA {torch.version.cuda}, " + (
        f"DALI for CUDA {_dotted(_dali_cuda())}"
    )


def _driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA that the driver supports (cuDriverGetVersion: 1000 major + 10 minor)."""
    try:
        version = ctypes.c_int()
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return None
    return version.value // 1000, version.value % 1000 // 10


def _dali_cuda() -> tuple[int, int] | None:
    """The CUDA that DALI was built for; `__cuda_version__` is its digits without dots, '12.9.86' -> 12986."""
    try:
        digits = str(importlib.import_module("nvidia.dali").__cuda_version__)
    except ModuleNotFoundError:
        return None
    return int(digits[:2]), int(digits[2])


def _dotted(version: tuple[int, int] | None) -> str:
    return "unknown" if version is None else f"{version[0]}.{version[1]}"
