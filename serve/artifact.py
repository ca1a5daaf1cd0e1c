"""The model to serve: an exported artifact, which is checked against all that it says of itself, or bare weights.

The first stage of serve; `serve/judge.py` and `serve/cam.py` use what it gives. It meets training in files alone.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from prep.errors import InputError
from prep.preprocess import draw_pattern
from serve.preprocess import Preprocessing, to_tensor
from serve.weights import build, build_for_size, fill, read_weights

FORMAT = 1
WEIGHTS, ARTIFACT = "model.safetensors", "artifact.json"
DEFAULT_ARCHITECTURE = "resnet50d"
TOLERANCE = 1e-3  # of the largest logit: another machine adds up in another order (1e-6), other weights miss by far


@dataclass(frozen=True)
class Recorded:
    """The accuracy that an artifact says was measured."""

    num_images: int
    num_top1: int
    split: str
    dataset: str | None

    @property
    def top1(self) -> float:
        """Percent."""
        return 100 * self.num_top1 / self.num_images


@dataclass(frozen=True)
class Served:
    """A network in evaluation mode, and what is known of it."""

    model: nn.Module
    name: str
    num_classes: int
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None = None  # one a label
    recorded: Recorded | None = None


def load_artifact(folder: Path) -> Served:
    """What `train/export.py` wrote.

    Raises:
        InputError: it is something else, or damaged, or computes other logits than it records.
    """
    refuse_checkpoint(folder)
    facts = _read_json(folder / ARTIFACT)
    if facts.get("format") != FORMAT:
        raise InputError(f"{folder / ARTIFACT} is of format {facts.get('format')}, not {FORMAT}: export it anew")
    try:
        served, golden_K = _parse(folder, facts)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / ARTIFACT} is damaged ({error!r}): export it anew") from error
    check_golden(served, golden_K, folder)
    return served


def _parse(folder: Path, facts: dict[str, Any]) -> tuple[Served, torch.Tensor]:
    golden_K = torch.tensor(facts["golden"]["logits"], dtype=torch.float32)
    names = tuple(map(str, facts["class_names"])) if facts["class_names"] else None
    if names is not None and len(names) != len(golden_K):
        raise InputError(f"{folder / ARTIFACT} names {len(names)} of {len(golden_K)} classes: export it anew")
    path = folder / WEIGHTS
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != facts["weights_sha256"]:
        raise InputError(f"{path} is not what was exported (its SHA-256 differs): export it anew")
    model = fill(build(facts["architecture"], len(golden_K), facts.get("model_args")), read_weights(path), path)
    served = Served(
        model=model,
        name=f"{facts['architecture']}, {facts['weights']} of {facts['recipe']} after {facts['images_seen']:,} images",
        num_classes=len(golden_K),
        preprocessing=_parse_preprocessing(facts["preprocessing"]),
        class_names=names,
        recorded=_parse_accuracy(facts["accuracy"]),
    )
    return served, golden_K


def _parse_preprocessing(fields: dict[str, Any]) -> Preprocessing:
    if fields["interpolation"] != "bilinear":
        raise InputError(f"the artifact wants {fields['interpolation']} interpolation, bilinear is known: export anew")
    found = Preprocessing(fields["resize"], fields["crop"], tuple(fields["mean"]), tuple(fields["std"]))
    found.check()
    return found


def _parse_accuracy(fields: dict[str, Any] | None) -> Recorded | None:
    if not fields or not fields["num_images"]:
        return None
    return Recorded(fields["num_images"], fields["num_top1"], fields["split"], fields["dataset"])


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path} does not exist: make an artifact with `python train/export.py CHECKPOINT --out DIR`")
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}): export it anew") from error


def refuse_checkpoint(path: Path) -> None:
    """Raises InputError with the command that exports it, where a path is of a training run."""
    folder = path if path.is_dir() else path.parent
    is_checkpoint = (folder / "meta.json").is_file() and (folder / "ema.safetensors").is_file()
    if is_checkpoint or (path.is_dir() and (path / "checkpoints").is_dir()):
        raise InputError(
            f"{path} is of a training run, which is exported first: "
            f"python train/export.py {folder} --out {folder.name}-export"
        )


def check_golden(served: Served, golden_K: torch.Tensor, folder: Path) -> None:
    """Raises InputError where the network computes other logits of the generated image than were recorded."""
    picture = Image.fromarray(draw_pattern(served.preprocessing.crop))
    with torch.inference_mode():
        logits_K = served.model(to_tensor(picture, served.preprocessing)[None])[0]
    difference = (logits_K - golden_K).abs().max()
    if not difference <= TOLERANCE * golden_K.abs().max().clamp(min=1):
        raise InputError(
            f"{folder} computes other logits than it records (by {difference:.3g}), "
            "so it is another model or another timm: export it anew"
        )


def load_bare(path: Path, architecture: str, num_classes: int, preprocessing: Preprocessing) -> Served:
    """Weights without a word about them.

    Raises:
        InputError: they are not all of this architecture's and nothing else.
    """
    refuse_checkpoint(path)
    if (path.parent / ARTIFACT).is_file():
        raise InputError(f"{path} is part of an artifact, which says how good it is: give the folder {path.parent}")
    preprocessing.check()
    model = fill(build_for_size(architecture, num_classes, preprocessing.crop), read_weights(path), path)
    return Served(model, f"{architecture} from {path.name}", num_classes, preprocessing)
