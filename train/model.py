"""Build the network: any timm model, in channels_last, for the resolutions at which it will run.

First the network is tried at each resolution on torch's `meta` device, which computes shapes but no numbers; that takes
a fraction of a second and no memory. So a network that cannot run is refused here in one line, instead of by an
assertion inside timm in the first step. docs/models.md has a table of the models that were tried.
"""

import difflib
import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import nn

from prep.blur import blur_first
from prep.errors import InputError
from train.config import ModelConfig, Sizes
from train.freeze import freeze_parts

TRIED_CLASSES = 7  # number of classes of networks that are only tried
SIZE_STEPS = (16, 28, 32)  # pixels: the patches and windows of most networks divide multiples of one of these
MOST_TRIES = 8  # resolutions to try as suggestions: each takes up to a second
ENOUGH_SIZES = 2  # resolutions to suggest


@dataclass(frozen=True)
class Fault:
    """The reason why a model does not run at a resolution."""

    size: int
    evaluates: bool  # True: in evaluation; False: in training
    reason: str


def build_model(config: ModelConfig, num_classes: int, device: torch.device, sizes: Sizes | None = None) -> nn.Module:
    """Build a model with random weights, which depend on torch's seed alone.

    Args:
        sizes: the resolutions at which it will run; None: timm's default resolution, without trying it.

    Raises:
        InputError: timm has no model of that name, it cannot run at these resolutions, or it has no such part to
            freeze.
    """
    check_name(config.name)
    model = _create(config, num_classes, size_options(config, sizes) if sizes else {})
    if config.prior_bias:
        set_prior_bias(model, num_classes)
    freeze_parts(model, config.freeze, config.name)
    return model.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def set_prior_bias(model: nn.Module, num_classes: int) -> None:
    """Set the bias of the classifier to -ln(classes), for a binary cross-entropy of each class.

    So the first predictions are near 1 / classes. With a bias of 0 they are near 1/2, and the loss of the first steps
    is that of the absent classes: 693 nats of 1,000 classes, instead of 8.

    Raises:
        InputError: the classifier has no bias.
    """
    found: Any = model.get_classifier()  # pyright: ignore[reportCallIssue]  (a method of every model of timm's)
    biases = [getattr(head, "bias", None) for head in (found if isinstance(found, tuple | list) else (found,))]
    for bias in biases:
        if not isinstance(bias, nn.Parameter) or bias.shape != (num_classes,):
            raise InputError(
                f"model.prior_bias needs a classifier that is one layer with a bias for each class, and that of "
                f"{type(model).__name__} is not: "
                "give --model.no-prior-bias"
            )
        nn.init.constant_(bias, -math.log(num_classes))


def check_name(name: str) -> None:
    """Check that timm has a model of that name; raise InputError if not, or if it also names weights."""
    architecture, _, tag = name.partition(".")
    if tag and timm.is_model(architecture):
        raise InputError(
            f"{name} names pretrained weights ({tag}): to start from them give --model.name {architecture} "
            f"--model.pretrained {tag}"
        )
    names = timm.list_models()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3)
        raise InputError(f"timm has no model {name}" + (f"; did you mean {', '.join(near)}?" if near else ""))


@cache
def size_options(config: ModelConfig, sizes: Sizes) -> dict[str, Any]:
    """Return the arguments with which timm builds a model for these resolutions; {} for most models.

    `img_size`: if the weights depend on the resolution (position embeddings, windows), that of the end of training,
    which `train/evaluate.py` cannot change. `dynamic_img_size`: if the model also runs at other resolutions; then timm
    interpolates position embeddings and makes attention masks for each batch.

    Raises:
        InputError: the model cannot run at one of the resolutions.
    """
    found = _choose_options(config, sizes)
    if not isinstance(found, Fault):
        return found

    # It fails even if it runs at its main resolution alone. Each advice is tried before it is given.
    main, at_once = sizes.main, sizes.images_at_once
    if isinstance(_choose_options(config, Sizes((main,), main, at_once)), Fault):
        line = f"{config.name} does not train at {main} pixels ({found.reason})"
        if at_once == 1 and not isinstance(_choose_options(config, Sizes((main,), main)), Fault):
            raise InputError(f"{line} with one image at once: give a larger --batch-size or --speed.microbatch")
        others = _suggest_sizes(config, main, at_once)
        if not others:
            raise InputError(f"{line}: choose another --model.name")
        raise InputError(f"{line}: give --transform.size and --evaluation.size one of {', '.join(map(str, others))}")

    # It fails at another resolution, in evaluation or earlier in training.
    line = f"{config.name} with {main} pixels at the end of training"
    if found.evaluates:
        raise InputError(
            f"{line} cannot be evaluated at {found.size} ({found.reason}): "
            f"evaluate at {main} (--evaluation.size {main}, of train/evaluate.py --size {main})"
        )
    raise InputError(f"{line} cannot train at {found.size} before ({found.reason}): give --transform.first-size {main}")


def _choose_options(config: ModelConfig, sizes: Sizes) -> dict[str, Any] | Fault:
    """Return the arguments with which a model runs at all resolutions, or the reason why there are none."""
    pretrained_cfg, main = get_pretrained_cfg(config.name), sizes.main
    alone = replace(sizes, train=(main,), evaluate=main)
    options: dict[str, Any] = {}
    if pretrained_cfg and pretrained_cfg.fixed_input_size:
        options = {"img_size": main}
        if fault := _find_fault(config, alone, options):
            if _find_fault(config, alone, {}):
                return fault
            options = {}  # it does not accept img_size, or crops each image to its own size
    fault = _find_fault(config, sizes, options)
    if fault and options and sizes.differ:
        options = options | {"dynamic_img_size": True}
        fault = _find_fault(config, sizes, options) and fault
    return fault or options


def _find_fault(config: ModelConfig, sizes: Sizes, options: dict[str, Any]) -> Fault | None:
    """Try a model at all resolutions, in training and evaluation; return the first fault."""
    fault = _try_on("meta", config, sizes, options)
    if fault and "meta" in fault.reason.lower():  # its shapes depend on numbers, which the meta device has not
        return _try_on("cpu", config, sizes, options)
    return fault


def _try_on(device: str, config: ModelConfig, sizes: Sizes, options: dict[str, Any]) -> Fault | None:
    size, evaluates = sizes.main, False
    try:
        with torch.random.fork_rng(devices=[]), torch.device(device), torch.no_grad():
            model = _create(config, TRIED_CLASSES, options)
            if "img_size" in options:
                _check_patches(model, sizes)
            for size in dict.fromkeys(sizes.train):
                _check_output(model.train()(torch.zeros(sizes.images_at_once, 3, size, size)), sizes.images_at_once)
            size, evaluates = sizes.evaluate, True
            _check_output(model.eval()(torch.zeros(1, 3, size, size)), 1)
    except InputError:
        raise
    except Exception as error:  # networks raise all kinds of errors for a wrong size
        return Fault(size, evaluates, " ".join(str(error).split())[:120] or type(error).__name__)
    return None


def _check_patches(model: nn.Module, sizes: Sizes) -> None:
    """Raise ValueError if patches do not cover an image: timm would leave out its last rows and columns."""
    patch_size: Any = getattr(getattr(model, "patch_embed", None), "patch_size", None) or 1
    side = max(patch_size) if isinstance(patch_size, tuple | list) else patch_size
    for size in (*sizes.train, sizes.evaluate):
        if size % side:
            raise ValueError(f"{size} is not a multiple of its patch size, {side} pixels")


def _create(config: ModelConfig, num_classes: int, options: dict[str, Any]) -> nn.Module:
    drop_path = {"drop_path_rate": config.drop_path} if config.drop_path else {}
    try:
        model = timm.create_model(config.name, pretrained=False, num_classes=num_classes, **drop_path, **options)
    except TypeError as error:
        if "drop_path_rate" in str(error):
            raise InputError(f"{config.name} has no stochastic depth: give --model.drop-path 0") from error
        raise
    return _add_blur(model, config) if config.blur_first else model


def _add_blur(model: nn.Module, config: ModelConfig) -> nn.Module:
    try:
        return blur_first(model)
    except InputError as error:
        raise InputError(f"{config.name}: {error}: give --model.no-blur-first") from error


def _check_output(logits_BK: Any, num_images: int) -> None:
    """Raise ValueError unless a network's output is one logit per class for each image."""
    if not isinstance(logits_BK, torch.Tensor):
        raise ValueError(f"its output is a {type(logits_BK).__name__}, not one tensor of logits")
    if logits_BK.shape != (num_images, TRIED_CLASSES):
        expected, shape = [num_images, TRIED_CLASSES], list(logits_BK.shape)
        raise ValueError(f"its output has the shape {shape}, not one logit per class, {expected}")


def _suggest_sizes(config: ModelConfig, size: int, images_at_once: int) -> list[int]:
    """Return a few resolutions at which a model runs: timm's default, and those closest to `size`."""
    pretrained_cfg = get_pretrained_cfg(config.name)
    usual = [pretrained_cfg.input_size[1]] if pretrained_cfg else []
    steps = {step * count for step in SIZE_STEPS for count in range(1, 17)}
    near = sorted(steps - {size, *usual}, key=lambda other: (abs(other - size), other))
    found: list[int] = []
    for other in [*usual, *near[:MOST_TRIES]]:
        if other != size and not isinstance(_choose_options(config, Sizes((other,), other, images_at_once)), Fault):
            found.append(other)
        if len(found) == ENOUGH_SIZES:
            break
    return sorted(found)
