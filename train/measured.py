"""How good a checkpoint was measured to be, for `train/export.py`: by itself while it trained, or by evaluation."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prep.errors import InputError
from train.checkpoint import EMA, MODEL
from train.config import Recipe
from train.validate import Hits

Which = Literal["ema", "model"]
FILES: dict[Which, str] = {"ema": EMA, "model": MODEL}  # of a checkpoint
PREFIXES: dict[Which, str] = {"ema": "ema_", "model": ""}  # of their validation metrics
FIGURES = ("num_images", "num_damaged", "num_top1", "num_top5", "loss", "ece_percent")


@dataclass(frozen=True)
class Accuracy(Hits):
    """Of a split, with the preprocessing of the recipe's evaluation."""

    dataset: str | None  # its name; None: not known
    split: str
    loss: float  # mean cross-entropy, nats
    ece_percent: float | None = None  # expected calibration error, where it was measured


def read_metrics(meta: dict[str, Any], recipe: Recipe, which: Which, dataset: str | None) -> Accuracy | None:
    """What a checkpoint says of itself; None where it was saved without an evaluation."""
    metrics, prefix = meta["metrics"], PREFIXES[which]
    if not metrics:
        return None
    top1, top5, num_images = metrics[f"{prefix}top1"], metrics[f"{prefix}top5"], metrics["num_images"]
    return Accuracy(
        dataset=dataset,
        split=recipe.data.validation,
        num_images=num_images,
        num_damaged=metrics["num_damaged"],
        num_top1=round(top1 * num_images / 100),
        num_top5=round(top5 * num_images / 100),
        loss=metrics[f"{prefix}loss"],
    )


def read_scores(path: Path, meta: dict[str, Any], recipe: Recipe, which: Which) -> Accuracy:
    """What `train/evaluate.py` printed or wrote as scores.json.

    Raises:
        InputError: it is of other weights, or of images preprocessed in another way than the export tells others to.
    """
    try:
        scores = json.loads(path.read_text())
        same_weights = scores["files"][FILES[which]] == meta["files"][FILES[which]]
        transform = scores["size"], scores["resize"], scores["flip"]
        figures = {name: scores[which][name] for name in FIGURES} if which in scores else {}
        dataset, split = scores["data"]["source"], scores["data"]["split"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} holds no scores ({error!r}): give a scores.json of train/evaluate.py") from error
    if not same_weights or not figures:
        raise InputError(f"{path} holds no scores of these {which} weights: evaluate this checkpoint")
    if transform != (recipe.evaluation.size, recipe.evaluation.resize, False):
        raise InputError(
            f"{path} was measured with another --size, --resize or --flip than the recipe's, which are exported: "
            "evaluate without them"
        )
    return Accuracy(dataset=dataset, split=split, **figures)
