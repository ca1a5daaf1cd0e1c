"""What the stages are measured with."""

from dataclasses import dataclass, field
from pathlib import Path

from loaders import LoaderConfig
from train.speed import CompileMode


@dataclass(frozen=True)
class Setting:
    """One measurement's settings, the same on every process."""

    batch_size: int = 64  # images a step and process
    size: int = 224  # pixels
    model: str = "resnet50d"  # any of timm's
    amp: str = "bf16"
    compile: CompileMode = "none"
    run_dir: Path = Path("runs/throughput")  # where compiled code lies
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    repetitions: int = 5
    seconds: float = 3.0  # a repetition of a stage, about
