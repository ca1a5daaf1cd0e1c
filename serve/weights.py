"""Build a network and load untrusted weights into it, all of their tensors or none.

From the tensors that `prep/weights.py` reads to the network that `serve/artifact.py` returns.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import timm
from torch import nn

from prep.blur import blur_first, is_blurred
from prep.errors import InputError
from prep.weights import Weights, check_finite, describe_misfit
from serve.preprocess import LARGEST_SIDE

# Arguments that an artifact or timm's config.json may set, with their types. All but the last are timm's.
MODEL_ARGS = {"img_size": int, "dynamic_img_size": bool, "global_pool": str, "blur_first": bool}


def build_network(architecture: str, num_classes: int, model_args: Mapping[str, Any] | None = None) -> nn.Module:
    """Return an untrained network of timm by name; nothing is downloaded.

    Args:
        model_args: what an artifact or config.json records: the resolution, `img_size` in pixels and
            `dynamic_img_size`; `global_pool`; and `blur_first`, true if the network blurs before each convolution
            with a stride.

    Raises:
        InputError: timm has no model of this name, it has nothing to blur, or `model_args` has other entries.
    """
    arguments = dict(model_args or {})
    fits = {name: type(value) is MODEL_ARGS.get(name) for name, value in arguments.items()}
    if not all(fits.values()) or not 0 < arguments.get("img_size", 1) <= LARGEST_SIDE:
        raise InputError(
            f"model_args must be img_size in pixels, dynamic_img_size, global_pool and blur_first, got {arguments}: "
            "export the model again"
        )
    if not timm.is_model(architecture):  # timm would download a name like hf-hub:OWNER/NAME
        raise InputError(f"timm has no model {architecture}: timm.list_models() lists all names")
    blurs = arguments.pop("blur_first", False)
    model = timm.create_model(architecture, pretrained=False, num_classes=num_classes, **arguments)
    return blur_first(model) if blurs else model


def build_network_for_weights(architecture: str, num_classes: int, size: int, names: Iterable[str]) -> nn.Module:
    """Return a network for bare weights, which record no arguments.

    It is built for `size` pixels if its size is fixed, and blurs if the weights hold the kernels of blurs.

    Args:
        names: of the weights' tensors.
    """
    blurs = {"blur_first": is_blurred(names)}
    config = timm.get_pretrained_cfg(architecture) if timm.is_model(architecture) else None
    if config is not None and config.fixed_input_size:
        try:
            return build_network(architecture, num_classes, {"img_size": size, **blurs})
        except (TypeError, AssertionError, RuntimeError, ValueError):
            pass  # it accepts no img_size, or not this one; the first forward pass reports a size that does not fit
    return build_network(architecture, num_classes, blurs)


def fill_network(model: nn.Module, weights: Weights, path: Path) -> nn.Module:
    """Load weights into a network, and return it in evaluation mode.

    Raises:
        InputError: a tensor is missing, unknown or has another shape, or contains NaN or infinity.
    """
    # Compare names and shapes. A wrong number of classes has its own message, because another flag repairs it.
    own = model.state_dict()
    check_num_classes(model, weights, path)
    if words := describe_misfit(own, weights):
        raise InputError(f"{path} does not fit the network ({words}): these are weights of another network")
    check_finite(weights, path)
    model.load_state_dict({**own, **weights}, strict=True)
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
