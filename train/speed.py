"""How fast a run goes, never what it trains: precision of float32, compilation, images at once."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import nn

from loaders import InputError

CompileMode = Literal["none", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
CACHE = "compiled"  # in the run's folder, so that a run that goes on does not compile anew


@dataclass(frozen=True)
class SpeedConfig:
    """Settings of speed; a run may go on with others."""

    compile: CompileMode = "none"  # torch.compile's modes; reduce-overhead takes CUDA graphs
    microbatch: int = 0  # images at once on a process, gradients accumulate over its share of a batch; 0: all
    tf32: bool = True  # what is left in float32 may round to TF32 on a GPU's tensor cores
    deterministic: bool = False  # the same bits from run to run on a GPU too, slower

    def check(self) -> None:
        """Raises InputError for what cannot work."""
        if self.compile not in get_args(CompileMode):
            raise InputError(f"there is no compile mode {self.compile}: choose from {', '.join(get_args(CompileMode))}")
        if self.microbatch < 0:
            raise InputError(f"microbatch {self.microbatch} is negative: take 1 or more, or 0 for all at once")

    def num_parts(self, share: int) -> int:
        """Into how many equal parts a process's share of a batch is cut.

        Raises:
            InputError: it cannot be.
        """
        at_once = min(self.microbatch or share, share)
        if share % at_once:
            fits = max(each for each in range(1, at_once) if share % each == 0)
            raise InputError(f"{share} images a process are no multiple of microbatch {at_once}: take {fits}")
        return share // at_once


def set_precision(config: SpeedConfig) -> None:
    """Tell torch how a GPU computes in float32, and whether it may try which convolution is fastest.

    Raises:
        InputError: the settings cannot work.
    """
    config.check()
    precision = "tf32" if config.tf32 else "ieee"
    torch.backends.cuda.matmul.fp32_precision = precision
    torch.backends.cudnn.conv.fp32_precision = precision  # pyright: ignore[reportAttributeAccessIssue]
    torch.backends.cudnn.benchmark = not config.deterministic
    torch.use_deterministic_algorithms(config.deterministic)


def compiled(model: nn.Module, config: SpeedConfig, run_dir: Path) -> nn.Module:
    """The model, compiled where that is asked for; the cache lies in the run's folder."""
    if config.compile == "none":
        return model
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(run_dir.absolute() / CACHE)  # torch has set it to a folder in /tmp
    model.compile(mode=config.compile, dynamic=False)  # in place: the names in its state stay
    return model
