"""Settings of speed, which change a run by rounding alone: TF32, compilation, fused layers, graphs, microbatches."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from prep.errors import InputError

if TYPE_CHECKING:
    from torch import nn

CompileMode = Literal["none", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
FusedKind = Literal["auto", "on", "off"]
CACHE = "compiled"  # in the run folder, so that a resumed run does not compile again
# The modes that record CUDA graphs, each with the closest mode that records none.
WITHOUT_CUDA_GRAPHS: dict[CompileMode, CompileMode] = {
    "reduce-overhead": "default",
    "max-autotune": "max-autotune-no-cudagraphs",
}
GRAPH_REHEARSALS = 3  # the first run is eager, the second records the graph, the third replays it


@dataclass(frozen=True)
class SpeedConfig:
    """Settings of speed; a run may be resumed with others."""

    compile: CompileMode = "none"  # torch.compile's modes; reduce-overhead records CUDA graphs
    microbatch: int = 0  # images at once per process; gradients accumulate over its share of a batch; 0: all
    tf32: bool = True  # float32 operations may round to TF32 on a GPU's tensor cores
    deterministic: bool = False  # the same bits from run to run on a GPU too; slower
    fused: FusedKind = "auto"  # fuse a ResNet's BatchNorm, ReLU and addition (Triton kernels); auto: off
    graph: bool = False  # launch a step as CUDA graphs: faster if launching takes longer than running (small images)

    def check_speed(self) -> None:
        """Check each setting by itself.

        Raises:
            InputError: a setting cannot work.
        """
        if self.compile not in get_args(CompileMode):
            raise InputError(f"--speed.compile must be one of {', '.join(get_args(CompileMode))}, got {self.compile}")
        if self.fused not in get_args(FusedKind):
            raise InputError(f"--speed.fused must be one of {', '.join(get_args(FusedKind))}, got {self.fused}")
        if self.microbatch < 0:
            raise InputError(f"--speed.microbatch must be at least 1, or 0 for all at once, got {self.microbatch}")

    @property
    def num_rehearsals(self) -> int:
        """Passes that the network needs at a new resolution until a pass takes no longer than later ones."""
        return GRAPH_REHEARSALS if self.compile in WITHOUT_CUDA_GRAPHS else 1

    def num_parts(self, share: int) -> int:
        """Return the number of equal parts into which a process's share of a batch (images) is cut.

        Raises:
            InputError: the share cannot be cut into equal parts, or gradients cannot be accumulated over several.
        """
        at_once = min(self.microbatch or share, share)
        if share % at_once:
            fits = max(each for each in range(1, at_once) if share % each == 0)
            raise InputError(
                f"the batch per process ({share}) must be a multiple of --speed.microbatch ({at_once}): "
                f"give --speed.microbatch {fits}"
            )
        parts = share // at_once
        # The gradients of the first part would be in memory of the CUDA graph, which the replay for the second part
        # overwrites: torch then raises an error or adds up wrong values. Refused on a CPU too, where no graphs are
        # recorded, so that a recipe does not depend on the device.
        if parts > 1 and (other := WITHOUT_CUDA_GRAPHS.get(self.compile)):
            raise InputError(
                f"--speed.compile {self.compile} records CUDA graphs, which cannot add up gradients over {parts} parts "
                f"of {at_once} images: give --speed.microbatch 0 or --speed.compile {other}"
            )
        return parts


def set_precision(config: SpeedConfig) -> None:
    """Set torch's float32 precision on a GPU, and whether it may try which convolution is fastest.

    Raises:
        InputError: the settings cannot work.
    """
    import torch  # noqa: PLC0415  (the settings above are parsed without it)

    config.check_speed()
    # Set through the older names: they set the newer `fp32_precision` as well, and afterwards both can be read. Once
    # the newer names are set, reading the older ones raises "mix of the legacy and new APIs" (torch 2.11 to 2.15), and
    # inductor of 2.11 reads them whenever it autotunes: `get_float32_matmul_precision` and `allow_tf32`.
    torch.backends.cuda.matmul.allow_tf32 = config.tf32
    torch.backends.cudnn.allow_tf32 = config.tf32  # convolutions and recurrent networks
    torch.backends.cudnn.benchmark = not config.deterministic
    torch.use_deterministic_algorithms(config.deterministic)


def compile_model(model: "nn.Module", config: SpeedConfig, run_dir: Path) -> "nn.Module":
    """Compile a model in place if the settings say so; the cache is in the run folder. Return the model."""
    if config.compile == "none":
        return model
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(run_dir.absolute() / CACHE)  # torch has set it to a folder in /tmp
    model.compile(mode=config.compile, dynamic=False)  # in place: the names in its state_dict stay the same
    return model
