"""Penstock's loaders: a plan decides which pixels make a batch, a backend executes it."""

from loaders.batch import Batch, World
from loaders.loader import Loader, LoaderConfig, build_loader
from loaders.plan import EvalTransform, TrainTransform
from prep.dataset import InputError, Split

__all__ = [
    "Batch",
    "EvalTransform",
    "InputError",
    "Loader",
    "LoaderConfig",
    "Split",
    "TrainTransform",
    "World",
    "build_loader",
]
