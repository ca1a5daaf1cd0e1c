"""The network that compares decoders: pixels of two decoders should give it the same logits."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from loaders.batch import Normalize
from prep.errors import InputError
from prep.preprocess import IMAGENET_MEAN, IMAGENET_STD
from serve.artifact import load_artifact
from train.checkpoint import find_checkpoint, read_meta, restore_models
from train.config import ModelConfig, Recipe
from train.export import ARTIFACT, count_classes
from train.model import build_model

Logits = Callable[[torch.Tensor], torch.Tensor]  # uint8 [B, 3, H, W] on any device -> float32 [B, K] on the CPU


@dataclass(frozen=True)
class ProbeNetwork:
    """A network in evaluation mode. It runs on the CPU, so that only the pixels differ."""

    what: str  # its name, for the record
    is_trained: bool  # with random weights its top-1 has no meaning
    logits: Logits


def load_probe_network(path: Path | None, num_classes: int, seed: int) -> ProbeNetwork:
    """Load an exported model or a checkpoint of train/main.py; without a path, build resnet50d with random weights.

    Raises:
        InputError: there is no model at `path`.
    """
    # No model was given.
    if path is None:
        torch.manual_seed(seed)
        network = build_model(ModelConfig(), num_classes, torch.device("cpu"))
        return ProbeNetwork("resnet50d, random weights", False, _wrap(network, Normalize(IMAGENET_MEAN, IMAGENET_STD)))

    # An export of train/export.py.
    if (path / ARTIFACT).is_file():
        facts = json.loads((path / ARTIFACT).read_text())
        served = load_artifact(path)
        normalize = Normalize(served.preprocessing.mean, served.preprocessing.std)
        return ProbeNetwork(f"{facts['architecture']}, {path.name}", True, _wrap(served.model, normalize))

    # A checkpoint: its EMA weights.
    if not path.is_dir():
        raise InputError(f"{path} is not a folder: give --model an export of train/export.py or a run of train/main.py")
    checkpoint = find_checkpoint(path)
    recipe = Recipe.from_dict(read_meta(checkpoint)["recipe"])
    classes = count_classes(checkpoint, recipe)
    network = restore_models(checkpoint, recipe, classes, torch.device("cpu"))["ema"]
    return ProbeNetwork(
        f"{recipe.model.name}, {checkpoint.name}", True, _wrap(network, Normalize(recipe.model.mean, recipe.model.std))
    )


def _wrap(network: nn.Module, normalize: Normalize) -> Logits:
    network.eval()

    @torch.inference_mode()
    def logits(images_BCHW: torch.Tensor) -> torch.Tensor:
        return network(normalize(images_BCHW.cpu()))

    return logits
