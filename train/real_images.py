"""Real images with which an export's files are compared: some of the validation split, or scikit-learn's photographs.

For `train/export.py --onnx --torch-export`. Random numbers would not do: a network answers them all alike, so that
its logits hardly depend on them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from loaders import LoaderConfig, build_loader
from loaders.batch import Normalize
from loaders.config import parse_root
from loaders.subset import Subset
from prep.dataset import Split
from prep.errors import InputError
from prep.preprocess import draw_pattern
from train.config import Recipe

NUM_IMAGES = 16  # of the validation split: enough for many classes, and seconds on one core at 224 pixels


@dataclass(frozen=True)
class RealImages:
    """B images as the network's input."""

    images_BCHW: torch.Tensor  # float32, normalized, contiguous
    source: str  # where they come from, without a local path
    note: str = ""  # the reason why they are not of the validation split; empty if they are

    def __len__(self) -> int:
        return len(self.images_BCHW)


def read_real_images(recipe: Recipe, pretrained_cfg: dict[str, Any], data: str | None) -> RealImages:
    """Return images of the recipe's validation split, or photographs if it is not on this machine.

    Args:
        pretrained_cfg: of the export; timm makes the transform of the photographs of it.
        data: a prepared dataset, folder or URL; None: the one that the model was trained on.
    """
    try:
        return _read_validation(recipe, data)
    except (InputError, OSError) as error:
        images_BCHW = _read_photographs(recipe, pretrained_cfg)
        source = f"{len(images_BCHW) - 1} parts of scikit-learn's two photographs and the generated image"
        return RealImages(
            images_BCHW,
            source,
            f"compared on photographs, because the validation images were not found on this machine ({error}); "
            "--data gives another path",
        )


def _read_validation(recipe: Recipe, data: str | None) -> RealImages:
    """Return at most NUM_IMAGES images, at equal distances in the split, without damaged ones.

    Raises:
        InputError: the split is not a folder on this machine, or it is damaged.
        OSError: the disk failed.
    """
    # Find the split.
    root = parse_root(data) if data is not None else recipe.data.folder
    if not isinstance(root, Path):
        raise InputError(f"{data or recipe.data.root} is in a bucket")
    if not (root / recipe.data.validation).is_dir():
        raise InputError(f"{root / recipe.data.validation} does not exist")
    split = Split(root, recipe.data.validation)

    # Decode with Pillow and the windows of evaluation.
    rows = np.unique(np.linspace(0, len(split) - 1, NUM_IMAGES).astype(np.int64))
    some = Subset(split, rows, list(range(len(split.class_names))))
    batch = next(iter(build_loader(some, recipe.evaluation, len(rows), config=LoaderConfig("reference"))))
    usable_B = batch.valid_B & ~batch.damaged_B
    if not usable_B.any():
        raise InputError(f"all of {len(rows)} images of {split.folder} are damaged")
    images_BCHW = Normalize(recipe.model.mean, recipe.model.std)(batch.images_BCHW[usable_B])
    name = f"{split.manifest.source.name}, split {recipe.data.validation}"
    return RealImages(images_BCHW.contiguous(), f"{len(images_BCHW)} images of {name}")


def _read_photographs(recipe: Recipe, pretrained_cfg: dict[str, Any]) -> torch.Tensor:
    """Return both photographs and the quarters of each, and last the generated image, float32 [11, 3, H, W]."""
    from sklearn.datasets import load_sample_images  # noqa: PLC0415 - takes a second

    transform: Any = create_transform(**resolve_data_config(pretrained_cfg=pretrained_cfg))
    pieces = [piece for pixels_HWC in load_sample_images().images for piece in _cut(Image.fromarray(pixels_HWC))]
    pattern = Image.fromarray(draw_pattern(recipe.evaluation.resize))
    return torch.stack([transform(piece) for piece in [*pieces, pattern]])


def _cut(photograph: Image.Image) -> list[Image.Image]:
    """Return a photograph and its four quarters."""
    width, height = photograph.width // 2, photograph.height // 2
    corners = [(left, top) for top in (0, height) for left in (0, width)]
    return [photograph, *(photograph.crop((left, top, left + width, top + height)) for left, top in corners)]
