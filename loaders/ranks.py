"""Which rank this process has, among how many: as given, as torch.distributed says, or as the environment says.

Several launchers start processes in several ways, and some tell a process nothing. A missing variable is therefore
never read as rank 0 of 1 where anything shows that there are other processes: each of them would train on the same
images, and the loss curve would look normal. Such a process is refused in one line that names what was found.
"""

import logging
import multiprocessing
import os
import re
import socket
import sys
from datetime import timedelta
from functools import cache

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from loaders.batch import World
from prep.errors import RankError

# Variables by which launchers tell a process its rank and the number of processes, the innermost launcher first:
# mpirun inside of a Slurm job starts its own processes through srun. None of them says how to meet the others.
LAUNCHERS = {
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    "MVAPICH": ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    "MVAPICH 3": ("MVP_COMM_WORLD_RANK", "MVP_COMM_WORLD_SIZE"),
    "MPI": ("PMI_RANK", "PMI_SIZE"),
    "PMIx": ("PMIX_RANK", "PMIX_SIZE"),
    "Horovod": ("HOROVOD_RANK", "HOROVOD_SIZE"),
    "LSF": ("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE"),
    "Flux": ("FLUX_TASK_RANK", "FLUX_JOB_SIZE"),
    "PALS": ("PALS_RANKID", "PALS_SIZE"),
}
SLURM_STEP_IDS = ("SLURM_STEP_ID", "SLURM_STEPID")
SLURM_SPECIAL_STEPS = 0xFFFFFFF0  # from here on: a batch script's own step, an interactive shell, which are one process
HOSTS_SECONDS = 300.0  # that the other processes may take until they have built a loader too
REMEDY = (
    "start with torchrun, or call torch.distributed.init_process_group before `build` "
    "(Lightning: build in train_dataloader), or pass rank= and world_size= to `build`"
)
log = logging.getLogger("penstock")


class PlaceError(RankError):
    """This process cannot tell which rank it has, or has no device; other processes may have found nothing wrong."""


def find_world(rank: int | None = None, size: int | None = None) -> World:
    """Return this process's place in the world, with the CPU as its device.

    An explicit rank and size win. Otherwise an initialised torch.distributed says them, otherwise torchrun's
    environment variables. Without any of these, and with no sign of other processes, it is a world of one.

    Raises:
        PlaceError: what is given or found is incomplete or contradictory, or only shows that there are other processes.
    """
    if rank is not None or size is not None:
        rank, size = _check_given(rank, size)
        return World(rank, size, *_find_local(rank, size))
    rank, size = _read_group() or _read_environment()
    local_rank, local_size = _find_local(rank, size)
    if local_size > size:
        found = _quote("LOCAL_RANK", "LOCAL_WORLD_SIZE")
        raise PlaceError(
            f"{found} contradict rank {rank} of {size}: correct them, torchrun sets RANK and WORLD_SIZE too"
        )
    return World(rank, size, local_rank, local_size)


def check_group(world: World) -> None:
    """Check that a world that was worked out earlier is still that of torch.distributed, which may be newer.

    Raises:
        PlaceError: the process group was initialised after that, with another rank or size.
    """
    if (group := _read_group_alone()) and group != (world.rank, world.size):
        raise PlaceError(
            f"this loader was built as rank {world.rank} of {world.size}, and torch.distributed now says "
            f"rank {group[0]} of {group[1]}: build it after init_process_group (Lightning: in train_dataloader; "
            "Accelerate: after Accelerator()), or pass rank= and world_size= to `build`"
        )


def _check_given(rank: object, size: object) -> tuple[int, int]:
    for value in (rank, size):
        if not isinstance(value, int) or isinstance(value, bool):
            raise PlaceError(f"rank= and world_size= must be whole numbers, both of them, got {rank!r} and {size!r}")
    assert isinstance(rank, int) and isinstance(size, int)
    if not 0 <= rank < size:
        raise PlaceError(f"rank= must be at least 0 and less than world_size=, got rank {rank} of {size}")
    return rank, size


def _read_group_alone() -> tuple[int, int] | None:
    """Return rank and size of the initialised process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return None


def _read_group() -> tuple[int, int] | None:
    """As `_read_group_alone`, where the environment does not contradict it."""
    group = _read_group_alone()
    if group is None:
        return None
    (rank, size), found = group, _quote("RANK", "WORLD_SIZE")
    if _read("RANK") not in (None, rank) or _read("WORLD_SIZE") not in (None, size):
        raise PlaceError(
            f"torch.distributed says rank {rank} of {size}, and the environment {found}: "
            f"correct or unset these variables, or pass rank={rank}, world_size={size} to `build`"
        )
    return group


def _read_environment() -> tuple[int, int]:
    """Return rank and size as torchrun's variables say, or rank 0 of 1 where nothing shows another process."""
    rank, size = _read("RANK"), _read("WORLD_SIZE")
    if size == 0:
        raise PlaceError("the environment variable WORLD_SIZE must be at least 1, found 0: correct or unset it")
    if rank is not None and size is not None:
        if rank >= size:
            raise PlaceError(f"RANK must be less than WORLD_SIZE, found {_quote('RANK', 'WORLD_SIZE')}: correct them")
        return rank, size
    if rank is not None or (size is not None and size != 1):
        missing = "WORLD_SIZE" if size is None else "RANK"
        raise PlaceError(f"the environment has {_quote('RANK', 'WORLD_SIZE')}, but no {missing}: {REMEDY}")
    if size == 1:
        return 0, 1
    if sign := _find_local_sign() or _find_launcher() or _find_parent():
        raise PlaceError(f"{sign}, and nothing says which rank of how many this process is: {REMEDY}")
    return 0, 1


def _find_local_sign() -> str | None:
    """Return what shows that this is one of several processes of one machine, or of several machines."""
    least = {"LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2, "NODE_RANK": 1, "GROUP_RANK": 1}
    found = [name for name, number in least.items() if (_read(name) or 0) >= number]
    return f"the environment has {_quote(*found)}" if found else None


def _find_launcher() -> str | None:
    """Return which other launcher started this process as one of several."""
    for name, (rank_name, size_name) in LAUNCHERS.items():
        rank, size = _read(rank_name), _read(size_name)
        if size is not None and rank is not None:  # this launcher is the innermost
            return f"{name} started this process as {rank} of {size}" if size > 1 else None
        if (size or 1) > 1 or (rank or 0) > 0:
            return f"{name} started this process, {_quote(rank_name, size_name)}"
    rank, size = _read("SLURM_PROCID") or 0, _read_slurm_tasks()
    if size > 1 or rank > 0:
        return f"srun started this process as {rank} of {max(size, rank + 1)}"
    return None


def _read_slurm_tasks() -> int:
    """Return the number of tasks of the job step that this process belongs to.

    SLURM_NTASKS alone does not say it: a batch script has it too, as the number of tasks that the job may start.
    """
    step_tasks = _read("SLURM_STEP_NUM_TASKS")
    if step_tasks is not None:
        return step_tasks
    steps = [step for name in SLURM_STEP_IDS if (step := _read(name)) is not None]
    in_step = any(step < SLURM_SPECIAL_STEPS for step in steps)
    return (_read("SLURM_NTASKS") or _read("SLURM_NPROCS") or 1) if in_step else 1


def _find_parent() -> str | None:
    """Return which library started this process from Python. It may have siblings that it knows nothing of."""
    if multiprocessing.parent_process() is not None:  # also for torch.multiprocessing's spawn
        return "this process was started by multiprocessing"
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE:
        return "this process was started by Ray"
    return None


def _find_local(rank: int, size: int) -> tuple[int, int]:
    """Return this process's number among those of this machine, and how many they are.

    They decide which GPU and which share of the cores it takes, never which images.
    """
    local_rank, local_size = _read("LOCAL_RANK"), _read("LOCAL_WORLD_SIZE")
    if local_rank is not None and local_size is not None:
        if local_rank >= local_size:
            found = _quote("LOCAL_RANK", "LOCAL_WORLD_SIZE")
            raise PlaceError(f"LOCAL_RANK must be less than LOCAL_WORLD_SIZE, found {found}: correct them")
        return local_rank, local_size
    if size == 1:
        return local_rank or 0, max(local_size or 1, (local_rank or 0) + 1)
    if hosts := _exchange_hosts(rank, size):
        mine = [other for other, host in enumerate(hosts) if host == hosts[rank]]
        return mine.index(rank), len(mine)
    # Nothing says how many processes this machine has. Too few threads are slow; two processes on one GPU are worse.
    if rank == 0:
        _warn(
            f"the cores are shared out as if all {size} processes ran on this machine: "
            "set LOCAL_RANK and LOCAL_WORLD_SIZE if they do not"
        )
    return rank if local_rank is None else local_rank, local_size or size


def _exchange_hosts(rank: int, size: int) -> list[str]:
    """Return the host name of each rank of the process group; none where there is no such group.

    The store in which the processes met is used, no collective: the order of calls does not matter, and no GPU is
    needed. Host names stay there, so only a process's first loader waits for the others.
    """
    if _read_group_alone() != (rank, size):
        return []
    try:
        store = dist.PrefixStore("penstock-hosts", _get_default_store().clone())
    except (RuntimeError, ValueError):  # a group of MPI has none
        return []
    ranks = list(map(str, range(size)))
    store.set(str(rank), socket.gethostname())
    try:
        store.wait(ranks, timedelta(seconds=HOSTS_SECONDS))
    except RuntimeError as error:
        raise PlaceError(
            f"rank {rank} of {size} waited {HOSTS_SECONDS:g} seconds for all processes to build a loader: "
            "build it in each of them, or set LOCAL_RANK and LOCAL_WORLD_SIZE, which makes waiting unnecessary"
        ) from error
    return [store.get(each).decode() for each in ranks]


def _read(name: str) -> int | None:
    """Return a variable that is a whole number; None where it is not set."""
    text = os.environ.get(name)
    if text is None:
        return None
    if not re.fullmatch("[0-9]+", text):
        raise PlaceError(f"the environment variable {name} must be a whole number, found {text!r}: correct or unset it")
    return int(text)


def _quote(*names: str) -> str:
    """Return the variables that are set, as a shell would set them."""
    return " ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)


@cache
def _warn(line: str) -> None:
    """Log a warning, the first time only."""
    log.warning(line)
