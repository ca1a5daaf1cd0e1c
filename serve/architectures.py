"""Recognise the architecture of bare weights: from what the file records, or from the names and shapes of its tensors.

Networks are described on torch's meta device, which allocates nothing: 20 to 120 ms each, once per process.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from prep.blur import BLUR_KERNEL
from prep.errors import InputError
from prep.weights import Found, Network, describe_network, find_weights, list_tensors, walk_dictionaries
from serve.weights import build_network_for_weights

DEFAULT_CLASSES = 1000
DEFAULT_SIZE = 224

# timm's ResNets by the number of blocks in each stage. No two have tensors of the same names and shapes. torchvision's
# networks of the same names have timm's tensors, and compute the same.
DEPTHS: dict[tuple[int, ...], tuple[str, ...]] = {
    (1, 1, 1, 1): ("test_resnet", "resnet10t", "resnet14t"),
    (2, 2, 2, 2): ("resnet18", "resnet18d", "resnet26", "resnet26d", "resnet26t"),
    (3, 4, 6, 3): (
        *("resnet34", "resnet34d", "resnet50", "resnet50c", "resnet50d", "resnet50s", "resnet50t"),
        *("wide_resnet50_2", "resnext50_32x4d", "resnext50d_32x4d", "seresnet50", "seresnext50_32x4d"),
    ),
    (3, 4, 23, 3): (
        *("resnet101", "resnet101c", "resnet101d", "resnet101s", "wide_resnet101_2", "seresnet101"),
        *("resnext101_32x4d", "resnext101_32x8d", "resnext101_32x16d", "resnext101_64x4d"),
    ),
    (3, 8, 36, 3): ("resnet152", "resnet152c", "resnet152d", "resnet152s", "seresnet152"),
    (3, 24, 36, 3): ("resnet200", "resnet200d"),
}
# Other networks of timm with the same tensors, which compute something else: pooling or blurring before strides.
TWINS = {
    "resnet18": ("resnetblur18",),
    "resnet34d": ("resnetaa34d",),
    "resnet50": ("resnetaa50", "resnetblur50"),
    "resnet50d": ("resnetaa50d", "resnetblur50d"),
    "resnet101d": ("resnetaa101d", "resnetblur101d"),
}
BLOCK = re.compile(r"(?:^|\.)layer([1-4])\.(?:_\w+\.|module\.)*(\d+)\.")
# Traits of tensors' names, and of the networks' names in `DEPTHS`.
TRAITS = {
    "bottleneck": re.compile(r"\.conv3\."),
    "deep stem": re.compile(r"(^|\.)conv1\.0\."),
    "squeeze and excitation": re.compile(r"\.se\."),
}
DEEP_STEM = re.compile(r"^test_resnet$|resnex?t\d+[cdst](_|$)")
BASIC_BLOCKS = re.compile(r"(se)?resnet(10|18|34)[a-z]?$")
# Where checkpoints record the name of the network: keys at the top, and in the command line or the settings.
NAME_KEYS = ("arch", "model_name", "architecture", "model")
SETTINGS = ("args", "config", "hyper_parameters", "hparams", "cfg", "opt")


@dataclass(frozen=True)
class Recognised:
    """The architecture of a set of weights, the weights, and how it was found."""

    architecture: str
    found: Found
    notes: tuple[str, ...] = ()


@cache
def describe_architecture(architecture: str, size: int, blurs: bool, num_classes: int = DEFAULT_CLASSES) -> Network:
    """Return the names and shapes of a network of timm; its classifier may have any number of classes.

    Args:
        num_classes: for the few networks whose classifier timm does not name.

    Raises:
        InputError: timm has no model of this name.
    """
    names = [f"x.{BLUR_KERNEL}"] if blurs else []
    with torch.device("meta"):
        model = build_network_for_weights(architecture, num_classes, size, names)
    return describe_network(model.state_dict(), list_classifiers(model))


def list_classifiers(model: nn.Module) -> tuple[str, ...]:
    """Return the names of a network's classifiers, as timm records them; two for distilled networks."""
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    found = config.get("classifier") or ()
    return (found,) if isinstance(found, str) else tuple(found)


def has_blur(content: Any) -> bool:
    """Return True if a checkpoint holds the kernels of a network that blurs before its strides."""
    return any(
        name.rpartition(".")[2] == BLUR_KERNEL
        for _, dictionary, _ in walk_dictionaries(content)
        for name in dictionary
        if isinstance(name, str)
    )


def read_recorded_names(content: Any) -> tuple[str, ...]:
    """Return the names of networks that a checkpoint records, e.g. as `arch` or `args.model`, without repetition."""
    if not isinstance(content, Mapping):
        return ()
    places: list[Mapping[str, Any]] = [content]
    for key in SETTINGS:
        value = content.get(key)
        settings = value if isinstance(value, Mapping) else getattr(value, "__dict__", None)
        places += [settings] if isinstance(settings, Mapping) else []
    found = [place.get(key) for place in places for key in NAME_KEYS]
    return tuple(dict.fromkeys(name for name in found if isinstance(name, str) and name))


def count_blocks(tensors: Mapping[str, Any]) -> set[tuple[int, ...]]:
    """Return the numbers of blocks per stage that names like `layer1.0.conv1.weight` imply, one for each prefix."""
    highest: dict[str, dict[int, int]] = {}
    for name in tensors:
        if match := BLOCK.search(name):
            stages = highest.setdefault(name[: match.start()], {})
            stages[int(match[1])] = max(stages.get(int(match[1]), 0), int(match[2]) + 1)
    return {tuple(stages.get(number, 0) for number in range(1, 5)) for stages in highest.values()}


def list_possible(content: Any) -> list[str]:
    """Return the networks of `DEPTHS` that a checkpoint may hold, from the names of its tensors alone.

    Each of them is then described and compared exactly. This filter saves the time for the others.
    """
    found: list[str] = []
    for _, dictionary, _ in walk_dictionaries(content):
        names = list_tensors(dictionary)
        traits = {trait for trait, pattern in TRAITS.items() if any(pattern.search(name) for name in names)}
        for depth in sorted(count_blocks(names) & DEPTHS.keys()):
            found += [name for name in DEPTHS[depth] if list_traits(name) == traits]
    return list(dict.fromkeys(found))


def list_traits(architecture: str) -> set[str]:
    """Return the traits of a ResNet that its name in `DEPTHS` tells: parts that its tensors must have."""
    traits = {"deep stem"} if DEEP_STEM.search(architecture) else set()
    if architecture.startswith("se"):
        traits.add("squeeze and excitation")
    return traits if BASIC_BLOCKS.match(architecture) else traits | {"bottleneck"}


def recognise(content: Any, path: Path | str, size: int, wanted: str | None, flag: str) -> Recognised | None:
    """Return the architecture of the weights in a checkpoint; None if no known network fits.

    A name that the checkpoint records is tried first, then the ResNets by names and shapes.

    Args:
        size: pixels of the network's input, for networks that depend on it.
        wanted: label of the set of weights to take.
        flag: the caller's flag for `wanted`; empty if it has none.

    Raises:
        InputError: several networks, or several sets of weights, fit equally.
    """
    blurs = has_blur(content)

    def fit(architecture: str) -> Found | None:
        network = describe_architecture(architecture, size, blurs)
        try:
            return find_weights(content, network, path, wanted, flag)
        except InputError:
            if wanted is not None:  # the wanted set is of another network
                return None
            raise

    # What the checkpoint records, if timm has a network of this name and it fits.
    recorded = read_recorded_names(content)
    for name in recorded:
        if timm.is_model(name) and (found := fit(name)):
            return Recognised(name, found, (f"network: {name}, as {Path(path).name} records",))

    # The ResNets whose number of blocks fits.
    fitting = {name: found for name in list_possible(content) if (found := fit(name))}
    if len(fitting) > 1:
        sets = " and ".join(f"{name} ({found.label})" for name, found in fitting.items())
        hint = f"choose with --model, or with {flag}" if flag else "save one of them alone"
        raise InputError(f"{path} holds weights of several networks, {sets}: {hint}")
    for name, found in fitting.items():
        return Recognised(name, found, (describe_recognition(name, recorded, path),))
    return None


def describe_recognition(name: str, recorded: Sequence[str], path: Path | str) -> str:
    """Return the sentence that says how a network was recognised, and which others its tensors could belong to."""
    words = f"network: {name}, recognised by the names and shapes of its tensors"
    if recorded:
        words += f" ({Path(path).name} records {recorded[0]})"
    if name in TWINS:
        words += f"; {' and '.join(TWINS[name])} of timm have the same tensors"
    return words
