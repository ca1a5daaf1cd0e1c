"""A checkpoint's models for those who look at them, `train/evaluate.py` and `train/export.py`."""

import copy
from pathlib import Path

import torch
from torch import nn

from prep.errors import InputError
from train.checkpoint import META, find_fault, load_weights, newest_whole
from train.config import Recipe
from train.model import build_model
from train.run_folder import CHECKPOINTS


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a user means by a run folder (its newest whole one) or a checkpoint's own folder.

    Raises:
        InputError: there is none, or it is damaged.
    """
    if (path / META).exists():
        if fault := find_fault(path):
            raise InputError(f"{path} is damaged ({fault}): take another checkpoint")
        return path
    newest, _ = newest_whole(path / CHECKPOINTS)
    if newest is None:
        raise InputError(
            f"{path} holds no whole checkpoint: give a run folder of train/main.py or one of its step_ folders"
        )
    return newest


def restore(path: Path, recipe: Recipe, num_classes: int, device: torch.device) -> dict[str, nn.Module]:
    """A checkpoint's two networks by name: `model`, as trained, and `ema`, its averaged weights.

    Raises:
        InputError: the weights are not those of such a model, or a run that is in progress has deleted them meanwhile.
    """
    model = build_model(recipe.model, num_classes, device, recipe.image_sizes())
    models = {"model": model, "ema": copy.deepcopy(model)}
    try:
        load_weights(path, **models)
    except OSError as error:
        raise InputError(f"{path} can no longer be read ({error}): start again to take a newer one") from error
    return models
