"""The jobs of ranks in tests of lost processes: see `ranks.py`.

No GPU is needed: a world that believes to be on GPUs communicates through gloo, and a wait for a GPU hangs.
"""

import os
import signal
import threading
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from helpers.rank_jobs import JOBS, take_place
from loaders import World
from prep.errors import InputError
from train import dist as ours
from train.dist import join_world

LOST_SECONDS, SIGN_SECONDS = 1.0, 0.1


def hang(*_: object) -> NoReturn:
    """Hang like a call into CUDA that waits for a collective with a lost process."""
    while True:
        threading.Event().wait()


def pretend_nccl(rank: int, size: int, group: Path) -> None:
    """Pretend to be on GPUs; what NCCL would be asked for goes to a file of the group."""
    init = dist.init_process_group

    def meet_by_gloo(backend: str, *, timeout: Any, device_id: torch.device, **places: Any) -> None:
        (group / f"asked-{rank}").write_text(f"{backend} {timeout.total_seconds():g} {device_id}")
        init("gloo", **places)

    ours.join_environment = lambda _: World(rank, size, rank, size, torch.device("cuda", rank))
    ours.PeerWatch = partial(ours.PeerWatch, lost_seconds=LOST_SECONDS, sign_seconds=SIGN_SECONDS)  # pyright: ignore[reportAttributeAccessIssue]
    dist.init_process_group = meet_by_gloo


def end_one(rank: int, size: int, group: Path, *, port: int, plan: list[str]) -> None:
    """Join a world, and do what the plan says for this rank.

    leave: at once. meet: by gloo, as notices do. hang: as in a call into CUDA. Or end, as if kernels of NCCL were
    queued: die by SIGKILL, refuse (an InputError), exhaust (no memory is left), fail (another error).
    """
    take_place(rank, size, port)
    pretend_nccl(rank, size, group)
    with join_world("cuda"):
        dist.barrier()
        if "leave" not in plan:
            dist.destroy_process_group = hang
        match plan[rank]:
            case "meet":
                dist.barrier()
            case "hang":
                hang()
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "refuse":
                raise InputError("the loss was not finite")
            case "exhaust":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            case "fail":
                raise ZeroDivisionError("a fault of ours")


JOBS["end-one"] = end_one
