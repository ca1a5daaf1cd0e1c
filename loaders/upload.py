"""The way from host memory to the model's device; without a GPU nothing is copied.

A copy is asynchronous only from pinned memory. torch's pinned allocator reuses a block after the copies queued on it
have run, so a host tensor may be dropped as soon as its upload is queued. Both functions must be called on the stream
that orders the batch, the loader's.
"""

from collections.abc import Sequence

import torch


def allocate_host(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return uninitialised host memory from which an upload to `device` is asynchronous."""
    return _allocate_pinned(shape, dtype) if device.type == "cuda" else torch.empty(tuple(shape), dtype=dtype)


def upload(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Queue a copy to `device` on the current stream; on the CPU return the tensor itself."""
    return _send(host, device) if device.type == "cuda" else host


# The two calls that need a GPU: tests without one replace them.


def _allocate_pinned(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)


def _send(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    return host.to(device, non_blocking=True)
