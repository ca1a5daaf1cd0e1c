"""The settings of a training run, as frozen dataclasses; `Recipe` contains all of them.

Needs neither torch nor timm, so that the command line can be parsed at once. The recipes are in `train/recipe.py`.
"""

import dataclasses
import math
import re
import typing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from loaders.config import NO_CACHE, LoaderConfig, parse_root
from loaders.order import OrderKind
from loaders.plan import EvalTransform, TrainTransform, sizes
from prep.errors import InputError
from prep.preprocess import IMAGENET_MEAN, IMAGENET_STD, Channels
from train.compile import SpeedConfig

# Sections that say where and how fast a run trains, not what it trains: they may change when a run is resumed.
NOT_COMPARED = ("run", "data", "loader", "speed")

# Files in a run folder.
RECIPE = "recipe.json"  # the resolved recipe
TUNED = "tuned.json"  # copy of the file that --loader.tuned named last
STARTS = "starts.jsonl"  # one line per start: commit, versions, devices, recipe
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
CONTINUE = "continue.json"  # exists from the moment a run leaves early until it is resumed
HANG = "hang.txt"  # which rank hung, and the stack of each thread
BAD_BATCHES = "bad_batches.json"  # images of the batches with a loss that was not finite
LOCK = "run.lock"  # locked by the process that writes into the folder; removed when that process ends normally
HOLDER = "holder.json"  # heartbeat of that process

AmpKind = Literal["none", "bf16", "fp16"]
HeadKind = Literal["auto", "keep", "new"]
LossKind = Literal["cross_entropy", "bce"]
LrScaling = Literal["linear", "sqrt", "none"]
ScheduleKind = Literal["cosine", "linear"]
SpotKind = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class DataConfig:
    """The prepared dataset."""

    root: str | Path = Path("data/imagenet")  # written by prep/shard.py; or s3://bucket/imagenet, with a cache
    cache: str = ""  # for a bucket: folder on a local disk to which its shards are fetched; or none
    train: str = "train"  # split to train on
    validation: str = "validation"  # split to evaluate on
    fraction: float = 1.0  # share of each class's training images, for quick experiments
    classes: tuple[str, ...] = ()  # names, numbers or ranges such as 0-99, renumbered from 0; none: all
    repeats: int = 1  # repeated augmentation (arXiv 1902.05509): how often each drawn image comes, in other windows
    order: OrderKind = "shuffle"  # or blocks, for storage that is slow at random reads

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", parse_root(self.root))  # a Path, or the text of a URL

    @property
    def folder(self) -> Path | None:
        """The dataset's folder on this machine: of a bucket, the cache; None without one."""
        if isinstance(self.root, Path):
            return self.root
        return Path(self.cache) if self.cache not in ("", NO_CACHE) else None


@dataclass(frozen=True)
class ModelConfig:
    """A timm model, by name."""

    name: str = "resnet50d"
    drop_path: float = 0.0  # stochastic depth: probability at the last block
    mean: Channels = IMAGENET_MEAN  # of RGB values in [0, 1]
    std: Channels = IMAGENET_STD
    blur_first: bool = False  # blur before each convolution with a stride (BlurPool, arXiv 1904.11486)
    prior_bias: bool = False  # the classifier's bias starts at -ln(classes): each class has a small probability
    pretrained: str = ""  # start from timm's weights with this tag, e.g. a1_in1k; default: timm's choice
    init: Path | None = None  # start from the weights in this file, checkpoint or export
    freeze: tuple[str, ...] = ()  # parts whose weights and running statistics stay as they are: stem, 1, 2, ... or body


@dataclass(frozen=True)
class OptimConfig:
    """SGD with Nesterov momentum, or another optimizer; the learning rate warms up linearly, then decays to zero."""

    name: str = "sgd"  # or any that timm.optim.list_optimizers() names and docs/models.md lists
    lr: float = 0.1  # peak, for a batch of 256
    lr_scaling: LrScaling = "linear"  # of lr with the batch size; timm's train.py uses sqrt for lamb and ada...
    momentum: float = 0.9  # only for optimizers that have it
    nesterov: bool = True  # only for sgd; elsewhere it is an option, or part of the name
    betas: tuple[float, ...] = ()  # only for optimizers that have them; none: the optimizer's default
    eps: float | None = None  # only for optimizers that have it; none: the optimizer's default
    options: tuple[str, ...] = ()  # further arguments of the optimizer, each NAME=VALUE
    weight_decay: float = 1e-4  # not applied to norms and biases
    decay_all: bool = False  # apply it to norms and biases too
    decoupled: bool = False  # only for sgd: each step multiplies weights by 1 - weight_decay * lr / peak lr
    warmup_epochs: float = 5.0
    schedule_epochs: float | None = None  # when the learning rate reaches zero; None: at the end of the run
    schedule: ScheduleKind = "cosine"  # half a cosine to zero, or a straight line


@dataclass(frozen=True)
class MixConfig:
    """Mixup or CutMix of every batch; if both have an alpha, a fair coin chooses for each batch."""

    mixup: float = 0.0  # alpha of the distribution Beta(alpha, alpha) of the share; 0: no Mixup
    cutmix: float = 0.0  # the same for CutMix
    until: float | None = None  # epoch at which both end


@dataclass(frozen=True)
class EraseConfig:
    """Random erasing."""

    probability: float = 0.0  # that an image gets an erased rectangle
    area: tuple[float, float] = (0.02, 1 / 3)  # of the rectangle, as a share of the image's
    ratio: tuple[float, float] = (0.3, 1 / 0.3)  # height / width
    until: float | None = None  # epoch at which it ends


@dataclass(frozen=True)
class RunConfig:
    """The run folder, and how often a run logs, evaluates and saves."""

    dir: Path | None = None  # default: runs/RECIPE
    mirror: str | None = None  # s3://BUCKET/runs/NAME: a copy of the folder, from which any machine resumes the run
    log_every: int = 12_800  # images
    evaluate_every: float = 1.0  # epochs
    save_every: float = 0.5  # epochs
    keep: int = 2  # newest checkpoints to keep, besides the best by top-1 of the model and of its EMA
    most_bad_steps: int = 20  # steps in a row with a loss that is not finite, before the run stops
    hang_minutes: float = 10.0  # without a step on some process, before the run ends and names that process
    spot: SpotKind = "auto"  # watch for EC2's notice that a spot instance is about to end
    start_from: Path | None = None  # run, checkpoint or export with the weights that a new run starts from (--run.from)
    from_optimizer: bool = False  # also load the state of its optimizer (momentum)
    from_head: HeadKind = "auto"  # its classifier: keep it, start a new one, or keep it if the classes are the same

    def check_intervals(self) -> None:
        """Check the settings that do not depend on the data.

        Raises:
            InputError: a setting cannot work.
        """
        for name in ("keep", "most_bad_steps", "log_every"):
            if getattr(self, name) < 1:
                raise InputError(f"run.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("evaluate_every", "save_every"):
            if not getattr(self, name) > 0:
                raise InputError(f"run.{name} must be more than 0 epochs (inf: never), got {getattr(self, name)}")
        if not self.hang_minutes > 0:
            raise InputError(f"run.hang_minutes must be more than 0 (inf: never end the run), got {self.hang_minutes}")
        if self.mirror is not None:
            check_mirror_url(self.mirror, "run.mirror")


def check_mirror_url(url: str, name: str) -> None:
    """Check that a URL names a run in S3.

    Raises:
        InputError: it does not; the message leaves out what may be a password or a signature.
    """
    if not re.fullmatch(r"s3://[\w.-]+(/[^/\s?#]+)*/?", url):
        shown = re.sub("//[^/]*@", "//***@", re.split("[?#]", url)[0])
        raise InputError(f"{name} must be a URL such as s3://BUCKET/runs/NAME, got {shown!r}")


@dataclass(frozen=True)
class Sizes:
    """The resolutions at which a network runs, in pixels of the square image that it receives."""

    train: tuple[int, ...]  # in the order of training; the weights are made for the last one
    evaluate: int
    images_at_once: int = 2  # in training, per process: BatchNorm needs more than one value for each channel

    @property
    def main(self) -> int:
        """The resolution at the end of training."""
        return self.train[-1]

    @property
    def differ(self) -> bool:
        """True if the network runs at more than one resolution."""
        return {*self.train, self.evaluate} != {self.main}


@dataclass(frozen=True)
class Recipe:
    """A resolved recipe. Epochs and schedules count images, so they hold for any batch size."""

    name: str
    epochs: float
    batch_size: int = 256  # images per step, over all processes
    seed: int = 0
    amp: AmpKind = "bf16"  # autocast; fp16 with a gradient scaler
    loss: LossKind = "cross_entropy"  # or bce: binary cross-entropy of each class, summed over the classes
    label_smoothing: float = 0.1
    ema_decay: float = 0.9999  # of the averaged weights, per step
    ema_half_life: float | None = None  # in images, in place of ema_decay; it holds for any batch size and ema_every
    ema_every: int = 1  # steps between two updates of the averaged weights
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
        """The run folder."""
        return self.run.dir or Path("runs") / self.name

    @property
    def schedule_epochs(self) -> float:
        """The epochs of the complete schedule of the learning rate; the run may stop before its end."""
        return self.epochs if self.optim.schedule_epochs is None else self.optim.schedule_epochs

    def describe_epochs(self) -> str:
        """Return the length of the run, and of its schedule if that differs: `24 epochs of a schedule of 28`."""
        length = self.optim.schedule_epochs
        schedule = "" if length in (None, self.epochs) else f" of a schedule of {length:g}"
        return f"{self.epochs:g} epochs{schedule}"

    def check_lengths(self) -> None:
        """Check the lengths of the run and its schedule, its intervals, its loss and its averages.

        Raises:
            InputError: a setting cannot work.
        """
        self.run.check_intervals()
        if not 0 < self.epochs < math.inf:
            raise InputError(f"epochs must be a number above 0, got {self.epochs}: give --epochs 1 or more")
        if not self.epochs <= self.schedule_epochs < math.inf:  # beyond its end the learning rate would be zero
            raise InputError(
                f"schedule_epochs must be at least epochs, which is {self.epochs:g}, got {self.schedule_epochs:g}: "
                f"give --optim.schedule-epochs {self.epochs:g} or more, or fewer --epochs"
            )
        warmup, name = self.optim.warmup_epochs, "epochs" if self.optim.schedule_epochs is None else "schedule_epochs"
        if not 0 <= warmup <= self.schedule_epochs:  # the learning rate would never reach its peak
            raise InputError(
                f"warmup_epochs must be 0 to {name}, which is {self.schedule_epochs:g}, got {warmup:g}: "
                f"give --optim.warmup-epochs {self.epochs / 10:g}"
            )
        for name in ("ema_decay", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 0 and less than 1, got {getattr(self, name)}")
        if self.ema_half_life is not None and not 0 < self.ema_half_life < math.inf:
            raise InputError(
                f"ema_half_life must be a number of images above 0, got {self.ema_half_life:g}: "
                f"give --ema-half-life {1000 * self.batch_size} or None, which uses ema_decay"
            )
        if self.ema_every < 1:
            raise InputError(f"ema_every must be at least 1 step, got {self.ema_every}")
        if self.loss not in typing.get_args(LossKind):
            raise InputError(f"loss must be one of {', '.join(typing.get_args(LossKind))}, got {self.loss}")

    def image_sizes(self, images_at_once: int = 2) -> Sizes:
        """Return the resolutions of training and evaluation.

        Args:
            images_at_once: in training, per process.
        """
        train = (*(each for each in sizes(self.transform, self.epochs) if each != self.transform.size),)
        return Sizes((*train, self.transform.size), self.evaluation.size, images_at_once)

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as nested dicts that JSON can hold."""
        fields = dataclasses.asdict(self)
        fields["data"]["root"], fields["run"]["dir"] = str(self.data.root), str(self.run_dir)
        fields["run"]["start_from"] = self.run.start_from and str(self.run.start_from)
        fields["loader"]["tuned"] = self.loader.tuned and str(self.loader.tuned)
        fields["model"]["init"] = self.model.init and str(self.model.init.resolve())
        return fields

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Recipe":
        """Return the recipe that `to_dict` described, also after a round trip through JSON."""
        recipe = _from_dict(cls, fields)
        start_from = recipe.run.start_from and Path(recipe.run.start_from)
        run = replace(recipe.run, dir=recipe.run.dir and Path(recipe.run.dir), start_from=start_from)
        loader = replace(recipe.loader, tuned=recipe.loader.tuned and Path(recipe.loader.tuned))
        model = replace(recipe.model, init=recipe.model.init and Path(recipe.model.init))
        return replace(recipe, run=run, loader=loader, model=model)


def _from_dict(kind: Any, values: dict[str, Any]) -> Any:
    """Build a dataclass from nested dicts; lists, which JSON makes of tuples, become tuples."""
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

    So a run that an older version began can be resumed. A dict with fields of a newer version is returned unchanged,
    and is then found to be different.
    """
    try:
        return Recipe.from_dict(fields).to_dict()
    except (TypeError, KeyError):
        return fields


def first_difference(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> str | None:
    """Return the first field, e.g. `optim.lr`, in which two recipes (as `to_dict` gives them) train differently.

    The sections in NOT_COMPARED are ignored. None: the recipes train the same.
    """
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
