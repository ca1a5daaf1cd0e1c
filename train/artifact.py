"""The facts that an export records about its weights: timm's configuration and `artifact.json`, for `train/export.py`.

In order: the provenance of the weights (`trace`), their measured accuracy (`read_metrics`, `read_scores`), and the
descriptions (`describe_for_timm`, `describe_for_servers`, `describe_for_runtimes`).
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from timm.data import ImageNetInfo
from torch import nn

from loaders import EvalTransform
from loaders.batch import Normalize
from loaders.config import parse_root
from loaders.subset import find_classes
from prep.dataset import MANIFEST, STAGING_FOLDER, Manifest, Origin, parse_manifest, read_manifest
from prep.errors import InputError
from prep.preprocess import PATTERN, draw_pattern
from prep.remote import Remote
from prep.staging import find_splits
from train.checkpoint import EMA, MODEL
from train.config import DataConfig, Recipe
from train.model import size_options
from train.portable import INPUT, OUTPUT, Kind, PortableFile
from train.validate import Hits

FORMAT = 1
KINDS: tuple[Kind, ...] = ("onnx", "torch_export")
WORDNET_NUMBER = re.compile(r"n\d{8}")
STRUCTURE = ("architecture", "first_conv", "classifier", "fixed_input_size")  # facts of a network, whatever its weights

Which = Literal["ema", "model"]
FILES: dict[Which, str] = {"ema": EMA, "model": MODEL}  # in a checkpoint
PREFIXES: dict[Which, str] = {"ema": "ema_", "model": ""}  # of their validation metrics
FIGURES = ("num_images", "num_damaged", "num_top1", "num_top5", "loss", "ece_percent")


# Provenance.


@dataclass(frozen=True)
class Accuracy(Hits):
    """Accuracy on a split, with the preprocessing of the recipe's evaluation."""

    dataset: str | None  # its name; None: not known
    split: str
    loss: float  # mean cross-entropy, nats
    ece_percent: float | None = None  # expected calibration error; None: not measured


@dataclass(frozen=True)
class Provenance:
    """The facts about an export's weights."""

    recipe: Recipe
    which: Which  # of a checkpoint's two sets of weights
    clock: int  # images seen in training
    commit: str | None  # of the code that trained
    class_names: tuple[str, ...] | None  # one per label; None: the data was not available
    source: Origin | None  # of the training data
    accuracy: Accuracy | None  # None: never evaluated


def trace(meta: dict[str, Any], which: Which, num_classes: int, data: str | None, scores: Path | None) -> Provenance:
    """Return what is known about a checkpoint.

    Args:
        meta: its meta.json.
        num_classes: of its classifier.
        data: a prepared dataset; None: the one it was trained on, if it still exists.
        scores: of `train/evaluate.py`; None: use the metrics that were measured during training.

    Raises:
        InputError: the data or the scores do not belong to the checkpoint.
    """
    # Class names and source, from the dataset's manifest.
    recipe = Recipe.from_dict(meta["recipe"])
    manifest = _find_manifest(recipe.data, data)
    names = _choose_names(manifest, recipe.data) if manifest else None
    source = manifest.source if manifest else None
    if names is not None and len(names) != num_classes:
        raise InputError(
            f"the dataset has {len(names):,} classes and the checkpoint {num_classes:,}: "
            "give --data with the dataset it was trained on"
        )

    # Accuracy.
    if scores is not None:
        accuracy = read_scores(scores, meta, recipe, which)
    else:
        accuracy = read_metrics(meta, recipe, which, source.name if source else None)
    return Provenance(recipe, which, meta["clock"], meta["commit"], names, source, accuracy)


def _find_manifest(data: DataConfig, root: str | None) -> Manifest | None:
    """Return the manifest of the training data: of a given dataset, else of the one on this machine, if it is there."""
    if root is not None:
        place = parse_root(root)
        return read_manifest(place / data.train) if isinstance(place, Path) else _read_from_bucket(place, data.train)
    if data.folder is None:
        return None
    folder = data.folder / data.train
    paths = [path for path in (folder / STAGING_FOLDER / MANIFEST, folder / MANIFEST) if path.is_file()]
    return parse_manifest(paths[0].read_bytes(), str(paths[0])) if paths else None


def _read_from_bucket(url: str, split: str) -> Manifest:
    (found,) = find_splits(Remote(url), [split])
    return found.manifest


def _choose_names(manifest: Manifest, data: DataConfig) -> tuple[str, ...]:
    """Return the names of the classes that were trained on, one per label."""
    labels = sorted({label for word in data.classes for label in find_classes(word, manifest.class_names)})
    return tuple(manifest.class_names[label] for label in labels) if labels else manifest.class_names


# Accuracy.


def read_metrics(meta: dict[str, Any], recipe: Recipe, which: Which, dataset: str | None) -> Accuracy | None:
    """Return the accuracy that a checkpoint's meta.json records; None if it was saved without an evaluation."""
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
    """Return the accuracy in a scores.json, which `train/evaluate.py` printed or wrote.

    Raises:
        InputError: it is of other weights, or its images were preprocessed in another way than the export records.
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


# Descriptions.


def describe_for_timm(model: nn.Module, recipe: Recipe) -> dict[str, Any]:
    """Return a `pretrained_cfg` with the settings that were used; timm's own is that of its published weights."""
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
    """Return the crop as a share of the short side; timm, which divides by it and rounds down, then resizes equally."""
    share = transform.size / transform.resize
    return share if math.floor(transform.size / share) == transform.resize else math.nextafter(share, 0)


def list_model_args(recipe: Recipe) -> dict[str, Any]:
    """Return the arguments with which a server builds the network: those of timm.create_model, and `blur_first`.

    timm does not know `blur_first`. It is in config.json too, so that `timm.create_model` fails with an error that
    names it, whatever else it is given, instead of building a network without blur, which computes other logits.
    """
    blurs = {"blur_first": True} if recipe.model.blur_first else {}
    return size_options(recipe.model, recipe.image_sizes()) | blurs


def describe_labels(class_names: Sequence[str] | None) -> dict[str, Any]:
    """Return the class names as timm writes them into config.json.

    Returns:
        `label_names`, by label. If there are WordNet numbers among them, also `label_descriptions`, name -> words,
        which the hub shows instead. A key is left out if it would be empty.
    """
    names = list(class_names or ())
    return {key: value for key, value in (("label_names", names), ("label_descriptions", put_in_words(names))) if value}


def put_in_words(class_names: Sequence[str]) -> dict[str, str]:
    """Return class name -> words; {} if none of the names is a WordNet number of one of ImageNet's 21,844 classes.

    Other names are their own words.
    """
    if not any(WORDNET_NUMBER.fullmatch(name) for name in class_names):
        return {}
    info = ImageNetInfo()
    words = {name: _look_up(name, info) for name in class_names}
    return words if any(name != each for name, each in words.items()) else {}


def _look_up(name: str, info: ImageNetInfo) -> str:
    try:
        return info.label_name_to_description(name)
    except KeyError:
        return name


def describe_preprocessing(recipe: Recipe) -> dict[str, Any]:
    """Return what has to be done to a decoded image before the network sees it."""
    return {
        "resize": recipe.evaluation.resize,  # of the short side; the long one is truncated to whole pixels
        "crop": recipe.evaluation.size,  # from the center
        "interpolation": "bilinear",
        "antialias": True,
        "exif_orientation": "ignored",
        "channel_order": "RGB",
        "mean": recipe.model.mean,  # of RGB in [0, 1]
        "std": recipe.model.std,
    }


def describe_for_runtimes(facts: Provenance, weights_sha256: str) -> dict[str, Any]:
    """Return the metadata of a file that runs without timm: all that is needed to use it if it is found alone."""
    size = facts.recipe.evaluation.size
    return {
        INPUT: f"float32 [N, 3, {size}, {size}], RGB, (x / 255 - mean) / std",
        OUTPUT: "float32 [N, K], before softmax",
        **describe_preprocessing(facts.recipe),
        "class_names": facts.class_names,
        "label_descriptions": put_in_words(facts.class_names or ()) or None,
        "architecture": facts.recipe.model.name,
        "recipe": facts.recipe.name,
        "weights": facts.which,
        "weights_sha256": weights_sha256,
    }


def describe_for_servers(
    model: nn.Module, facts: Provenance, weights_sha256: str, portable: Mapping[Kind, PortableFile]
) -> dict[str, Any]:
    """Return artifact.json: accuracy, preprocessing, class names, and logits with which a server can check itself."""
    recipe = facts.recipe
    return {
        "format": FORMAT,
        "architecture": recipe.model.name,
        "model_args": list_model_args(recipe),  # as in config.json
        "weights": facts.which,
        "weights_sha256": weights_sha256,
        "recipe": recipe.name,
        "images_seen": facts.clock,
        "commit": facts.commit,
        "preprocessing": describe_preprocessing(recipe),
        "class_names": facts.class_names,
        "accuracy": asdict(facts.accuracy) if facts.accuracy else None,
        "golden": {"image": PATTERN, "logits": golden_logits(model, recipe).tolist()},
        **{kind: asdict(portable[kind]) if kind in portable else None for kind in KINDS},
    }


def golden_logits(model: nn.Module, recipe: Recipe) -> torch.Tensor:
    """Return a model's logits for the generated image, float32 [K], on the CPU without autocast.

    The model must be in evaluation mode.
    """
    pixels_HWC = torch.from_numpy(draw_pattern(recipe.evaluation.size))
    images_BCHW = Normalize(recipe.model.mean, recipe.model.std)(pixels_HWC.permute(2, 0, 1)[None])
    with torch.inference_mode():
        return model(images_BCHW.contiguous())[0]
