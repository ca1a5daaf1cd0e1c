"""What a recipe is made of: everything that decides a training run, as values. The recipes are in `train/recipe.py`."""

import dataclasses
import math
import typing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from loaders import EvalTransform, LoaderConfig, OrderKind, TrainTransform
from loaders.plan import sizes
from prep.errors import InputError
from train.erase import EraseConfig
from train.mix import MixConfig
from train.model import ModelConfig, Sizes
from train.optim import OptimConfig
from train.speed import SpeedConfig

NOT_COMPARED = ("run", "data", "loader", "speed")  # where and how fast, not what: they may change when a run goes on


SpotKind = Literal["auto", "on", "off"]
HeadKind = Literal["auto", "keep", "new"]


@dataclass(frozen=True)
class DataConfig:
    """Which prepared dataset to use."""

    root: Path = Path("data/imagenet")  # as written by prep/shard.py
    train: str = "train"  # split to train on
    validation: str = "validation"  # split to evaluate on
    fraction: float = 1.0  # of each class's training images, for quick experiments
    classes: tuple[str, ...] = ()  # names, numbers or ranges as 0-99, numbered anew; none: all
    repeats: int = 1  # repeated augmentation (arXiv 1902.05509): times that a drawn image comes, windows apart
    order: OrderKind = "shuffle"  # or blocks, for storage that hates random reads


@dataclass(frozen=True)
class RunConfig:
    """Where a run is kept, and how often it logs, evaluates and saves."""

    dir: Path | None = None  # default: runs/RECIPE
    log_every: int = 12_800  # images
    evaluate_every: float = 1.0  # epochs
    save_every: float = 0.5  # epochs
    keep: int = 2  # newest checkpoints kept, beside the best by top-1 of the model and of its EMA
    most_bad_steps: int = 20  # in a row whose loss is not finite, before the run stops
    hang_minutes: float = 10.0  # without a step on some process, before the run is ended and that process named
    spot: SpotKind = "auto"  # watch for EC2's notice that a spot instance is about to end
    start_from: Path | None = None  # run, checkpoint or export whose weights a new run starts with (--run.from)
    from_optimizer: bool = False  # take over its optimizer's state (momentum) too
    from_head: HeadKind = "auto"  # its classifier: keep it, start a new one, or keep it if the classes are the same

    def check(self) -> None:
        """Check each setting on its own; raise InputError for one that cannot work."""
        for name in ("keep", "most_bad_steps", "log_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} is too few: take 1 or more")
        for name in ("evaluate_every", "save_every"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be more than 0 epochs, got {getattr(self, name)}: inf means never")
        if not self.hang_minutes > 0:
            raise InputError(f"hang_minutes {self.hang_minutes} is too short: take more than 0, or inf to never end")
        if self.start_from is None and (self.from_optimizer or self.from_head != "auto"):
            raise InputError(
                "--run.from-optimizer and --run.from-head need --run.from PATH: give it, or leave them out"
            )


@dataclass(frozen=True)
class Recipe:
    """A resolved recipe. Epochs and schedules count images, so they hold for any batch size."""

    name: str
    epochs: float
    batch_size: int = 256  # images a step, over all processes
    seed: int = 0
    amp: Literal["none", "bf16", "fp16"] = "bf16"  # autocast; fp16 with a gradient scaler
    label_smoothing: float = 0.1
    ema_decay: float = 0.9999  # of the averaged weights, a step
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    transform: TrainTransform = field(default_factory=TrainTransform)
    erase: EraseConfig = field(default_factory=EraseConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    evaluation: EvalTransform = field(default_factory=EvalTransform)
    data: DataConfig = field(default_factory=DataConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @property
    def run_dir(self) -> Path:
        return self.run.dir or Path("runs") / self.name

    def check(self) -> None:
        """Check the settings of a run's length and pace; raise InputError for one that cannot work."""
        self.run.check()
        if not 0 < self.epochs < math.inf:
            raise InputError(f"epochs must be a number above 0, got {self.epochs}: give --epochs 1 or more")
        warmup = self.optim.warmup_epochs
        if not 0 <= warmup <= self.epochs:  # the rate would never reach its peak
            raise InputError(
                f"warmup_epochs must be 0 to epochs, which is {self.epochs:g}, got {warmup:g}: "
                f"give --optim.warmup-epochs {self.epochs / 10:g}"
            )
        for name in ("ema_decay", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 0 and less than 1, got {getattr(self, name)}")

    def image_sizes(self, images_at_once: int = 2) -> Sizes:
        """The resolutions of training and evaluation.

        Args:
            images_at_once: in training, on a process.
        """
        train = (*(each for each in sizes(self.transform, self.epochs) if each != self.transform.size),)
        return Sizes((*train, self.transform.size), self.evaluation.size, images_at_once)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON can hold it."""
        fields = dataclasses.asdict(self)
        fields["data"]["root"], fields["run"]["dir"] = str(self.data.root), str(self.run_dir)
        fields["run"]["start_from"] = self.run.start_from and str(self.run.start_from)
        fields["loader"]["tuned"] = self.loader.tuned and str(self.loader.tuned)
        return fields

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Recipe":
        """The recipe that `to_dict` gave, also when it has been through JSON."""
        recipe = _from_dict(cls, fields)
        data = replace(recipe.data, root=Path(recipe.data.root))
        start_from = recipe.run.start_from and Path(recipe.run.start_from)
        run = replace(recipe.run, dir=recipe.run.dir and Path(recipe.run.dir), start_from=start_from)
        loader = replace(recipe.loader, tuned=recipe.loader.tuned and Path(recipe.loader.tuned))
        return replace(recipe, data=data, run=run, loader=loader)


def _from_dict(kind: Any, values: dict[str, Any]) -> Any:
    """A dataclass from nested dicts; JSON's lists are our tuples."""
    types = typing.get_type_hints(kind)
    arguments = {
        name: _from_dict(types[name], value)
        if dataclasses.is_dataclass(types[name])
        else tuple(value)
        if isinstance(value, list)
        else value
        for name, value in values.items()
    }
    return kind(**arguments)


def complete(fields: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe's dict as this version writes it, with defaults for fields that an older version did not have.

    So a run that an older version began goes on. Fields of a newer version stay as they are, to be found different.
    """
    try:
        return Recipe.from_dict(fields).to_dict()
    except (TypeError, KeyError):
        return fields


def first_difference(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> str | None:
    """The first field in which two recipes (by `to_dict`) differ in what they train, e.g. `optim.lr`."""
    for name in {**ours, **theirs}:
        a, b = ours.get(name), theirs.get(name)
        if not prefix and name in NOT_COMPARED:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            if inner := first_difference(a, b, f"{prefix}{name}."):
                return inner
        elif _plain(a) != _plain(b):
            return f"{prefix}{name}"
    return None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
