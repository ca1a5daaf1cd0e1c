"""The network whose logits tell whether two decoders' pixels mean the same to it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from torch import nn

from loaders.normalize import Normalize
from prep.errors import InputError
from prep.preprocess import IMAGENET_MEAN, IMAGENET_STD
from train.checkpoint import read_meta
from train.config import Recipe
from train.export import ARTIFACT, count_classes
from train.model import ModelConfig, build_model
from train.restore import find_checkpoint, restore

Logits = Callable[[torch.Tensor], torch.Tensor]  # uint8 [B, 3, H, W] on any device -> float32 [B, K] on the CPU


@dataclass(frozen=True)
class Judge:
    """A network, on the CPU so that only the pixels differ."""

    what: str
    is_trained: bool  # else its top-1 means nothing
    logits: Logits


def find_judge(path: Path | None, num_classes: int, seed: int) -> Judge:
    """An exported model or a checkpoint of train/main.py; without either resnet50d with random weights.

    Raises:
        InputError: there is no model at `path`.
    """
    if path is None:
        torch.manual_seed(seed)
        network = build_model(ModelConfig(), num_classes, torch.device("cpu"))
        return Judge("resnet50d, random weights", False, _wrap(network, Normalize(IMAGENET_MEAN, IMAGENET_STD)))
    if (path / ARTIFACT).is_file():
        facts = json.loads((path / ARTIFACT).read_text())
        network = timm.create_model(f"local-dir:{path}", pretrained=True)
        normalize = Normalize(*(tuple(facts["preprocessing"][name]) for name in ("mean", "std")))
        return Judge(f"{facts['architecture']}, {path.name}", True, _wrap(network, normalize))
    if not path.is_dir():
        raise InputError(f"{path} is no folder: give --model an export of train/export.py or a run of train/main.py")
    checkpoint = find_checkpoint(path)
    recipe = Recipe.from_dict(read_meta(checkpoint)["recipe"])
    classes = count_classes(checkpoint, recipe)
    network = restore(checkpoint, recipe, classes, torch.device("cpu"))["ema"]
    return Judge(
        f"{recipe.model.name}, {checkpoint.name}", True, _wrap(network, Normalize(recipe.model.mean, recipe.model.std))
    )


def _wrap(network: nn.Module, normalize: Normalize) -> Logits:
    network.eval()

    @torch.inference_mode()
    def logits(images_BCHW: torch.Tensor) -> torch.Tensor:
        return network(normalize(images_BCHW.cpu()))

    return logits
