"""The processes of a run: join those that torchrun started, collectives over them, and watching for lost ones.

The only file of the trainer that uses torch.distributed. In order:

* joining: `join_world`, which torchrun's environment describes, and how a process ends when another one is lost
* DistributedDataParallel: `wrap_ddp`, `no_sync`, `broadcast_buffers`
* collectives: `barrier`, `all_reduce_sum`, `all_gather_objects`, `broadcast_from_rank0`, `broadcast_tensors`,
  `gather_to_rank0`, `resolve_on_rank0`, `resolve_on_every_node`, `AsyncMax`
* heartbeats, which need no collective: `Heartbeats`, `PeerWatch`
"""

import inspect
import itertools
import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import _get_default_store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from loaders import World
from loaders.quarantine import explain_shortage
from loaders.world import WorldError, join_environment
from prep.errors import InputError, RankError, describe_os_error

# A process of an NCCL world is lost if it has sent no heartbeat for LOST_SECONDS (`PeerWatch`), whatever the others
# are doing. It sends one every SIGN_SECONDS from a separate thread, also while it compiles or reads.
LOST_SECONDS = 60.0
SIGN_SECONDS = 5.0
# How long an NCCL collective may wait for the slowest process. This does not detect lost processes: processes that
# work correctly may be minutes apart, when one compiles and another finds its kernels in the cache, when rank 0 waits
# for a slow disk before it saves again, when storage stalls, or at the end of train/evaluate.py, where its
# first collective is. In training, the watchdog ends such a wait after `run.hang_minutes` (10) and names the process
# that the others wait for, while NCCL would end the process by SIGABRT and name a sequence number. So NCCL's limit
# comes last, at gloo's default.
NCCL_TIMEOUT = timedelta(minutes=30)
# Text in torch's NCCL errors: faults of this process, and signs that another process is lost.
OWN_NCCL_FAULTS = ("ncclUnhandledCudaError", "ncclInvalidArgument", "ncclInvalidUsage", "ncclInternalError")
NCCL_LOSSES = ("NCCL error", "NCCL communicator was aborted", "Watchdog caught collective operation timeout")

T = TypeVar("T")


class PeerLostError(RankError):
    """Another process ended during the run, so the connection to it is lost."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"another process ended, so this one cannot continue ({reason})")

    def describe(self, rank: int) -> str:
        """Return the line with which this process ends. It is not called an error: the error is the other process's."""
        return f"rank {rank}: {self}"


# Joining.


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """Join the processes that torchrun started; yield this process's place, in a world of one without torchrun.

    On GPUs, any error ends the process inside this context manager, with the line or the traceback that the command
    would print: see `end_process`.

    Args:
        device: auto, cpu or cuda. GPUs communicate through NCCL, CPUs through gloo.

    Raises:
        PeerLostError: another process ended in the meantime.
    """
    world = join_environment(device)

    # One process: no process group; only explain when memory runs out.
    if world.size == 1:
        try:
            yield world
        except (RuntimeError, MemoryError) as error:
            if shortage := explain_shortage(error):
                raise shortage from error
            raise
        return

    # Several processes: connect them.
    on_gpu = world.device.type == "cuda"
    places = {"store": find_store(), "rank": world.rank, "world_size": world.size}
    if on_gpu:
        dist.init_process_group("nccl", timeout=NCCL_TIMEOUT, device_id=world.device, **places)
    else:
        dist.init_process_group("gloo", **places)

    # Run the command. gloo reports a lost process by an error; under NCCL, `PeerWatch` finds it.
    with PeerWatch(Heartbeats("alive", world)) if on_gpu else nullcontext():
        try:
            yield world
        except (Exception, KeyboardInterrupt) as error:
            named = explain_shortage(error) or name_lost_peer(error)
            if on_gpu:
                end_process(named, world.rank)
            if named is error:
                raise
            raise named from error
        finally:
            dist.destroy_process_group()


def name_lost_peer(error: BaseException) -> BaseException:
    """Return a PeerLostError for a gloo or NCCL error that the end of another process caused, else the error itself."""
    text = str(error)
    is_lost = isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistError) or "gloo/transport" in text or any(words in text for words in NCCL_LOSSES)
    )
    if not is_lost or any(fault in text for fault in OWN_NCCL_FAULTS):
        return error
    return PeerLostError(text.splitlines()[0].partition(". ")[0])


def end_process(error: BaseException, rank: int) -> NoReturn:
    """Print the error that ended a run in an NCCL world, and end this process at once with status 1.

    An NCCL kernel that waits for a lost process never ends. `destroy_process_group`, freeing GPU memory and Python's
    normal exit all wait for it, so none of them may be reached. (`_abort_process_group` would stop the kernel, but may
    itself take as long as NCCL_TIMEOUT, and works for NCCL alone, not for the gloo group of `AsyncMax`.)

    After an error in the command, its context managers have closed everything. If `PeerWatch` calls this, nothing is
    closed: a save in progress is lost, and the run resumes from the checkpoint before. The driver frees GPU memory.
    """
    with suppress(OSError):  # of a pipe that nothing reads any more
        if not isinstance(error, InputError):
            traceback.print_exception(error)
        elif line := error.describe(rank):
            print(line, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(1)


def find_store() -> dist.Store:
    """Return the store through which the processes exchange addresses, without keys of an earlier torchrun attempt.

    On one node, torchrun's store outlives an attempt, and the next attempt would wait for processes that have ended.
    So each attempt gets its own prefix. Several nodes count their attempts separately: for them
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 creates a new store.

    Raises:
        PlaceError: MASTER_ADDR or MASTER_PORT is missing or wrong, or no process answers there.
    """
    try:
        store, _, _ = next(rendezvous("env://"))
    except (ValueError, dist.DistError) as error:
        reason = (
            str(error).splitlines()[0].removeprefix("Error initializing torch.distributed using env:// rendezvous: ")
        )
        raise WorldError(
            f"the processes cannot connect at MASTER_ADDR, MASTER_PORT ({reason}): start them with torchrun, "
            "or with another --master-port if this one is in use"
        ) from error
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if os.environ.get("GROUP_WORLD_SIZE") == "1" else ""
    return dist.PrefixStore(f"attempt-{attempt}", store)


# DistributedDataParallel.


def wrap_ddp(model: nn.Module, world: World) -> nn.Module:
    """Return the model with gradients averaged over all ranks; each rank keeps its own running statistics."""
    if world.size == 1:
        return model
    devices = [world.device] if world.device.type == "cuda" else None
    # Buffers are not broadcast at every step, but before evaluation alone (`broadcast_buffers`). torch 2.15 renamed
    # the argument.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    sync_buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {sync_buffers: False, "gradient_as_bucket_view": True}
    return DistributedDataParallel(model, device_ids=devices, **options)


def no_sync(model: nn.Module) -> AbstractContextManager[None]:
    """Return a context in which backward passes do not average gradients over the ranks."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def broadcast_buffers(module: nn.Module, world: World) -> None:
    """Copy rank 0's buffers (BatchNorm's running statistics) to every rank."""
    if world.size > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


# Collectives. Every rank must call them in the same order.


def barrier(world: World) -> None:
    """Wait until every rank has called this."""
    if world.size > 1:
        dist.barrier()


def all_reduce_sum(values: torch.Tensor, world: World) -> torch.Tensor:
    """Sum a tensor over all ranks, in place; return it."""
    if world.size > 1:
        dist.all_reduce(values)
    return values


def all_gather_objects(values: list[Any], world: World) -> list[Any]:
    """Return the values of all ranks in one list, on every rank, in the order of ranks."""
    if world.size == 1:
        return values
    lists: list[Any] = [None] * world.size
    dist.all_gather_object(lists, values)
    return [value for each in lists for value in each]


def broadcast_from_rank0(value: Any, world: World) -> Any:
    """Return rank 0's value on every rank; the values of other ranks are ignored."""
    if world.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=world.device)
    return box[0]


def broadcast_tensors(tensors: Iterable[torch.Tensor], world: World) -> None:
    """Copy rank 0's values into the tensors of every rank, one after the other, in any memory format."""
    if world.size == 1:
        return
    for tensor in tensors:
        values = tensor.contiguous()
        dist.broadcast(values, src=0)
        tensor.copy_(values)


def gather_to_rank0(values: torch.Tensor, world: World) -> torch.Tensor | None:
    """Return on rank 0 the tensors of all ranks, concatenated along the first dimension; None on other ranks.

    All tensors must have the same shape.
    """
    if world.size == 1:
        return values
    gathered = [torch.empty_like(values) for _ in range(world.size)] if world.rank == 0 else None
    dist.gather(values, gathered, dst=0)
    return torch.cat(gathered) if gathered else None


def resolve_on_rank0(resolve: Callable[[], T], world: World) -> T:
    """Call a function on rank 0; return its result, or raise its InputError, on every rank."""
    outcome: T | InputError | None = None
    if world.rank == 0:
        try:
            outcome = resolve()
        except InputError as error:
            outcome = InputError(str(error))  # a subclass may not survive pickling
    outcome = broadcast_from_rank0(outcome, world)
    if isinstance(outcome, InputError):
        raise outcome
    assert outcome is not None
    return outcome


def resolve_on_every_node(resolve: Callable[[], object], world: World) -> None:
    """Call a function on the first rank of each node; if it fails on any of them, raise InputError on every rank."""
    faults = []
    if world.local_rank == 0:
        try:
            resolve()
        except (InputError, OSError) as error:
            fault = describe_os_error(error) if isinstance(error, OSError) else error
            faults.append(f"{socket.gethostname()}: {fault}")
    faults = all_gather_objects(faults, world)
    if faults:
        raise InputError(faults[0])


class AsyncMax:
    """The largest number that any rank gives, the same on every rank at the same call, without blocking.

    Each call returns the maximum of the numbers given at the previous call: by then the CPUs have compared them
    through gloo, while the GPUs worked. Every rank must call `ask` equally often. Use as a context manager.
    """

    def __init__(self, world: World) -> None:
        self.group: Any = dist.new_group(backend="gloo") if world.size > 1 else None
        self.asked, self.work = torch.tensor(0), None

    def __enter__(self) -> "AsyncMax":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if error is None:
            self._wait()

    def ask(self, number: int) -> int:
        """Give a number; return the largest of the previous call's numbers (in a world of one: of this call's)."""
        if self.group is None:
            return number
        answer = self._wait()
        self.asked = torch.tensor(number)
        self.work = dist.all_reduce(self.asked, dist.ReduceOp.MAX, group=self.group, async_op=True)
        return answer

    def _wait(self) -> int:
        if self.work is not None:
            self.work.wait()
        return int(self.asked)


# Heartbeats.


class Heartbeats:
    """One line of text per rank, which all ranks can read. Uses no collective, so it works while collectives hang.

    The lines are in the store through which the processes connected: torchrun's, or rank 0's.

    Args:
        name: of this table, so that several can share the store.
    """

    def __init__(self, name: str, world: World) -> None:
        self.rank, self.size = world.rank, world.size
        self.store = dist.PrefixStore(name, _get_default_store().clone() if world.size > 1 else dist.HashStore())
        self.known: set[int] = set()  # ranks that have written a line

    def write(self, line: str) -> None:
        """Replace this rank's line."""
        self.store.set(str(self.rank), line)

    def read_all(self) -> list[str]:
        """Return the line of each rank; an empty line for a rank that has written none yet."""
        self.known |= {rank for rank in range(self.size) if rank in self.known or self.store.check([str(rank)])}
        return [self.store.get(str(rank)).decode() if rank in self.known else "" for rank in range(self.size)]


class PeerWatch:
    """Ends this process when another process of its world is lost. Use as a context manager around a whole command.

    Under NCCL, an error that names the lost process reaches the trainer only where it communicates through gloo.
    Elsewhere the trainer waits inside the CUDA driver, for a collective that never ends. So there are two threads: one
    sends heartbeats and reads those of the others. The other one counts how long each process has been silent; it
    does not use the store, since the store may be what no longer answers.

    Args:
        heartbeats: a table for this purpose alone.
        lost_seconds: silence after which a process is lost.
        sign_seconds: between heartbeats.
    """

    LEFT = "left"  # last line of a process that has finished normally

    def __init__(
        self, heartbeats: Heartbeats, lost_seconds: float = LOST_SECONDS, sign_seconds: float = SIGN_SECONDS
    ) -> None:
        self.heartbeats, self.lost_seconds, self.sign_seconds = heartbeats, lost_seconds, sign_seconds
        self.lines = [""] * heartbeats.size
        # Pulses since each rank's line last changed. One pulse is one turn of `_count_silences`.
        self.silences = [0] * heartbeats.size
        self.stopped = threading.Event()
        self.sender = threading.Thread(target=self._send_heartbeats, name="penstock-signs-of-life", daemon=True)
        self.counter = threading.Thread(target=self._count_silences, name="penstock-peer-watch", daemon=True)

    def __enter__(self) -> "PeerWatch":
        self.sender.start()
        self.counter.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.stopped.set()
        self.sender.join(self.sign_seconds)  # not longer: the store may have ended

    def _send_heartbeats(self) -> None:
        with suppress(RuntimeError):  # the store has ended
            for number in itertools.count():
                # Send this rank's heartbeat, then find the ranks with a new line since the last time.
                self.heartbeats.write(str(number))
                for rank, line in enumerate(self.heartbeats.read_all()):
                    if line != self.lines[rank]:
                        self.lines[rank], self.silences[rank] = line, 0
                if self.stopped.wait(self.sign_seconds):
                    break
            self.heartbeats.write(self.LEFT)

    def _count_silences(self) -> None:
        """Count own pulses instead of time: a process that was stopped and resumed has not lost the others."""
        while not self.stopped.wait(self.sign_seconds):
            for rank in range(self.heartbeats.size):
                self.silences[rank] += 1
            if lost := self.find_lost():
                end_process(PeerLostError(self._describe(lost)), self.heartbeats.rank)

    def find_lost(self) -> list[int]:
        """Return the ranks that are lost; this rank is one of them if its own heartbeats do not reach the store."""
        return [
            rank
            for rank, (line, silence) in enumerate(zip(self.lines, self.silences, strict=True))
            if silence * self.sign_seconds >= self.lost_seconds and line != self.LEFT
        ]

    def _describe(self, lost: list[int]) -> str:
        if self.heartbeats.rank in lost:
            return f"the store on rank 0's machine has not answered for {self.lost_seconds:g} seconds"
        return f"no sign of life from rank {', '.join(map(str, lost))} for {self.lost_seconds:g} seconds"
