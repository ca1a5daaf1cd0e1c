"""NVIDIA's library NVML, by ctypes: find the GPU of a CUDA device, and its PCI address.

NVML numbers GPUs in another way than CUDA, so a GPU is found by its UUID.
"""

import ctypes
from typing import Any, NamedTuple

import torch

LIBRARY = "libnvidia-ml.so.1"
PCI_INFO_BYTES, BUS_ID_AT, BUS_ID_BYTES = 68, 36, 32  # of nvmlPciInfo_t


class Gpu(NamedTuple):
    """A GPU in NVML: the library and its handle."""

    nvml: Any
    handle: ctypes.c_void_p


def open_gpu(device: torch.device) -> Gpu | None:
    """Return the GPU of a CUDA device; None for another device, or if NVML does not know it."""
    if device.type != "cuda":
        return None
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    try:
        return find_gpu(ctypes.CDLL(LIBRARY), f"GPU-{uuid}")
    except OSError:
        return None


def find_gpu(nvml: Any, uuid: str) -> Gpu | None:
    """Return the GPU with a UUID; None if there is none."""
    handle = ctypes.c_void_p()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle)):
        return None
    return Gpu(nvml, handle)


def read_address(gpu: Gpu) -> str | None:
    """Return the GPU's PCI address as the kernel writes it, such as 0000:17:00.0; None if it is not known."""
    info = ctypes.create_string_buffer(PCI_INFO_BYTES)
    if gpu.nvml.nvmlDeviceGetPciInfo_v3(gpu.handle, info):
        return None
    # NVML's address has eight digits before the first colon, the kernel's four.
    address = info.raw[BUS_ID_AT : BUS_ID_AT + BUS_ID_BYTES].split(b"\0")[0].decode().lower()
    domain, _, rest = address.partition(":")
    return f"{int(domain, 16):04x}:{rest}" if rest else None
