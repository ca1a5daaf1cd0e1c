"""Read a folder in timm's layout, as models on the hub have it: config.json with the network, and its weights.

For `serve/loading.py`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prep.errors import InputError
from serve.recorded import Settings, parse_timm_settings

CONFIG = "config.json"
IMAGENET_TAG = re.compile(r"(^|_)in1k(_|$)")  # of timm's tags, e.g. a1_in1k and sw_in12k_ft_in1k
IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class TimmFolder:
    """What a folder's config.json records."""

    path: Path
    architecture: str
    num_classes: int
    model_args: dict[str, Any]
    settings: Settings
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


def read_config(folder: Path) -> dict[str, Any] | None:
    """Return the content of a folder's config.json if timm wrote it, else None."""
    path = folder / CONFIG
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): download it again") from error
    return config if isinstance(config, dict) and isinstance(config.get("architecture"), str) else None


def is_timm_folder(path: Path) -> bool:
    """Return True if a path is a folder with a config.json that names a network of timm."""
    return path.is_dir() and read_config(path) is not None


def read_timm_folder(path: Path) -> TimmFolder:
    """Return what config.json records: network, number of classes, preprocessing, class names.

    Raises:
        InputError: it is damaged, or records something that cannot be served.
    """
    place, config = path / CONFIG, read_config(path)
    assert config is not None
    # Older files of timm have the fields of `pretrained_cfg` at the top.
    details = config.get("pretrained_cfg", config)
    num_classes = config.get("num_classes", details.get("num_classes") if isinstance(details, Mapping) else None)
    if not isinstance(details, Mapping) or not isinstance(num_classes, int) or num_classes < 1:
        raise InputError(f"{place} records {num_classes} as num_classes, expected a number: download it again")
    names, note = _read_names(config, details, num_classes, place)
    return TimmFolder(
        path=path,
        architecture=config["architecture"],
        num_classes=num_classes,
        model_args=_read_model_args(config, num_classes, place),
        settings=parse_timm_settings(details, str(place)),
        class_names=names,
        notes=note,
    )


def _read_model_args(config: Mapping[str, Any], num_classes: int, place: Path) -> dict[str, Any]:
    """Return the arguments that the network is built with, without those that must have one value."""
    arguments = config.get("model_args") or {}
    fixed = {"num_classes": num_classes, "in_chans": 3}
    if not isinstance(arguments, dict) or any(arguments.get(name, value) != value for name, value in fixed.items()):
        raise InputError(f"{place} has model_args {arguments}, expected {fixed}: this network cannot be served")
    return {name: value for name, value in arguments.items() if name not in fixed}


def _read_names(
    config: Mapping[str, Any], details: Mapping[str, Any], num_classes: int, place: Path
) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Return the class names in the order of the labels, and what is assumed about them."""
    names = config.get("label_names") or details.get("label_names") or details.get("labels")
    if names:
        if not isinstance(names, list) or len(names) != num_classes:
            raise InputError(f"{place} names {len(names):,} of {num_classes:,} classes: download it again")
        return tuple(map(str, names)), ()
    tag = str(details.get("tag") or "")
    if num_classes == IMAGENET_CLASSES and IMAGENET_TAG.search(tag):
        from timm.data import ImageNetInfo  # noqa: PLC0415 - takes seconds

        wnids = tuple(ImageNetInfo("imagenet-1k").label_names())
        return wnids, (f"class names: ImageNet's 1,000 in their usual order, because {CONFIG} has the tag {tag}",)
    return None, ()
