"""Penstock's loaders: a plan decides which pixels make a batch, a backend executes it."""

from loaders.adapter import Epochs, build
from loaders.augment import AugmentConfig
from loaders.batch import Batch, World
from loaders.config import LoaderConfig
from loaders.loader import Loader, build_loader
from loaders.order import OrderKind, Sampling
from loaders.plan import EvalTransform, TrainTransform
from loaders.stats import Stats
from loaders.subset import select
from prep.dataset import Split
from prep.errors import InputError

__all__ = [
    "AugmentConfig",
    "Batch",
    "Epochs",
    "EvalTransform",
    "InputError",
    "Loader",
    "LoaderConfig",
    "OrderKind",
    "Sampling",
    "Split",
    "Stats",
    "TrainTransform",
    "World",
    "build",
    "build_loader",
    "select",
]
