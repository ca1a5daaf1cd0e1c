"""Load the model to serve from wherever it is: an artifact, a model of timm's layout, the hub, or any trainer's file.

The first stage of serve; `serve/predict.py` and `serve/cam.py` use its result. `load_served` is the one function for
all commands. What it chooses and assumes is in the notes of the result.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import timm

from prep.blur import is_blurred
from prep.errors import InputError, list_some
from prep.preprocess import Channels
from prep.weight_files import read_content
from prep.weights import (
    Found,
    Network,
    Weights,
    describe_network,
    find_closest,
    find_split_prefixes,
    find_weights,
    list_tensors,
    walk_dictionaries,
)
from serve import DEFAULT_ARCHITECTURE
from serve.architectures import (
    DEFAULT_CLASSES,
    DEFAULT_SIZE,
    Recognised,
    describe_architecture,
    has_blur,
    list_possible,
    read_recorded_names,
    recognise,
)
from serve.artifact import ARTIFACT, WEIGHTS, Served, load_artifact, refuse_checkpoint
from serve.hub_models import fetch_model, is_hub_name
from serve.recorded import Settings, describe_settings, make_preprocessing, read_settings
from serve.timm_folder import CONFIG, TimmFolder, is_timm_folder, read_timm_folder
from serve.weights import build_network, build_network_for_weights, fill_network

WEIGHTS_FLAG = "--weights"  # of serve/gradcam_viz.py
NOTHING_FITS = "none of its tensors fit"
FLAG_NAMES = {"crop": "size"}  # fields of BareOptions whose flag has another name


@dataclass(frozen=True)
class BareOptions:
    """What a user says about weights without an artifact; None for what the file or the defaults decide."""

    model: str | None = None  # timm's name of the network
    num_classes: int | None = None
    resize: int | None = None  # pixels of the short side
    crop: int | None = None  # pixels of the square
    crop_pct: float | None = None  # crop / resize, as timm records it; instead of `resize`
    mean: Channels | None = None
    std: Channels | None = None
    interpolation: str | None = None  # bilinear or bicubic
    weights: str | None = None  # which set of weights in a checkpoint, e.g. `state_dict` or `model_ema`

    def list_given(self) -> list[str]:
        """Return the flags that were given, without --num_classes, which only has to agree with an artifact."""
        names = (each.name for each in fields(self) if each.name != "num_classes")
        return [f"--{FLAG_NAMES.get(name, name)}" for name in names if getattr(self, name) is not None]

    @property
    def settings(self) -> Settings:
        """The part that describes preprocessing."""
        return Settings(self.resize, self.crop, self.crop_pct, self.mean, self.std, self.interpolation)


def load_served(where: str | Path, bare: BareOptions | None = None) -> Served:
    """Load a model, checked against everything that it records.

    Args:
        where: a folder of train/export.py; a folder in timm's layout; a file or folder of weights of any trainer;
            `hf-hub:OWNER/NAME[@REVISION]` or `timm/TAG`, which is downloaded.
        bare: flags for weights without an artifact; None if the caller has none, so that errors do not name them.

    Raises:
        InputError: it is something else, is damaged, contradicts a flag, or no network fits its tensors.
    """
    path = find_model(where)
    name = str(where) if is_hub_name(str(where)) else path.name
    refuse_checkpoint(path)
    if (path / ARTIFACT).is_file():
        return _check_flags(load_artifact(path), path, bare)
    if path.is_file() and (path.parent / ARTIFACT).is_file():
        raise InputError(f"{path} is part of an artifact, which records its accuracy: give the folder {path.parent}")
    if path.is_file() and path.name == WEIGHTS and is_timm_folder(path.parent):
        path = path.parent
    if is_timm_folder(path):
        return load_timm(read_timm_folder(path), name, bare)
    return load_bare(path, bare)


def find_model(where: str | Path) -> Path:
    """Return the file or folder of a model on this machine; a model on the hub is downloaded first.

    Raises:
        InputError: it does not exist, or cannot be downloaded.
    """
    if is_hub_name(str(where)):
        return fetch_model(str(where))
    path = Path(where)
    if not path.exists():
        raise InputError(
            f"{path} does not exist: give a folder of train/export.py, a file of weights, or hf-hub:OWNER/NAME"
        )
    return path


def _check_flags(served: Served, path: Path, bare: BareOptions | None) -> Served:
    """Return an artifact's model; raise InputError if a flag says what the artifact records."""
    given = bare.list_given() if bare else []
    if given:
        raise InputError(f"{path} already records {', '.join(given)}: remove the flag{'s' * (len(given) > 1)}")
    if bare and bare.num_classes not in (None, served.num_classes):
        raise InputError(f"{path} has {served.num_classes:,} classes: remove --num_classes")
    return served


# timm's layout


def load_timm(folder: TimmFolder, name: str, bare: BareOptions | None = None) -> Served:
    """Load a model from a folder with timm's config.json; its accuracy is not recorded.

    Raises:
        InputError: a flag contradicts config.json, or the weights do not fit the network that it names.
    """
    options = bare or BareOptions()
    for flag, given, recorded in (
        ("--model", options.model, folder.architecture),
        ("--num_classes", options.num_classes, folder.num_classes),
    ):
        if given not in (None, recorded):
            raise InputError(f"{folder.path / CONFIG} records {recorded} for {flag}, got {given}: remove {flag}")
    preprocessing, assumed = make_preprocessing(options.settings, folder.settings)
    model = build_network(folder.architecture, folder.num_classes, folder.model_args)
    content, network = read_content(folder.path), describe_network(model.state_dict())
    found = find_weights(content, network, folder.path, options.weights, WEIGHTS_FLAG if bare else "")
    if found is None:
        closest = find_closest(content, network)
        raise InputError(
            f"{folder.path} does not hold the weights of {folder.architecture}, which its {CONFIG} names "
            f"({closest.describe() if closest else NOTHING_FITS}): download it again"
        )
    refuse_others(found, folder.path, options)
    source = CONFIG if options.settings == Settings() else ""
    return Served(
        model=fill_network(model, found.weights, folder.path),
        name=f"{folder.architecture} from {name}",
        num_classes=folder.num_classes,
        preprocessing=preprocessing,
        class_names=folder.class_names,
        notes=(*folder.notes, *found.notes, describe_settings(preprocessing, assumed, source)),
    )


def refuse_others(found: Found, path: Path, options: BareOptions) -> None:
    """Raise InputError if tensors next to the network's could be a part of it, unless the user chose these weights."""
    if found.others and options.weights is None:
        raise InputError(
            f"{path} holds {list_some(found.others)} next to {found.label}, which may be a part of the network: if "
            f"they are not, choose {WEIGHTS_FLAG} {found.label} in serve/gradcam_viz.py, or save the network alone"
        )


# Weights alone


def load_bare(path: Path, bare: BareOptions | None = None) -> Served:
    """Load weights without an artifact: a file or a folder of any trainer.

    The network is the one of --model, or the one that the file records, or the one ResNet whose tensors have these
    names and shapes; the number of classes is that of the weights.

    Raises:
        InputError: no network fits, several do, or a flag contradicts the weights.
    """
    options = bare or BareOptions()
    content = read_content(path)
    recognised = find_architecture(content, path, bare)
    refuse_others(recognised.found, path, options)
    architecture, weights = recognised.architecture, recognised.found.weights
    network = describe_architecture(architecture, options.crop or DEFAULT_SIZE, is_blurred(weights))
    num_classes = count_classes(network, weights, options, path)

    # The preprocessing: flags, what the file records, defaults.
    config = timm.get_pretrained_cfg(architecture)
    recorded, source = read_settings(content, config.to_dict() if config else {})
    preprocessing, assumed = make_preprocessing(options.settings, recorded)
    settings = describe_settings(preprocessing, assumed, source)

    model = build_network_for_weights(architecture, num_classes, preprocessing.crop, weights)
    return Served(
        model=fill_network(model, weights, path),
        name=f"{architecture} from {path.name}",
        num_classes=num_classes,
        preprocessing=preprocessing,
        notes=(*recognised.notes, *recognised.found.notes, settings),
    )


def count_classes(network: Network, weights: Weights, options: BareOptions, path: Path) -> int:
    """Return the number of classes of the weights.

    Raises:
        InputError: --num_classes is another number.
    """
    counts = {len(weights[name]) for name in network.classifier if name in weights}
    num_classes = counts.pop() if counts else options.num_classes or DEFAULT_CLASSES
    if options.num_classes not in (None, num_classes):
        raise InputError(
            f"{path} has {num_classes:,} classes, expected {options.num_classes:,}: "
            f"set --num_classes {num_classes} and give images of these classes"
        )
    return num_classes


def find_architecture(content: Any, path: Path, bare: BareOptions | None) -> Recognised:
    """Return the network of --model, or the one that is recognised, with its weights.

    Raises:
        InputError: its tensors are not in the content.
    """
    options, flag = bare or BareOptions(), WEIGHTS_FLAG if bare else ""
    size = options.crop or DEFAULT_SIZE
    if options.model is None:
        recognised = recognise(content, path, size, options.weights, flag)
        if recognised is not None:
            return recognised
        if options.weights is not None:
            raise InputError(f"{WEIGHTS_FLAG} {options.weights}: {path} holds no weights of a known network there")
    else:
        classes = options.num_classes or DEFAULT_CLASSES
        network = describe_architecture(options.model, size, has_blur(content), classes)
        found = find_weights(content, network, path, options.weights, flag)
        if found is not None:
            return Recognised(options.model, found)
    raise InputError(explain_misfit(content, path, bare))


def explain_misfit(content: Any, path: Path, bare: BareOptions | None) -> str:
    """Return the line for weights that fit no network: what is closest, how it differs, and what to do."""
    options = bare or BareOptions()
    size, blurs = options.crop or DEFAULT_SIZE, has_blur(content)
    recorded = read_recorded_names(content)
    names = [options.model] if options.model else [name for name in recorded if timm.is_model(name)]
    names += [] if options.model else [*list_possible(content), DEFAULT_ARCHITECTURE]
    for name in names:
        if parts := find_split_prefixes(content, describe_architecture(name, size, blurs)):
            prefixes = " and ".join(each or "no prefix" for each in parts)
            return (
                f"{path} holds the tensors of {name} under different prefixes, {prefixes}: "
                "rename them to the network's own names, and save these alone"
            )
    if not any(list_tensors(found) for _, found, _ in walk_dictionaries(content)):
        return f"{path} holds no named tensors: save a network's state_dict()"

    nearest = find_closest(content, describe_architecture(names[0], size, blurs))
    surplus = nearest.list_surplus() if nearest else []
    if surplus:
        also = ", or set --model to timm's name of the network that has them" if bare else ""
        return (
            f"{path} holds all tensors of {names[0]}{f' ({nearest.where})' if nearest and nearest.where else ''} and "
            f"others, unknown: {list_some(surplus)}: if these are not a part of the network, save the weights without "
            f"them{also}"
        )
    closest = nearest.describe() if nearest else NOTHING_FITS
    known = [name for name in recorded if not timm.is_model(name)]
    of = f", which records {known[0]}, a name that timm does not know," if known else ""
    if options.model:
        words = f"{path} does not fit the network {options.model} ({closest})"
        return f"{words}: set --model to the architecture of these weights, or remove it to have ResNets recognised"
    words = f"{path}{of} fits no ResNet of timm or torchvision (compared with {names[0]}: {closest})"
    if bare is None:
        return f"{words}: give an artifact of train/export.py, or a folder in timm's layout"
    return f"{words}: set --model to timm's name of the architecture of these weights"
