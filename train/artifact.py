"""What an export holds beside the weights: timm's configuration, and `artifact.json` for those who serve the model."""

import math
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from loaders import EvalTransform
from loaders.normalize import Normalize
from prep.preprocess import PATTERN, draw_pattern
from train.config import Recipe
from train.model import size_options
from train.provenance import Provenance

FORMAT = 1
STRUCTURE = ("architecture", "first_conv", "classifier", "fixed_input_size")  # facts of a network, whatever its weights


def describe_for_timm(model: nn.Module, recipe: Recipe) -> dict[str, Any]:
    """A `pretrained_cfg` with what was really used; timm's own is that of its published weights."""
    theirs: Any = model.pretrained_cfg
    transform = recipe.evaluation
    return {
        **{name: theirs[name] for name in STRUCTURE if name in theirs},
        "input_size": (3, transform.size, transform.size),
        "crop_pct": crop_share(transform),
        "crop_mode": "center",
        "interpolation": "bilinear",
        "mean": recipe.model.mean,
        "std": recipe.model.std,
        "num_classes": model.num_classes,
    }


def crop_share(transform: EvalTransform) -> float:
    """The crop as a share of the short side, such that timm, which divides by it and rounds down, resizes alike."""
    share = transform.size / transform.resize
    return share if math.floor(transform.size / share) == transform.resize else math.nextafter(share, 0)


def describe_for_servers(model: nn.Module, facts: Provenance, weights_sha256: str) -> dict[str, Any]:
    """`artifact.json`: recorded accuracy, preprocessing, class names, and logits that a server can check itself by."""
    recipe = facts.recipe
    return {
        "format": FORMAT,
        "architecture": recipe.model.name,
        "model_args": size_options(recipe.model, recipe.image_sizes()),  # of timm.create_model, as in config.json
        "weights": facts.which,
        "weights_sha256": weights_sha256,
        "recipe": recipe.name,
        "images_seen": facts.clock,
        "commit": facts.commit,
        "preprocessing": {
            "resize": recipe.evaluation.resize,  # of the short side; the long one is truncated to whole pixels
            "crop": recipe.evaluation.size,  # from the centre
            "interpolation": "bilinear",
            "antialias": True,
            "exif_orientation": "ignored",
            "mean": recipe.model.mean,  # of RGB in [0, 1]
            "std": recipe.model.std,
        },
        "class_names": facts.class_names,
        "accuracy": asdict(facts.accuracy) if facts.accuracy else None,
        "golden": {"image": PATTERN, "logits": golden_logits(model, recipe).tolist()},
    }


def golden_logits(model: nn.Module, recipe: Recipe) -> torch.Tensor:
    """The logits of a model in evaluation mode for the generated image, float32 [K], on the CPU without autocast."""
    pixels_HWC = torch.from_numpy(draw_pattern(recipe.evaluation.size))
    images_BCHW = Normalize(recipe.model.mean, recipe.model.std)(pixels_HWC.permute(2, 0, 1)[None])
    with torch.inference_mode():
        return model(images_BCHW.contiguous())[0]
