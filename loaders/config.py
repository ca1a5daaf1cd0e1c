"""How a loader works: nothing here changes which pixels its batches hold."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from loaders.batch import World
from prep.errors import InputError

MOST_THREADS = 16
DecodeKind = Literal["auto", "roi", "full"]
PlacementKind = Literal["auto", "cpu", "gpu"]


@dataclass(frozen=True)
class LoaderConfig:
    """How batches are produced."""

    backend: str = "dali"  # dali, reference (Pillow) or synthetic (the same batch again and again)
    num_threads: int = 0  # decoding threads a process; 0: an equal share of the cores, at most 16
    batches_ahead: int = 2  # prepared before they are asked for, at each of the stages read, decode and queue
    placement: PlacementKind = "auto"  # where images are decoded, wherever the model is; auto: by the number of cores
    decode: DecodeKind = "auto"  # the window alone (roi) or the full image; auto: roi on the CPU, full on a GPU
    hw_decoder_load: float = 0.65  # share of the JPEGs for the GPU's own decoder, where it has one
    pin_threads: bool = False  # each decoding thread to a core of this process's share
    most_damaged: int = 100  # images that a run goes on without; 0: the first that cannot be decoded ends it
    tuned: Path | None = None  # file of `benchmarks/throughput.py --tune`: its settings replace what is at its default

    def check(self) -> None:
        """Raises InputError for what cannot work."""
        if self.num_threads < 0:
            raise InputError(
                f"num_threads {self.num_threads} is negative: take 1 or more, or 0 for a share of the cores"
            )
        if self.batches_ahead < 1:
            raise InputError(f"batches_ahead {self.batches_ahead} is too few: take 1 or more")
        if self.placement not in get_args(PlacementKind):
            raise InputError(
                f"there is no placement {self.placement}: choose from {', '.join(get_args(PlacementKind))}"
            )
        if self.decode not in get_args(DecodeKind):
            raise InputError(f"there is no decode {self.decode}: choose from {', '.join(get_args(DecodeKind))}")
        if not 0 <= self.hw_decoder_load <= 1:
            raise InputError(f"hw_decoder_load {self.hw_decoder_load} is no share: take 0 to 1")
        if self.most_damaged < 0:
            raise InputError(f"most_damaged {self.most_damaged} is negative: take 0 or more")


def share_cores(world: World) -> tuple[int, ...]:
    """This process's share of the cores that it may run on: neighbours, so that they share caches; at least one."""
    cores = sorted(os.sched_getaffinity(0))
    each = max(1, len(cores) // world.local_size)
    first = world.local_rank * each % len(cores)
    return tuple(cores[first : first + each])


def default_num_threads(world: World) -> int:
    """A decoding thread for each core of this process's share, at most 16."""
    return min(MOST_THREADS, len(share_cores(world)))
