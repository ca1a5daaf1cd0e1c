"""Memory of the GPU: the peak of torch's allocator, and the free memory; only the latter includes DALI's pools."""

from typing import Any

import torch

GIB = 1 << 30


def free_gib(device: torch.device) -> float | None:
    """Return the GPU's free memory in GiB; None on the CPU."""
    return torch.cuda.mem_get_info(device)[0] / GIB if device.type == "cuda" else None


def describe_memory(device: torch.device) -> dict[str, Any]:
    """Return torch's peak since its last reset, and the memory that all processes use now, in GiB; None on the CPU."""
    if device.type != "cuda":
        return {"gpu_memory_gib": None, "gpu_used_gib": None}
    free, total = torch.cuda.mem_get_info(device)
    return {"gpu_memory_gib": torch.cuda.max_memory_allocated(device) / GIB, "gpu_used_gib": (total - free) / GIB}
