"""The only file that speaks to torch.distributed: joins the processes that torchrun started, and adds up over them."""

import inspect
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import _get_default_store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from loaders import InputError, World
from loaders.device import join_environment


class PeerLostError(InputError):
    """Another process ended in the middle of a run, and with it the connection to it."""


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """This process's place among those that torchrun started; a world of one without torchrun.

    Args:
        device: auto, cpu or cuda. GPUs talk through NCCL, CPUs through gloo.

    Raises:
        PeerLostError: another process ended meanwhile.
    """
    world = join_environment(device)
    if world.size == 1:
        yield world
        return
    on_gpu = world.device.type == "cuda"
    places = {"store": find_store(), "rank": world.rank, "world_size": world.size}
    dist.init_process_group("nccl" if on_gpu else "gloo", device_id=world.device if on_gpu else None, **places)
    try:
        yield world
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo/transport" in str(error):
            reason = str(error).splitlines()[0].partition(". ")[0]
            raise PeerLostError(f"another process ended, so this one cannot go on ({reason})") from error
        raise
    finally:
        dist.destroy_process_group()


def find_store() -> dist.Store:
    """Where the processes tell each other their addresses: apart from those of an earlier attempt of torchrun's.

    On one node its store outlives an attempt, and the next one would wait for processes that are gone. Several nodes
    count their attempts apart: for them TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 makes a store anew.
    """
    store, _, _ = next(rendezvous("env://"))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if os.environ.get("GROUP_WORLD_SIZE") == "1" else ""
    return dist.PrefixStore(f"attempt-{attempt}", store)


def wrap(model: nn.Module, world: World) -> nn.Module:
    """The model with gradients averaged over the world; running statistics stay each rank's own (`share_buffers`)."""
    if world.size == 1:
        return model
    devices = [world.device] if world.device.type == "cuda" else None
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    no_sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # since torch 2.15
    options: dict[str, Any] = {no_sync: False, "gradient_as_bucket_view": True}
    return DistributedDataParallel(model, device_ids=devices, **options)


def alone(model: nn.Module) -> AbstractContextManager[None]:
    """While it lasts gradients stay this process's own."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


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


def meet(world: World) -> None:
    """Wait until every rank has come so far."""
    if world.size > 1:
        dist.barrier()


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


def to_rank_0(values: torch.Tensor, world: World) -> torch.Tensor | None:
    """The values of all ranks, of one shape, after each other along their first dimension; None but on rank 0."""
    if world.size == 1:
        return values
    everyones = [torch.empty_like(values) for _ in range(world.size)] if world.rank == 0 else None
    dist.gather(values, everyones, dst=0)
    return torch.cat(everyones) if everyones else None


class Agreement:
    """The largest number that any rank gives, on every rank at the same call, and nobody waits for it.

    What is given at one call is answered at the next: by then it has long been compared, by the CPUs, beside the GPUs'
    own work. Every rank must call equally often.
    """

    def __init__(self, world: World) -> None:
        self.group: Any = dist.new_group(backend="gloo") if world.size > 1 else None
        self.asked, self.work = torch.tensor(0), None

    def __enter__(self) -> "Agreement":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if error is None:
            self._hear()

    def ask(self, number: int) -> int:
        """Give a number; the largest that was given at the call before this one (a world of one: at this one)."""
        if self.group is None:
            return number
        answer = self._hear()
        self.asked = torch.tensor(number)
        self.work = dist.all_reduce(self.asked, dist.ReduceOp.MAX, group=self.group, async_op=True)
        return answer

    def _hear(self) -> int:
        if self.work is not None:
            self.work.wait()
        return int(self.asked)


class Board:
    """Where each rank leaves a line for the others to read: beside all collectives, so that it works while those hang.

    The lines are kept by the store in which the processes met: torchrun's, or rank 0's.
    """

    def __init__(self, name: str, world: World) -> None:
        self.rank, self.size = world.rank, world.size
        self.store = dist.PrefixStore(name, _get_default_store().clone() if world.size > 1 else dist.HashStore())

    def write(self, line: str) -> None:
        """Leave a line in place of this rank's last one."""
        self.store.set(str(self.rank), line)

    def read(self) -> list[str]:
        """The line of each rank; waits for those that have not left one yet."""
        return [self.store.get(str(rank)).decode() for rank in range(self.size)]
