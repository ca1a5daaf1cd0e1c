"""The settings of a measurement and their choices. Importing this module needs no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from loaders.config import LoaderConfig
from train.compile import CompileMode
from train.config import Recipe

MODES = ("all", "read", "decode", "loader", "model", "train")  # stages to measure
AmpMode = Literal["none", "bf16", "fp16"]  # as in train.config.Recipe


@dataclass(frozen=True)
class Setting:
    """The settings of one measurement, the same on every process."""

    batch_size: int = 64  # images per step and process
    size: int = 224  # pixels
    model: str = "resnet50d"  # name of a timm model
    amp: str = "bf16"  # an AmpMode
    compile: CompileMode = "none"
    microbatch: int = 0  # images at once per process; 0: all
    recipe: Recipe | None = None  # what the step does besides the fields above; None: the defaults of a recipe
    run_dir: Path = Path("runs/throughput")  # compiled code is cached here
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    repetitions: int = 5
    seconds: float = 3.0  # approximate length of a window of a stage
