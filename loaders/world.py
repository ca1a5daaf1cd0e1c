"""`World`: which rank this process is, among how many, and on which device it runs.

`join_environment` makes the world once per process; it is then passed to everything that needs it.

Several launchers start processes, each in its own way, and some pass no information to the processes they start. A
missing variable is therefore never read as "rank 0 of 1" if anything shows that there are other processes: each of
them would train on the same images, and the loss curve would look normal. Such a process ends with a one-line error
that says what was found. An NVIDIA GPU that exists is used or reported as unusable, and never ignored silently.

This module imports torch only inside functions.
"""

import ctypes
import importlib
import logging
import multiprocessing
import os
import re
import socket
import sys
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from prep.errors import InputError, RankError

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

DRIVER = Path("/proc/driver/nvidia")
# The variables in which launchers pass the rank and the number of processes, innermost launcher first: mpirun inside
# a Slurm job starts its processes through srun. None of these launchers passes an address at which the processes meet.
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
SLURM_SPECIAL_STEPS = 0xFFFFFFF0  # step numbers from here on are batch scripts and interactive shells: one process
HOSTS_SECONDS = 300.0  # how long to wait until the other processes have built a loader too
REMEDY = (
    "start with torchrun, or call torch.distributed.init_process_group before `build` "
    "(Lightning: build in train_dataloader), or pass rank= and world_size= to `build`"
)
log = logging.getLogger("penstock")


def _cpu() -> "torch.device":
    import torch  # noqa: PLC0415  (commands parse their flags without torch)

    return torch.device("cpu")


@dataclass(frozen=True)
class World:
    """This process among the processes of a run. Local rank and size count the processes of this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    device: "torch.device" = field(default_factory=_cpu)

    def share(self, batch_size: int) -> range:
        """Return this rank's slots of a global batch of `batch_size` images.

        Raises:
            InputError: the batch is empty or not a multiple of the number of processes.
        """
        if batch_size < 1 or batch_size % self.size:
            lower = max(1, batch_size // self.size) * self.size
            raise InputError(
                f"the batch size must be a multiple of the number of processes, {self.size}, got {batch_size}: "
                f"use {lower} or {lower + self.size}"
            )
        return self.share_evenly(batch_size)

    def share_evenly(self, num_images: int) -> range:
        """Return this rank's part of `num_images` consecutive images; the sizes of all parts differ by at most one."""
        return range(self.rank * num_images // self.size, (self.rank + 1) * num_images // self.size)


class WorldError(RankError):
    """This process cannot find out its rank, or has no device; the other processes may be fine."""


def make_machine_error(line: str, world: World) -> InputError:
    """Return an error that the processes of one machine find: its first process prints the line."""
    return RankError(line) if world.local_rank == 0 else InputError(line)


def join_environment(device: "str | torch.device", rank: int | None = None, size: int | None = None) -> World:
    """Return this process's rank, the number of processes, and its device.

    Args:
        device: see `resolve_device`.
        rank: this process's rank; by default `find_world` works it out.
        size: the number of processes; by default `find_world` works it out.

    Raises:
        InputError: see `find_world` and `resolve_device`.
    """
    world = find_world(rank, size)
    return replace(world, device=resolve_device(device, world.local_rank))


# The device.


def resolve_device(wanted: "str | torch.device", local_rank: int = 0) -> "torch.device":
    """Return the device for `wanted`: auto (a GPU if there is one, else the CPU), cpu, cuda or cuda:N.

    cuda and auto use the GPU whose number is `local_rank`. The GPU becomes torch's current one.

    Raises:
        InputError: the device is unknown; or a GPU exists, or was requested, and torch or DALI cannot use it.
    """
    import torch  # noqa: PLC0415  (commands parse their flags without torch)

    kind, number = _parse_device(wanted)
    if kind == "cpu" or (kind == "auto" and not has_nvidia_gpu()):
        return torch.device("cpu")

    # The GPU must exist, and driver, torch and DALI must fit together.
    if not has_nvidia_gpu():
        raise InputError(f"device {wanted} was requested, but this machine shows no NVIDIA GPU: choose --device cpu")
    if fault := _find_gpu_fault():
        raise InputError(
            f"{fault} ({_describe_versions()}): update the driver, install matching wheels, or choose --device cpu"
        )

    # The number of the GPU must exist too.
    num_gpus = torch.cuda.device_count()
    if number is not None and number >= num_gpus:
        raise WorldError(f"device {wanted} does not exist: this machine has {num_gpus} GPUs, numbered from 0")
    if number is None and local_rank >= num_gpus:
        raise WorldError(
            f"process {local_rank} of this machine has no GPU, because there are only {num_gpus}: start fewer "
            "processes, or correct LOCAL_RANK, or pass device='cuda:N' to `build`"
        )
    number = local_rank if number is None else number
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def _parse_device(wanted: "str | torch.device") -> tuple[str, int | None]:
    """Return auto, cpu or cuda, and the number of the GPU if one is given."""
    import torch  # noqa: PLC0415  (commands parse their flags without torch)

    if wanted == "auto":
        return "auto", None
    try:
        device = torch.device(wanted)
    except (RuntimeError, TypeError):
        device = None
    if device is None or isinstance(wanted, int) or device.type not in ("cpu", "cuda"):
        raise InputError(f"unknown device {wanted}: choose auto, cpu, cuda or cuda:N")
    return device.type, device.index


def has_nvidia_gpu() -> bool:
    """Return True if the kernel shows an NVIDIA GPU and CUDA_VISIBLE_DEVICES does not hide it. Does not ask torch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        return False
    return any((DRIVER / "gpus").glob("*")) or any(Path("/dev").glob("nvidia[0-9]*"))


def _find_gpu_fault() -> str | None:
    """Return why the GPU cannot be used; None if it can."""
    import torch  # noqa: PLC0415  (commands parse their flags without torch)

    if not torch.cuda.is_available():
        return "an NVIDIA GPU is here but torch cannot use it"
    driver, dali = _driver_cuda(), _dali_cuda()
    if driver and dali and driver[0] < dali[0]:  # within a major version CUDA guarantees compatibility
        return "an NVIDIA GPU is here but its driver is too old for DALI"
    return None


def _describe_versions() -> str:
    """Return the versions of the driver and of CUDA in the driver, torch and DALI, for an error line."""
    import torch  # noqa: PLC0415  (commands parse their flags without torch)

    driver = DRIVER / "version"
    name = driver.read_text().splitlines()[0] if driver.exists() else "driver unknown"
    return (
        f"{name}, which supports CUDA {_dotted(_driver_cuda())}; torch is built for CUDA {torch.version.cuda}, "
        f"DALI for CUDA {_dotted(_dali_cuda())}"
    )


def _driver_cuda() -> tuple[int, int] | None:
    """Return the newest CUDA version that the driver supports; None without a driver.

    cuDriverGetVersion returns 1000 * major + 10 * minor.
    """
    try:
        version = ctypes.c_int()
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return None
    return version.value // 1000, version.value % 1000 // 10


def _dali_cuda() -> tuple[int, int] | None:
    """Return the CUDA version that DALI was built for, None without DALI.

    `__cuda_version__` holds the digits without dots: 12986 for 12.9.86.
    """
    try:
        digits = str(importlib.import_module("nvidia.dali").__cuda_version__)
    except ModuleNotFoundError:
        return None
    return int(digits[:2]), int(digits[2])


def _dotted(version: tuple[int, int] | None) -> str:
    return "unknown" if version is None else f"{version[0]}.{version[1]}"


# The rank.


def find_world(rank: int | None = None, size: int | None = None) -> World:
    """Return this process's place in the world, with the CPU as its device.

    The sources, in this order: the arguments; an initialised torch.distributed; torchrun's environment variables. If
    none of them is there and nothing shows other processes, the world has one process.

    Raises:
        WorldError: what is given or found is incomplete or contradictory, or only shows that there are other processes.
    """
    if rank is not None or size is not None:
        rank, size = _check_given(rank, size)
        return World(rank, size, *_find_local(rank, size))
    rank, size = _checked_group() or _read_environment()
    local_rank, local_size = _find_local(rank, size)
    if local_size > size:
        found = _quote_variables("LOCAL_RANK", "LOCAL_WORLD_SIZE")
        raise WorldError(
            f"{found} contradict rank {rank} of {size}: correct them, torchrun sets RANK and WORLD_SIZE too"
        )
    return World(rank, size, local_rank, local_size)


def check_group(world: World) -> None:
    """Check that torch.distributed, if it was initialised after `world` was made, has the same rank and size.

    Raises:
        WorldError: the process group has another rank or size.
    """
    if (group := _group_rank_and_size()) and group != (world.rank, world.size):
        raise WorldError(
            f"this loader was built as rank {world.rank} of {world.size}, and torch.distributed now says "
            f"rank {group[0]} of {group[1]}: build it after init_process_group (Lightning: in train_dataloader; "
            "Accelerate: after Accelerator()), or pass rank= and world_size= to `build`"
        )


def _check_given(rank: object, size: object) -> tuple[int, int]:
    """Check the arguments `rank` and `world_size` of `build`."""
    for value in (rank, size):
        if not isinstance(value, int) or isinstance(value, bool):
            raise WorldError(
                f"rank= and world_size= must be given together, as whole numbers, got {rank!r} and {size!r}"
            )
    assert isinstance(rank, int) and isinstance(size, int)
    if not 0 <= rank < size:
        raise WorldError(f"rank= must be at least 0 and less than world_size=, got rank {rank} of {size}")
    return rank, size


def _group_rank_and_size() -> tuple[int, int] | None:
    """Return rank and size in torch.distributed's process group; None if it is not initialised."""
    if "torch.distributed" not in sys.modules:
        return None
    import torch.distributed as dist  # noqa: PLC0415  (commands parse their flags without torch)

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return None


def _checked_group() -> tuple[int, int] | None:
    """Return what `_group_rank_and_size` does, after checking that the environment does not contradict it."""
    group = _group_rank_and_size()
    if group is None:
        return None
    (rank, size), found = group, _quote_variables("RANK", "WORLD_SIZE")
    if _read_variable("RANK") not in (None, rank) or _read_variable("WORLD_SIZE") not in (None, size):
        raise WorldError(
            f"torch.distributed says rank {rank} of {size}, and the environment {found}: "
            f"correct or unset these variables, or pass rank={rank}, world_size={size} to `build`"
        )
    return group


def _read_environment() -> tuple[int, int]:
    """Return rank and size from torchrun's variables; rank 0 of 1 if nothing shows another process."""
    rank, size = _read_variable("RANK"), _read_variable("WORLD_SIZE")
    if size == 0:
        raise WorldError("the environment variable WORLD_SIZE must be at least 1, found 0: correct or unset it")

    # Both are set: torchrun, or a launcher that sets the same variables.
    if rank is not None and size is not None:
        if rank >= size:
            found = _quote_variables("RANK", "WORLD_SIZE")
            raise WorldError(f"RANK must be less than WORLD_SIZE, found {found}: correct them")
        return rank, size

    # One is set. WORLD_SIZE=1 alone is enough.
    if rank is not None or (size is not None and size != 1):
        missing, found = "WORLD_SIZE" if size is None else "RANK", _quote_variables("RANK", "WORLD_SIZE")
        raise WorldError(f"the environment has {found}, but no {missing}: {REMEDY}")
    if size == 1:
        return 0, 1

    # Neither is set: allowed only if nothing shows another process.
    if sign := _find_local_sign() or _find_launcher() or _find_parent():
        raise WorldError(f"{sign}, and nothing says which rank of how many this process is: {REMEDY}")
    return 0, 1


def _find_local_sign() -> str | None:
    """Return the variables which show that this machine runs several processes, or that there are several machines."""
    least = {"LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2, "NODE_RANK": 1, "GROUP_RANK": 1}
    found = [name for name, number in least.items() if (_read_variable(name) or 0) >= number]
    return f"the environment has {_quote_variables(*found)}" if found else None


def _find_launcher() -> str | None:
    """Return how another launcher started this process as one of several; None if it was no launcher."""
    for name, (rank_name, size_name) in LAUNCHERS.items():
        rank, size = _read_variable(rank_name), _read_variable(size_name)
        if size is not None and rank is not None:  # the innermost launcher: the outer ones do not matter
            return f"{name} started this process as {rank} of {size}" if size > 1 else None
        if (size or 1) > 1 or (rank or 0) > 0:
            return f"{name} started this process, {_quote_variables(rank_name, size_name)}"
    rank, size = _read_variable("SLURM_PROCID") or 0, _read_slurm_tasks()
    if size > 1 or rank > 0:
        return f"srun started this process as {rank} of {max(size, rank + 1)}"
    return None


def _read_slurm_tasks() -> int:
    """Return the number of tasks of the Slurm job step that this process belongs to.

    SLURM_NTASKS alone is not enough: a batch script has it too, as the number of tasks that the job may start.
    """
    step_tasks = _read_variable("SLURM_STEP_NUM_TASKS")
    if step_tasks is not None:
        return step_tasks
    steps = [step for name in SLURM_STEP_IDS if (step := _read_variable(name)) is not None]
    in_step = any(step < SLURM_SPECIAL_STEPS for step in steps)
    return (_read_variable("SLURM_NTASKS") or _read_variable("SLURM_NPROCS") or 1) if in_step else 1


def _find_parent() -> str | None:
    """Return which Python library started this process, and may have started others of which it knows nothing."""
    if multiprocessing.parent_process() is not None:  # also for torch.multiprocessing's spawn
        return "this process was started by multiprocessing"
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE:
        return "this process was started by Ray"
    return None


# The machine.


def _find_local(rank: int, size: int) -> tuple[int, int]:
    """Return this process's rank among the processes of this machine, and their number.

    They decide which GPU and which cores the process uses, never which images.
    """
    # torchrun says it.
    local_rank, local_size = _read_variable("LOCAL_RANK"), _read_variable("LOCAL_WORLD_SIZE")
    if local_rank is not None and local_size is not None:
        if local_rank >= local_size:
            found = _quote_variables("LOCAL_RANK", "LOCAL_WORLD_SIZE")
            raise WorldError(f"LOCAL_RANK must be less than LOCAL_WORLD_SIZE, found {found}: correct them")
        return local_rank, local_size
    if size == 1:
        return local_rank or 0, max(local_size or 1, (local_rank or 0) + 1)

    # The processes of a process group tell each other their host names.
    if hosts := _exchange_hosts(rank, size):
        mine = [other for other, host in enumerate(hosts) if host == hosts[rank]]
        return mine.index(rank), len(mine)

    # The number of processes on this machine is unknown: assume that all are here. Too few threads are slow, but two
    # processes on one GPU would be worse.
    if rank == 0:
        log_once(
            f"LOCAL_RANK and LOCAL_WORLD_SIZE are not set: the cores are divided as if all {size} processes ran on "
            "this machine; set these variables if they do not"
        )
    return rank if local_rank is None else local_rank, local_size or size


def _exchange_hosts(rank: int, size: int) -> list[str]:
    """Return the host name of each rank of the process group; an empty list without a group.

    It uses the store through which the group was initialised, and no collective: the order of calls does not matter,
    and no GPU is needed. Host names stay in the store, so that only a process's first loader waits for the others.
    """
    if _group_rank_and_size() != (rank, size):
        return []
    store = _clone_group_store()
    if store is None:
        return []
    store.set(str(rank), socket.gethostname())
    ranks = list(map(str, range(size)))
    try:
        store.wait(ranks, timedelta(seconds=HOSTS_SECONDS))
    except RuntimeError as error:
        raise WorldError(
            f"rank {rank} of {size} waited {HOSTS_SECONDS:g} seconds for all processes to build a loader: "
            "build it in each of them, or set LOCAL_RANK and LOCAL_WORLD_SIZE, which makes waiting unnecessary"
        ) from error
    return [store.get(each).decode() for each in ranks]


def _clone_group_store() -> "dist.Store | None":
    """Return a connection to the process group's key-value store; None for a group of MPI, which has no store."""
    import torch.distributed as dist  # noqa: PLC0415  (commands parse their flags without torch)
    from torch.distributed.distributed_c10d import _get_default_store  # noqa: PLC0415

    try:
        return dist.PrefixStore("penstock-hosts", _get_default_store().clone())
    except (RuntimeError, ValueError):
        return None


def _read_variable(name: str) -> int | None:
    """Return an environment variable that must be a whole number; None if it is not set."""
    text = os.environ.get(name)
    if text is None:
        return None
    if not re.fullmatch("[0-9]+", text):
        raise WorldError(f"the environment variable {name} must be a whole number, found {text!r}: correct or unset it")
    return int(text)


def _quote_variables(*names: str) -> str:
    """Return those of the environment variables that are set, in the shell's notation."""
    return " ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)


@cache
def log_once(line: str) -> None:
    """Log a warning; the same line is logged only once per process."""
    log.warning(line)
