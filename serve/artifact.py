"""Load an exported artifact, checked against everything that it records.

For `serve/loading.py`, which also loads models without an artifact. It shares files with training, no code.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from prep.blur import is_blurred
from prep.errors import InputError
from prep.files import sha256_of_file
from prep.preprocess import draw_pattern
from prep.weights import read_weights
from serve.preprocess import Preprocessing, to_tensor
from serve.weights import build_network, fill_network

FORMAT = 1
WEIGHTS, ARTIFACT = "model.safetensors", "artifact.json"
# Relative to the largest logit. Another machine sums in another order, which changes logits by about 1e-6; other
# weights change them by far more than this.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Recorded:
    """The measured accuracy that an artifact records."""

    num_images: int
    num_top1: int
    split: str
    dataset: str | None

    @property
    def top1(self) -> float:
        """Top-1 accuracy in percent."""
        return 100 * self.num_top1 / self.num_images


@dataclass(frozen=True)
class Served:
    """A network in evaluation mode, and the facts that its artifact records."""

    model: nn.Module
    name: str
    num_classes: int
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None = None  # in the order of the labels
    recorded: Recorded | None = None
    # What was chosen and assumed when a model without an artifact was loaded, one sentence each; for the output and the
    # caption of pictures.
    notes: tuple[str, ...] = ()


def load_artifact(folder: Path) -> Served:
    """Load a folder written by `train/export.py`.

    Raises:
        InputError: it is something else, is damaged, or computes other logits than it records.
    """
    refuse_checkpoint(folder)
    facts = _read_json(folder / ARTIFACT)
    if facts.get("format") != FORMAT:
        raise InputError(f"{folder / ARTIFACT} has format {facts.get('format')}, expected {FORMAT}: export it again")
    try:
        served, golden_K = _parse(folder, facts)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / ARTIFACT} is damaged ({error!r}): export it again") from error
    check_golden(served, golden_K, folder)
    return served


def _parse(folder: Path, facts: dict[str, Any]) -> tuple[Served, torch.Tensor]:
    # The recorded logits give the number of classes.
    golden_K = torch.tensor(facts["golden"]["logits"], dtype=torch.float32)
    names = tuple(map(str, facts["class_names"])) if facts["class_names"] else None
    if names is not None and len(names) != len(golden_K):
        raise InputError(f"{folder / ARTIFACT} names {len(names)} of {len(golden_K)} classes: export it again")

    # Read the weights only if they are the exported ones.
    path = folder / WEIGHTS
    if not path.is_file() or sha256_of_file(path) != facts["weights_sha256"]:
        raise InputError(f"{path} is not what was exported (its SHA-256 differs): export it again")
    network = build_network(facts["architecture"], len(golden_K), facts.get("model_args"))
    model = fill_network(network, read_weights(path), path)
    what = facts["architecture"] + (" with blur" if is_blurred(network.state_dict()) else "")
    served = Served(
        model=model,
        name=f"{what}, {facts['weights']} of {facts['recipe']} after {facts['images_seen']:,} images",
        num_classes=len(golden_K),
        preprocessing=_parse_preprocessing(facts["preprocessing"]),
        class_names=names,
        recorded=_parse_accuracy(facts["accuracy"]),
    )
    return served, golden_K


def _parse_preprocessing(fields: dict[str, Any]) -> Preprocessing:
    if fields["interpolation"] != "bilinear":
        raise InputError(f"interpolation must be bilinear, got {fields['interpolation']}: export the model again")
    found = Preprocessing(fields["resize"], fields["crop"], tuple(fields["mean"]), tuple(fields["std"]))
    found.validate()
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
        raise InputError(f"{path} is damaged ({error}): export it again") from error


def refuse_checkpoint(path: Path) -> None:
    """Check that a path is not part of a training run.

    Raises:
        InputError: it is; the message has the command that exports it.
    """
    folder = path if path.is_dir() else path.parent
    is_checkpoint = (folder / "meta.json").is_file() and (folder / "ema.safetensors").is_file()
    if is_checkpoint or (path.is_dir() and (path / "checkpoints").is_dir()):
        raise InputError(
            f"{path} is part of a training run; export it first: "
            f"python train/export.py {folder} --out {folder.name}-export"
        )


def check_golden(served: Served, golden_K: torch.Tensor, folder: Path) -> None:
    """Compare the network's logits for the generated image with the recorded ones.

    Raises:
        InputError: they differ by more than `TOLERANCE`.
    """
    picture = Image.fromarray(draw_pattern(served.preprocessing.crop))
    with torch.inference_mode():
        logits_K = served.model(to_tensor(picture, served.preprocessing)[None])[0]
    difference = (logits_K - golden_K).abs().max()
    # `not <=` also catches NaN.
    if not difference <= TOLERANCE * golden_K.abs().max().clamp(min=1):
        raise InputError(
            f"{folder} computes other logits than it records (by {difference:.3g}), "
            "so it is another model or another version of timm: export it again"
        )
