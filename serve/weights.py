"""Load untrusted weight files: never execute code in them, and load all of their tensors or none.

From a `.safetensors`, `.pth` or `.pth.tar` to the network that `serve/artifact.py` returns.
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

# Keys of timm and torch for the state_dict in a checkpoint; averaged weights first.
WRAPPED = ("state_dict_ema", "model_ema", "ema", "state_dict", "model")
PREFIXES = ("_orig_mod.", "module.", "_orig_mod.")  # of torch.compile and of DDP, in either order of wrapping
MODEL_ARGS = {"img_size": int, "dynamic_img_size": bool}  # arguments of timm that an artifact may set, with their types
Weights = dict[str, torch.Tensor]


def read_weights(path: Path) -> Weights:
    """Return the tensors in a file, by name.

    Raises:
        InputError: it is not a file of weights, or reading it would execute code; no code is executed.
    """
    if not path.is_file():
        raise InputError(
            f"{path} is not a file: give an exported artifact's folder, or a .pth, .pth.tar or .safetensors file"
        )
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)

    # The state_dict may be inside of a checkpoint.
    for key in WRAPPED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break

    if not isinstance(content, dict) or not content:
        raise InputError(f"{path} holds no named tensors: save a network's state_dict()")
    for name, value in content.items():
        if not isinstance(value, torch.Tensor):
            raise InputError(f"{path}: {name} is not a tensor: save a network's state_dict() alone")
    return {_strip(str(name)): tensor for name, tensor in content.items()}


def _read_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is not a complete safetensors file ({error}): copy it again") from error


def _read_pickle(path: Path) -> Any:
    """Load with `weights_only`; a Namespace is allowed, because timm's checkpoints contain their command line."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats; a file that cannot be read is an error below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise almost any exception
        reason = str(error).strip().split("\n")[-1][:200]
        raise InputError(
            f"{path} holds more than tensors, or is damaged; nothing in it was run ({reason}): "
            "give a file of torch.save(model.state_dict(), FILE), or safetensors"
        ) from error


def _strip(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def build_network(architecture: str, num_classes: int, model_args: Mapping[str, Any] | None = None) -> nn.Module:
    """Return an untrained network of timm by name; nothing is downloaded.

    Args:
        model_args: the resolution that an artifact records: `img_size` in pixels and `dynamic_img_size`.

    Raises:
        InputError: timm has no model of this name, or `model_args` has other entries.
    """
    sizes = dict(model_args or {})
    fits = {name: type(value) is MODEL_ARGS.get(name) for name, value in sizes.items()}
    if not all(fits.values()) or not 0 < sizes.get("img_size", 1) <= LARGEST_SIDE:
        raise InputError(
            f"model_args must be img_size in pixels and dynamic_img_size, got {sizes}: export the model again"
        )
    if not timm.is_model(architecture):  # timm would download a name like hf-hub:OWNER/NAME
        raise InputError(f"timm has no model {architecture}: timm.list_models() lists all names")
    return timm.create_model(architecture, pretrained=False, num_classes=num_classes, **sizes)


def build_network_for_size(architecture: str, num_classes: int, size: int) -> nn.Module:
    """Return a network for bare weights, which record no arguments: built for `size` pixels if its size is fixed."""
    config = timm.get_pretrained_cfg(architecture) if timm.is_model(architecture) else None
    if config is not None and config.fixed_input_size:
        try:
            return build_network(architecture, num_classes, {"img_size": size})
        except (TypeError, AssertionError, RuntimeError, ValueError):
            pass  # it accepts no img_size, or not this one; the first forward pass reports a size that does not fit
    return build_network(architecture, num_classes)


def fill_network(model: nn.Module, weights: Weights, path: Path) -> nn.Module:
    """Load weights into a network, and return it in evaluation mode.

    Raises:
        InputError: a tensor is missing, unknown or has another shape, or contains NaN or infinity.
    """
    # Compare names and shapes. A wrong number of classes has its own message, because another flag repairs it.
    own = model.state_dict()
    check_num_classes(model, weights, path)
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
        words = "; ".join(f"{what}: {list_some(names)}" for what, names in faults.items() if names)
        raise InputError(f"{path} does not fit the network ({words}): set --model to the architecture of these weights")

    # NaN or infinity would give predictions without an error.
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise InputError(f"{path}: {name} contains NaN or infinity: use other weights")
    model.load_state_dict(weights, strict=True)
    return model.eval()


def check_num_classes(model: nn.Module, weights: Weights, path: Path) -> None:
    """Compare the number of classes of the weights with that of the network, if timm names its classifier.

    Raises:
        InputError: they differ.
    """
    classifier: Any = model.get_classifier()  # pyright: ignore[reportCallIssue]
    names = [name for name, module in model.named_modules() if module is classifier]
    tensor = weights.get(f"{names[0]}.weight") if names else None
    if tensor is not None and tensor.shape[:1] != (model.num_classes,):
        raise InputError(
            f"{path} has {tensor.shape[0]:,} classes, expected {model.num_classes:,}: "
            f"set --num_classes {tensor.shape[0]} and give images of these classes"
        )
