"""The only file of the trainer that speaks to torch.distributed: joins what torchrun started, and adds up over it."""

import inspect
import itertools
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from types import TracebackType
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import _get_default_store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from loaders import World
from loaders.blame import explain_shortage
from loaders.device import join_environment
from loaders.ranks import PlaceError
from prep.errors import InputError, RankError

# A process of an NCCL world is lost when it has given no sign of life for LOST_SECONDS (`PeerWatch`), whatever the
# others are doing. It gives one every SIGN_SECONDS from a thread of its own, also while it compiles or reads.
LOST_SECONDS = 60.0
SIGN_SECONDS = 5.0
# How long an NCCL collective may wait for the slowest process, which is alive: no measure of a lost one. Processes are
# rightly minutes apart where one compiles and another finds its kernels in the cache, where rank 0 waits for a slow
# disk before it saves again, where storage stalls, or at the end of train/evaluate.py, which first meets there. In
# training the watchdog ends such a wait after `run.hang_minutes` (10) and names the process that holds the others up;
# NCCL would end the process by SIGABRT and name a sequence number. So NCCL comes last, as late as gloo does.
NCCL_TIMEOUT = timedelta(minutes=30)
# Faults of this process, not of another one, in the words that torch adds to an error of NCCL.
OWN_NCCL_FAULTS = ("ncclUnhandledCudaError", "ncclInvalidArgument", "ncclInvalidUsage", "ncclInternalError")
NCCL_LOSSES = ("NCCL error", "NCCL communicator was aborted", "Watchdog caught collective operation timeout")


class PeerLostError(RankError):
    """Another process ended in the middle of a run, and with it the connection to it."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"another process ended, so this one cannot go on ({reason})")

    def describe(self, rank: int) -> str:
        """Return the line with which this process ends: not an error of its own."""
        return f"rank {rank}: {self}"


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """Join the processes that torchrun started; yield this process's place, in a world of one without torchrun.

    On GPUs an error, whatever it is, ends the process right here, in the line or the traceback that the command would
    print: see `end_process`.

    Args:
        device: auto, cpu or cuda. GPUs talk through NCCL, CPUs through gloo.

    Raises:
        PeerLostError: another process ended meanwhile.
    """
    world = join_environment(device)
    if world.size == 1:
        try:
            yield world
        except (RuntimeError, MemoryError) as error:
            if shortage := explain_shortage(error):
                raise shortage from error
            raise
        return
    on_gpu = world.device.type == "cuda"
    places = {"store": find_store(), "rank": world.rank, "world_size": world.size}
    if on_gpu:
        dist.init_process_group("nccl", timeout=NCCL_TIMEOUT, device_id=world.device, **places)
    else:
        dist.init_process_group("gloo", **places)
    with PeerWatch(Board("alive", world)) if on_gpu else nullcontext():
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
    """Return a PeerLostError for an error of gloo or NCCL that another process's end caused, else the error itself."""
    text = str(error)
    is_lost = isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistError) or "gloo/transport" in text or any(words in text for words in NCCL_LOSSES)
    )
    if not is_lost or any(fault in text for fault in OWN_NCCL_FAULTS):
        return error
    return PeerLostError(text.splitlines()[0].partition(". ")[0])


def end_process(error: BaseException, rank: int) -> NoReturn:
    """Print what ended a run in an NCCL world, and end this process at once with status 1.

    A kernel of NCCL that waits for a lost process never ends. `destroy_process_group`, freeing GPU memory and Python's
    own end of the process all wait for it, so none of them may be reached. (`_abort_process_group` would stop the
    kernel, but may itself take as long as NCCL_TIMEOUT, and is made for NCCL alone, not for the gloo group of the
    notices.) Nothing is lost: what was open inside of `join_world` has been closed by then, and the driver frees what
    the process held.
    """
    with suppress(OSError):  # of a pipe whose reader has gone
        if not isinstance(error, InputError):
            traceback.print_exception(error)
        elif line := error.describe(rank):
            print(line, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(1)


def find_store() -> dist.Store:
    """Where the processes tell each other their addresses: apart from those of an earlier attempt of torchrun's.

    On one node its store outlives an attempt, and the next one would wait for processes that are gone. Several nodes
    count their attempts apart: for them TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 makes a store anew.

    Raises:
        PlaceError: MASTER_ADDR or MASTER_PORT is missing or wrong, or nobody answers there.
    """
    try:
        store, _, _ = next(rendezvous("env://"))
    except (ValueError, dist.DistError) as error:
        reason = (
            str(error).splitlines()[0].removeprefix("Error initializing torch.distributed using env:// rendezvous: ")
        )
        raise PlaceError(
            f"the processes cannot meet at MASTER_ADDR, MASTER_PORT ({reason}): start them with torchrun, "
            "or with another --master-port if this one is in use"
        ) from error
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
    """A line of each rank for the others to read, apart from all collectives, so that it works while those hang.

    The lines are kept by the store in which the processes met: torchrun's, or rank 0's.
    """

    def __init__(self, name: str, world: World) -> None:
        self.rank, self.size = world.rank, world.size
        self.store = dist.PrefixStore(name, _get_default_store().clone() if world.size > 1 else dist.HashStore())
        self.known: set[int] = set()  # ranks that have left a line

    def write(self, line: str) -> None:
        """Leave a line in place of this rank's last one."""
        self.store.set(str(self.rank), line)

    def read(self) -> list[str]:
        """Return the line of each rank, empty where it has not left one yet."""
        self.known |= {rank for rank in range(self.size) if rank in self.known or self.store.check([str(rank)])}
        return [self.store.get(str(rank)).decode() if rank in self.known else "" for rank in range(self.size)]


class PeerWatch:
    """Ends this process when another one of its world is lost. Use as a context manager around all that it does.

    Under NCCL an error that names the lost process reaches the trainer only where it talks through gloo. Elsewhere it
    waits inside of the CUDA driver, for a collective that never ends. So a thread gives a sign of life on the board and
    reads those of the others, and another one, since the store may be what does not answer, counts how long each has
    been silent.

    Args:
        board: for this purpose alone.
        lost_seconds: of silence, after which a process is lost.
        sign_seconds: between signs of life.
    """

    LEFT = "left"  # last line of a process that has done its work

    def __init__(self, board: Board, lost_seconds: float = LOST_SECONDS, sign_seconds: float = SIGN_SECONDS) -> None:
        self.board, self.lost_seconds, self.sign_seconds = board, lost_seconds, sign_seconds
        self.lines = [""] * board.size
        self.silences = [0] * board.size  # pulses since each rank's line last changed
        self.stopped = threading.Event()
        self.sender = threading.Thread(target=self._give_signs, name="penstock-signs-of-life", daemon=True)
        self.counter = threading.Thread(target=self._count_silences, name="penstock-peer-watch", daemon=True)

    def __enter__(self) -> "PeerWatch":
        self.sender.start()
        self.counter.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.stopped.set()
        self.sender.join(self.sign_seconds)  # no longer: the store may have ended

    def _give_signs(self) -> None:
        with suppress(RuntimeError):  # the store has ended
            for number in itertools.count():
                self.board.write(str(number))
                for rank, line in enumerate(self.board.read()):
                    if line != self.lines[rank]:
                        self.lines[rank], self.silences[rank] = line, 0
                if self.stopped.wait(self.sign_seconds):
                    break
            self.board.write(self.LEFT)

    def _count_silences(self) -> None:
        """Count pulses of its own, not time: a process that was stopped and goes on has not lost the others."""
        while not self.stopped.wait(self.sign_seconds):
            for rank in range(self.board.size):
                self.silences[rank] += 1
            if lost := self.find_lost():
                end_process(PeerLostError(self._describe(lost)), self.board.rank)

    def find_lost(self) -> list[int]:
        """Return the ranks that are lost; this rank is one of them where its own signs do not reach the store."""
        return [
            rank
            for rank, (line, silence) in enumerate(zip(self.lines, self.silences, strict=True))
            if silence * self.sign_seconds >= self.lost_seconds and line != self.LEFT
        ]

    def _describe(self, lost: list[int]) -> str:
        if self.board.rank in lost:
            return f"the store of rank 0's machine has not answered for {self.lost_seconds:g} seconds"
        return f"no sign of life from rank {', '.join(map(str, lost))} for {self.lost_seconds:g} seconds"
