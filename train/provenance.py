"""Where a checkpoint's weights come from and what is known of them, gathered for `train/export.py`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loaders.subset import find_classes
from prep.dataset import MANIFEST, Manifest, Origin, read_manifest
from prep.errors import InputError
from train.config import DataConfig, Recipe
from train.measured import Accuracy, Which, read_metrics, read_scores


@dataclass(frozen=True)
class Provenance:
    """All that an export says beside the weights."""

    recipe: Recipe
    which: Which  # of a checkpoint's two sets of weights
    clock: int  # images seen in training
    commit: str | None  # of the code that trained
    class_names: tuple[str, ...] | None  # one a label; None: the data was not at hand
    source: Origin | None  # of the training data
    accuracy: Accuracy | None  # None: never evaluated


def trace(meta: dict[str, Any], which: Which, num_classes: int, data: Path | None, scores: Path | None) -> Provenance:
    """What is known of a checkpoint with this meta.json.

    Args:
        data: a prepared dataset; None: the one it was trained on, if it is still there.
        scores: of `train/evaluate.py`; None: what was measured during training.

    Raises:
        InputError: the data or the scores are not its own.
    """
    recipe = Recipe.from_dict(meta["recipe"])
    manifest = _find_manifest(recipe.data, data)
    names = _choose_names(manifest, recipe.data) if manifest else None
    source = manifest.source if manifest else None
    if names is not None and len(names) != num_classes:
        raise InputError(
            f"the dataset has {len(names):,} classes and the checkpoint {num_classes:,}: "
            "give --data with what it was trained on"
        )
    if scores is not None:
        accuracy = read_scores(scores, meta, recipe, which)
    else:
        accuracy = read_metrics(meta, recipe, which, source.name if source else None)
    return Provenance(recipe, which, meta["clock"], meta["commit"], names, source, accuracy)


def _find_manifest(data: DataConfig, root: Path | None) -> Manifest | None:
    folder = (root or data.root) / data.train
    return read_manifest(folder) if root or (folder / MANIFEST).is_file() else None


def _choose_names(manifest: Manifest, data: DataConfig) -> tuple[str, ...]:
    """The names of the classes trained on, one a label."""
    labels = sorted({label for word in data.classes for label in find_classes(word, manifest.class_names)})
    return tuple(manifest.class_names[label] for label in labels) if labels else manifest.class_names
