"""Files of weights, as nobody should trust them: nothing in them is run, and a network takes all of a file or none.

From a `.safetensors`, `.pth` or `.pth.tar` to the network that `serve/artifact.py` hands out.
"""

import argparse
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from prep.errors import InputError, list_some
from serve.preprocess import LARGEST_SIDE

WRAPPED = ("state_dict_ema", "model_ema", "ema", "state_dict", "model")  # timm's and torch's habits, averaged first
PREFIXES = ("_orig_mod.", "module.", "_orig_mod.")  # of torch.compile and of DDP, one around the other
MODEL_ARGS = {"img_size": int, "dynamic_img_size": bool}  # what an artifact may give to timm, with their types
Weights = dict[str, torch.Tensor]


def read_weights(path: Path) -> Weights:
    """The tensors in a file, by name.

    Raises:
        InputError: it is no file of weights, or would run code to be read; none is run.
    """
    if not path.is_file():
        raise InputError(f"{path} is no file: give an exported artifact's folder, or .pth, .pth.tar, .safetensors")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    for key in WRAPPED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path} holds no named tensors: save a network's state_dict()")
    for name, value in content.items():
        if not isinstance(value, torch.Tensor):
            raise InputError(f"{path}: {name} is no tensor: save a network's state_dict() alone")
    return {_strip(str(name)): tensor for name, tensor in content.items()}


def _read_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is no whole safetensors file ({error}): copy it anew") from error


def _read_pickle(path: Path) -> Any:
    """What torch.load reads with weights_only; timm's checkpoints hold their command line, a Namespace, beside."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old formats; what cannot be read is an error below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise nearly anything
        reason = str(error).strip().split("\n")[-1][:200]
        raise InputError(
            f"{path} holds more than tensors, or is damaged; nothing in it was run ({reason}): "
            "give a file of torch.save(model.state_dict(), FILE), or safetensors"
        ) from error


def _strip(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def build(architecture: str, num_classes: int, model_args: Mapping[str, Any] | None = None) -> nn.Module:
    """A network of timm's by name, untrained; nothing is downloaded.

    Args:
        model_args: what an artifact says of the resolution: `img_size` and `dynamic_img_size`.

    Raises:
        InputError: timm has none of that name, or none of it with so many classes, or the arguments are others.
    """
    sizes = dict(model_args or {})
    fits = {name: type(value) is MODEL_ARGS.get(name) for name, value in sizes.items()}
    if not all(fits.values()) or not 0 < sizes.get("img_size", 1) <= LARGEST_SIDE:
        raise InputError(f"model_args {sizes} are not img_size, in pixels, and dynamic_img_size: export the model anew")
    if not timm.is_model(architecture):  # a name like hf-hub:… would be fetched
        raise InputError(f"timm has no model {architecture}: timm.list_models() names them")
    return timm.create_model(architecture, pretrained=False, num_classes=num_classes, **sizes)


def build_for_size(architecture: str, num_classes: int, size: int) -> nn.Module:
    """As `build`, where nobody says with which arguments: for pictures of `size` pixels, if it is made for one size."""
    config = timm.get_pretrained_cfg(architecture) if timm.is_model(architecture) else None
    if config is not None and config.fixed_input_size:
        try:
            return build(architecture, num_classes, {"img_size": size})
        except (TypeError, AssertionError, RuntimeError, ValueError):
            pass  # it takes no img_size, or not this one; whether it sees such pictures is found out before it is used
    return build(architecture, num_classes)


def fill(model: nn.Module, weights: Weights, path: Path) -> nn.Module:
    """A network in evaluation mode with all of the weights and nothing else.

    Raises:
        InputError: a name is missing, unknown or of another shape, or a value is not finite.
    """
    own = model.state_dict()
    check_classes(model, weights, path)
    faults = {
        "missing": sorted(own.keys() - weights.keys()),
        "unknown": sorted(weights.keys() - own.keys()),
        "of another shape": sorted(
            f"{name} {tuple(weights[name].shape)} for {tuple(tensor.shape)}"
            for name, tensor in own.items()
            if name in weights and weights[name].shape != tensor.shape
        ),
    }
    if any(faults.values()):
        said = "; ".join(f"{what}: {list_some(names)}" for what, names in faults.items() if names)
        raise InputError(f"{path} does not fit the network ({said}): name its own architecture with --model")
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise InputError(f"{path}: {name} is not finite, so neither is what it computes: take other weights")
    model.load_state_dict(weights, strict=True)
    return model.eval()


def check_classes(model: nn.Module, weights: Weights, path: Path) -> None:
    """Raises InputError where the weights tell another number of classes apart than the network."""
    classifier: Any = model.get_classifier()  # pyright: ignore[reportCallIssue]
    names = [name for name, module in model.named_modules() if module is classifier]
    tensor = weights.get(f"{names[0]}.weight") if names else None
    if tensor is not None and tensor.shape[:1] != (model.num_classes,):
        raise InputError(
            f"{path} tells {tensor.shape[0]:,} classes apart, and {model.num_classes:,} are wanted: "
            f"give --num_classes {tensor.shape[0]} and images of those"
        )
