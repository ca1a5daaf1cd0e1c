"""Recipes: everything that makes a training run, as values. A recipe is a function; its docstring says what it gives.

To add one: a function here and its name in RECIPES; most are `replace(another(), ...)`.
"""

import dataclasses
import typing
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from loaders import EvalTransform, LoaderConfig, OrderKind, TrainTransform
from train.model import ModelConfig
from train.optim import OptimConfig

NOT_COMPARED = ("run", "data", "loader")  # where and how fast, not what: they may change when a run goes on


@dataclass(frozen=True)
class DataConfig:
    """Which prepared dataset to use."""

    root: Path = Path("data/imagenet")  # as written by prep/shard.py
    train: str = "train"  # split to train on
    validation: str = "validation"  # split to evaluate on
    fraction: float = 1.0  # of each class's training images, for quick experiments
    classes: tuple[str, ...] = ()  # names, numbers or ranges as 0-99, numbered anew; none: all
    order: OrderKind = "shuffle"  # or blocks, for storage that hates random reads


@dataclass(frozen=True)
class RunConfig:
    """Where a run is kept, and how often it logs, evaluates and saves."""

    dir: Path | None = None  # default: runs/RECIPE
    log_every: int = 12_800  # images
    evaluate_every: float = 1.0  # epochs
    save_every: float = 0.5  # epochs
    keep: int = 2  # newest checkpoints kept, beside the best


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
    evaluation: EvalTransform = field(default_factory=EvalTransform)
    data: DataConfig = field(default_factory=DataConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @property
    def run_dir(self) -> Path:
        return self.run.dir or Path("runs") / self.name

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON can hold it."""
        fields = dataclasses.asdict(self)
        fields["data"]["root"], fields["run"]["dir"] = str(self.data.root), str(self.run_dir)
        return fields

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Recipe":
        """The recipe that `to_dict` gave, also when it has been through JSON."""
        recipe = _from_dict(cls, fields)
        data = replace(recipe.data, root=Path(recipe.data.root))
        return replace(recipe, data=data, run=replace(recipe.run, dir=recipe.run.dir and Path(recipe.run.dir)))


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


def seed_113() -> Recipe:
    """ResNet-50D on ImageNet-1k, the plain recipe: 113 epochs at 224 px, batch 256 (4 GPUs x 64).

    Expected: not measured by Penstock yet. The run that it follows reported 75.1% EMA top-1 at epoch 80 and
    78.5% at 113, with augmentation beyond this recipe's.
    Hardware: 4 GPUs, e.g. an EC2 g5.12xlarge (4 x A10G).
    Command: torchrun --nproc-per-node 4 train/main.py seed_113 --data.root data/imagenet
    """
    return Recipe(
        name="seed_113",
        epochs=113,
        optim=OptimConfig(lr=0.1, momentum=0.9, weight_decay=1e-4, warmup_epochs=5),
        model=ModelConfig("resnet50d"),
    )


def tiny_imagenet() -> Recipe:
    """ResNet-18 on Tiny ImageNet (200 classes, 64 px), 30 epochs: a real run for one small GPU, or a CPU's patience.

    Expected: not measured at full length yet (docs/LOG.md has what short CPU runs gave).
    Command: torchrun --nproc-per-node 2 train/main.py tiny_imagenet --data.root data/tiny-imagenet
    """
    return Recipe(
        name="tiny_imagenet",
        epochs=30,
        amp="none",
        ema_decay=0.998,
        model=ModelConfig("resnet18"),
        optim=OptimConfig(lr=0.2, weight_decay=5e-4, warmup_epochs=2),
        transform=TrainTransform(size=64, scale=(0.25, 1.0)),
        evaluation=EvalTransform(size=64, resize=64),
        data=DataConfig(Path("data/tiny-imagenet")),
        run=RunConfig(log_every=2_560),
    )


def demo() -> Recipe:
    """A small ResNet on scikit-learn's digits: the whole way through on a laptop's CPU, in a minute or two.

    Expected: 98% EMA top-1 or more on the 360 held-out digits (docs/LOG.md).
    Command: make demo
    """
    return Recipe(
        name="demo",
        epochs=8,
        batch_size=64,
        amp="none",
        ema_decay=0.97,
        model=ModelConfig("resnet10t"),
        optim=OptimConfig(lr=0.2, weight_decay=5e-4, warmup_epochs=1),
        transform=TrainTransform(size=32, scale=(0.6, 1.0), hflip=0.0),  # a mirrored digit is another shape
        evaluation=EvalTransform(size=32, resize=32),
        data=DataConfig(Path("data/digits")),
        run=RunConfig(log_every=1_437, save_every=2.0),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {recipe.__name__: recipe for recipe in (seed_113, tiny_imagenet, demo)}
