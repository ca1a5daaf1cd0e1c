"""Which device to run on: an NVIDIA GPU that is there is used or complained about, never silently passed over."""

import ctypes
import importlib
import os
from pathlib import Path

import torch

from loaders.batch import World
from prep.dataset import InputError

DRIVER = Path("/proc/driver/nvidia")


def join_environment(device: str) -> World:
    """This process's place in the world, as torchrun's environment variables tell it; a world of one without them.

    Raises:
        InputError: as `resolve_device`.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    return World(
        rank=int(os.environ.get("RANK", "0")),
        size=int(os.environ.get("WORLD_SIZE", "1")),
        local_rank=local_rank,
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        device=resolve_device(device, local_rank),
    )


def resolve_device(wanted: str, local_rank: int = 0) -> torch.device:
    """The device for `wanted`: auto (a GPU where there is one, else the CPU), cpu or cuda.

    Raises:
        InputError: a GPU is there, or was asked for, and torch or DALI cannot use it.
    """
    if wanted not in ("auto", "cpu", "cuda"):
        raise InputError(f"there is no device {wanted}: choose auto, cpu or cuda")
    if wanted == "cpu" or (wanted == "auto" and not has_nvidia_gpu()):
        return torch.device("cpu")
    if not has_nvidia_gpu():
        raise InputError("device cuda was asked for and this machine shows no NVIDIA GPU: choose --device cpu")
    if fault := _fault(local_rank):
        raise InputError(f"{fault} ({_versions()}): update the driver or install matching wheels, or give --device cpu")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def has_nvidia_gpu() -> bool:
    """Whether the kernel shows an NVIDIA GPU that CUDA_VISIBLE_DEVICES does not hide, whatever torch thinks of it."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        return False
    return any((DRIVER / "gpus").glob("*")) or any(Path("/dev").glob("nvidia[0-9]*"))


def _fault(local_rank: int) -> str | None:
    if not torch.cuda.is_available():
        return "an NVIDIA GPU is here but torch cannot use it"
    if local_rank >= torch.cuda.device_count():
        return f"process {local_rank} has no GPU of its own, there are {torch.cuda.device_count()}"
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
