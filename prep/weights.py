"""Read weight files that others wrote: never execute code in them, and compare their tensors with a network's.

Formats: `.safetensors`, and what torch.save writes (`.pth`, `.pth.tar`, `.bin`), of timm, torchvision or this project.
torch is imported only when a file is read.
"""

import argparse
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prep.errors import InputError, list_some

if TYPE_CHECKING:
    import torch

# Keys of timm and torch for the state_dict in a checkpoint; averaged weights first.
WRAPPED = ("state_dict_ema", "model_ema", "ema", "state_dict", "model")
PREFIXES = ("_orig_mod.", "module.", "_orig_mod.")  # of torch.compile and of DDP, in either order of wrapping
COUNTER = "num_batches_tracked"  # of BatchNorm: files from before torch 0.4.1 have none, as some of torchvision's
Weights = dict[str, "torch.Tensor"]


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

    import torch  # noqa: PLC0415

    if not isinstance(content, dict) or not content:
        raise InputError(f"{path} holds no named tensors: save a network's state_dict()")
    for name, value in content.items():
        if not isinstance(value, torch.Tensor):
            raise InputError(f"{path}: {name} is not a tensor: save a network's state_dict() alone")
    return {_strip(str(name)): tensor for name, tensor in content.items()}


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError  # noqa: PLC0415
    from safetensors.torch import load_file  # noqa: PLC0415

    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is not a complete safetensors file ({error}): copy it again") from error


def _read_pickle(path: Path) -> Any:
    """Load with `weights_only`; a Namespace is allowed, because timm's checkpoints contain their command line."""
    import torch  # noqa: PLC0415

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


def describe_misfit(own: Mapping[str, "torch.Tensor"], weights: Mapping[str, "torch.Tensor"]) -> str:
    """Return which tensors of `weights` do not fit a network's own ones; empty if all of them do.

    BatchNorm's counters may be missing: torch then keeps the network's.

    Returns:
        For example `missing: fc.weight; of another shape: conv1.weight (64, 1, 7, 7) for (64, 3, 7, 7)`.
    """
    faults = {
        "missing": sorted(name for name in own.keys() - weights.keys() if not name.endswith(COUNTER)),
        "unknown": sorted(weights.keys() - own.keys()),
        "of another shape": sorted(
            f"{name} {tuple(weights[name].shape)} for {tuple(tensor.shape)}"
            for name, tensor in own.items()
            if name in weights and weights[name].shape != tensor.shape
        ),
    }
    return "; ".join(f"{what}: {list_some(names)}" for what, names in faults.items() if names)


def check_finite(weights: Mapping[str, "torch.Tensor"], path: Path | str) -> None:
    """Check that no tensor contains NaN or infinity, which would give predictions without an error.

    Raises:
        InputError: one does; it names `path`.
    """
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise InputError(f"{path}: {name} contains NaN or infinity: use other weights")
