"""How fast a run goes, never what it trains: precision of float32, compilation, images at once."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import nn

from prep.errors import InputError

CompileMode = Literal["none", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
CACHE = "compiled"  # in the run's folder, so that a run that goes on does not compile anew
WITHOUT_CUDA_GRAPHS: dict[CompileMode, CompileMode] = {
    "reduce-overhead": "default",
    "max-autotune": "max-autotune-no-cudagraphs",
}  # the modes that record CUDA graphs, each with the mode that is closest to it and records none
GRAPH_REHEARSALS = 3  # the first runs eagerly, the second records the graph, the third replays it


@dataclass(frozen=True)
class SpeedConfig:
    """Settings of speed; a run may go on with others."""

    compile: CompileMode = "none"  # torch.compile's modes; reduce-overhead takes CUDA graphs
    microbatch: int = 0  # images at once on a process, gradients accumulate over its share of a batch; 0: all
    tf32: bool = True  # what is left in float32 may round to TF32 on a GPU's tensor cores
    deterministic: bool = False  # the same bits from run to run on a GPU too, slower

    def check(self) -> None:
        """Check each setting on its own; raise InputError for one that cannot work."""
        if self.compile not in get_args(CompileMode):
            raise InputError(f"there is no compile mode {self.compile}: choose from {', '.join(get_args(CompileMode))}")
        if self.microbatch < 0:
            raise InputError(f"microbatch {self.microbatch} is negative: take 1 or more, or 0 for all at once")

    @property
    def num_rehearsals(self) -> int:
        """How often the network runs at a resolution until a run there takes no longer than those after it."""
        return GRAPH_REHEARSALS if self.compile in WITHOUT_CUDA_GRAPHS else 1

    def num_parts(self, share: int) -> int:
        """Return into how many equal parts a process's share of a batch is cut.

        Raises:
            InputError: it cannot be cut so, or gradients cannot be added up over several parts.
        """
        at_once = min(self.microbatch or share, share)
        if share % at_once:
            fits = max(each for each in range(1, at_once) if share % each == 0)
            raise InputError(f"{share} images a process are no multiple of microbatch {at_once}: take {fits}")
        parts = share // at_once
        # The gradients of the first part would lie in memory of the CUDA graph, which the second part's replay
        # overwrites: torch then raises an error or adds up wrong values. Refused on a CPU too, where no graphs are
        # recorded, so that a recipe does not depend on the device.
        if parts > 1 and (other := WITHOUT_CUDA_GRAPHS.get(self.compile)):
            raise InputError(
                f"--speed.compile {self.compile} records CUDA graphs, which cannot add up gradients over {parts} parts "
                f"of {at_once} images: give --speed.microbatch 0 or --speed.compile {other}"
            )
        return parts


def set_precision(config: SpeedConfig) -> None:
    """Tell torch how a GPU computes in float32, and whether it may try which convolution is fastest.

    Raises:
        InputError: the settings cannot work.
    """
    config.check()
    # Set by the older names: they set the newer `fp32_precision` as well, and afterwards both can be read. Once the
    # newer names are set, reading the older ones raises "mix of the legacy and new APIs" (torch 2.11 to 2.15), and
    # inductor of 2.11 reads them whenever it autotunes: `get_float32_matmul_precision` and `allow_tf32`.
    torch.backends.cuda.matmul.allow_tf32 = config.tf32
    torch.backends.cudnn.allow_tf32 = config.tf32  # convolutions and recurrent networks
    torch.backends.cudnn.benchmark = not config.deterministic
    torch.use_deterministic_algorithms(config.deterministic)


def compiled(model: nn.Module, config: SpeedConfig, run_dir: Path) -> nn.Module:
    """The model, compiled where that is asked for; the cache lies in the run's folder."""
    if config.compile == "none":
        return model
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(run_dir.absolute() / CACHE)  # torch has set it to a folder in /tmp
    model.compile(mode=config.compile, dynamic=False)  # in place: the names in its state stay
    return model
