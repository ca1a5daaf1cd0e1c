"""The preprocessing of weights without an artifact: from flags, from what a file records, or assumed.

For `serve/loading.py`. Trainers record it in different places: timm in config.json or in the command line that its
checkpoints contain, torchvision's reference scripts in theirs.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from timm.data import resolve_data_config

from prep.errors import InputError
from prep.preprocess import Channels
from serve.preprocess import Preprocessing

DEFAULT_CROP = 224
TIMM_FIELDS = ("input_size", "interpolation", "mean", "std", "crop_pct")


@dataclass(frozen=True)
class Settings:
    """Values of preprocessing; None for those that are not known."""

    resize: int | None = None
    crop: int | None = None
    crop_pct: float | None = None  # crop / resize
    mean: Channels | None = None
    std: Channels | None = None
    interpolation: str | None = None


def make_preprocessing(given: Settings, recorded: Settings) -> tuple[Preprocessing, tuple[str, ...]]:
    """Return the preprocessing of flags, then of what is recorded, then of defaults; and the values that are assumed.

    Raises:
        InputError: a value is impossible, or two flags contradict each other.
    """
    if given.resize is not None and given.crop_pct is not None:
        raise InputError("--resize and --crop_pct both give the short side before cropping: remove one")
    merged = {each.name: getattr(given, each.name) for each in fields(Settings)}
    for name, value in merged.items():
        # --resize replaces a recorded crop_pct, and the other way around.
        is_replaced = name in ("resize", "crop_pct") and (given.resize or given.crop_pct) is not None
        merged[name] = getattr(recorded, name) if value is None and not is_replaced else value
    assumed = [name for name in ("crop", "interpolation", "mean", "std") if merged[name] is None]

    # The short side follows from the crop: 8/7 of it, as 256 for 224, unless another share is known.
    crop = merged["crop"] or DEFAULT_CROP
    resize = merged["resize"]
    if resize is None and merged["crop_pct"] is not None:
        if not 0 < merged["crop_pct"] <= 1:
            raise InputError(f"crop_pct must be above 0 and at most 1, got {merged['crop_pct']}")
        resize = math.floor(crop / merged["crop_pct"])
    elif resize is None:
        resize = crop * 8 // 7
        assumed.append("resize")
    values = {name: merged[name] for name in ("mean", "std", "interpolation") if merged[name] is not None}
    preprocessing = replace(Preprocessing(resize, crop), **values)
    preprocessing.validate()
    return preprocessing, tuple(assumed)


def describe_settings(preprocessing: Preprocessing, assumed: tuple[str, ...], source: str = "") -> str:
    """Return a sentence with the preprocessing, and which of its values were assumed."""
    mean, std = (" ".join(f"{value:g}" for value in values) for values in (preprocessing.mean, preprocessing.std))
    words = (
        f"preprocessing: short side {preprocessing.resize}, crop {preprocessing.crop}, {preprocessing.interpolation}, "
        f"mean {mean}, std {std}"
    )
    if assumed:
        return f"{words}; assumed: {', '.join(assumed)}"
    return f"{words}; recorded by {source}" if source else words


def parse_timm_settings(config: Mapping[str, Any], place: str) -> Settings:
    """Return the preprocessing of timm's `pretrained_cfg`.

    Raises:
        InputError: a value is damaged, or images of this kind cannot be prepared.
    """
    try:
        channels, height, width = config.get("input_size") or (3, DEFAULT_CROP, DEFAULT_CROP)
        mean, std = (tuple(map(float, config[name])) if config.get(name) else None for name in ("mean", "std"))
        crop_pct = float(config["crop_pct"]) if config.get("crop_pct") else None
        interpolation = config.get("interpolation")
    except (TypeError, ValueError) as error:
        raise InputError(f"{place} has damaged preprocessing ({error}): download it again") from error
    if channels != 3 or height != width:
        raise InputError(f"{place} has input_size {config['input_size']}, expected 3 channels and a square")
    if config.get("crop_mode") not in (None, "", "center"):
        raise InputError(f"{place} has crop_mode {config['crop_mode']}, expected center")
    if any(values is not None and len(values) != 3 for values in (mean, std)):
        raise InputError(f"{place} has mean {mean} and std {std}, expected 3 channels")
    return Settings(None, int(height), crop_pct, mean, std, interpolation)  # pyright: ignore[reportArgumentType]


def read_settings(content: Any, pretrained_cfg: Mapping[str, Any]) -> tuple[Settings, str]:
    """Return the preprocessing that a checkpoint's command line records, and the name of what recorded it.

    Args:
        pretrained_cfg: timm's of the network. timm's training script takes from it what its command line leaves open.
    """
    args = content.get("args") if isinstance(content, Mapping) else None
    values = args if isinstance(args, Mapping) else getattr(args, "__dict__", None)
    if not isinstance(values, Mapping):
        return Settings(), ""
    if all(name in values for name in ("crop_pct", "interpolation", "mean", "std")):
        known = {name: value for name, value in values.items() if name in (*TIMM_FIELDS, "img_size") and value}
        resolved = resolve_data_config(known, pretrained_cfg=dict(pretrained_cfg))
        return parse_timm_settings({**resolved, "crop_mode": "center"}, "args"), "args, as timm's train.py uses them"
    if all(isinstance(values.get(name), int) for name in ("val_resize_size", "val_crop_size")):
        interpolation = values.get("interpolation")
        settings = Settings(values["val_resize_size"], values["val_crop_size"], interpolation=interpolation)
        return settings, "args of torchvision's train.py"
    return Settings(), ""
