"""Penstock's loaders: a plan decides which pixels make a batch, a backend produces them.

The names in `__all__` are imported when they are first used, so that a command can parse its flags without importing
torch. These modules never import torch, DALI or Pillow: `augment`, `order`, `philox`, `plan`, `config`, `tuned`,
`placement`, `world`, `quarantine`, `stats`, and `backends`, which imports the module of a backend when it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loaders.adapter import Epochs, build
    from loaders.augment import AugmentConfig
    from loaders.batch import Batch
    from loaders.config import LoaderConfig
    from loaders.loader import Loader, build_loader
    from loaders.opening import open_splits
    from loaders.order import OrderKind, Sampling
    from loaders.plan import EvalTransform, TrainTransform
    from loaders.stats import Stats
    from loaders.subset import select
    from loaders.world import World
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
    "open_splits",
    "select",
]

_MODULES = {
    "AugmentConfig": "loaders.augment",
    "Batch": "loaders.batch",
    "Epochs": "loaders.adapter",
    "EvalTransform": "loaders.plan",
    "InputError": "prep.errors",
    "Loader": "loaders.loader",
    "LoaderConfig": "loaders.config",
    "OrderKind": "loaders.order",
    "Sampling": "loaders.order",
    "Split": "prep.dataset",
    "Stats": "loaders.stats",
    "TrainTransform": "loaders.plan",
    "World": "loaders.world",
    "build": "loaders.adapter",
    "build_loader": "loaders.loader",
    "open_splits": "loaders.opening",
    "select": "loaders.subset",
}


def __getattr__(name: str) -> Any:
    """Import a name of `__all__` from its module when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    """Return the package's names, including those not imported yet."""
    return sorted({*globals(), *__all__})
