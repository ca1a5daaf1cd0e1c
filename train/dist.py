"""The only file that speaks to torch.distributed: joins the processes that torchrun started, and adds up over them."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from loaders import World
from loaders.device import join_environment


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """This process's place among those that torchrun started; a world of one without torchrun.

    Args:
        device: auto, cpu or cuda. GPUs talk through NCCL, CPUs through gloo.
    """
    world = join_environment(device)
    if world.size == 1:
        yield world
        return
    on_gpu = world.device.type == "cuda"
    dist.init_process_group("nccl" if on_gpu else "gloo", device_id=world.device if on_gpu else None)
    try:
        yield world
    finally:
        dist.destroy_process_group()


def wrap(model: nn.Module, world: World) -> nn.Module:
    """The model with gradients averaged over the world; running statistics stay each rank's own (`share_buffers`)."""
    if world.size == 1:
        return model
    devices = [world.device] if world.device.type == "cuda" else None
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    no_sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # since torch 2.15
    options: dict[str, Any] = {no_sync: False, "gradient_as_bucket_view": True, "static_graph": True}
    return DistributedDataParallel(model, device_ids=devices, **options)


def share_buffers(module: nn.Module, world: World) -> None:
    """Give every rank rank 0's buffers (BatchNorm's running statistics): before evaluation, not at every step."""
    if world.size > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def add_up(values: torch.Tensor, world: World) -> torch.Tensor:
    """The sum over all ranks, in place."""
    if world.size > 1:
        dist.all_reduce(values)
    return values


def from_every_rank(values: list[Any], world: World) -> list[Any]:
    """The values of all ranks in one list, on every rank."""
    if world.size == 1:
        return values
    lists: list[Any] = [None] * world.size
    dist.all_gather_object(lists, values)
    return [value for each in lists for value in each]


def from_rank_0(value: Any, world: World) -> Any:
    """Rank 0's value on every rank."""
    if world.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=world.device)
    return box[0]
