"""Weights that timm publishes: the tags of a model, the file from timm's hub, and timm's conversion of foreign files.

A file is downloaded once, on one machine, into the usual cache (`HF_HOME`, or `TORCH_HOME` for the few weights that are
not on the Hugging Face hub). The conversion is timm's own: it renames tensors of other sources and resamples position
embeddings for another resolution. It changes nothing unless the tensors do not fit as they are.
"""

import difflib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import timm
import torch
from timm.models import PretrainedCfg

from prep.errors import InputError, list_some
from prep.weights import COUNTER, Weights

DEFAULT_TAG = "default"  # in place of a tag: the weights that timm.create_model(name, pretrained=True) loads
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # names that timm looks for, in this order


def list_tags(name: str) -> list[str]:
    """Return the tags of the weights that timm knows for a model, e.g. a1_in1k."""
    return [each.partition(".")[2] for each in timm.list_pretrained(f"{name}.*")]


def describe_weights(name: str) -> PretrainedCfg:
    """Return timm's description of the weights NAME.TAG, or of a model's default ones."""
    config = timm.get_pretrained_cfg(name)
    assert config is not None, f"timm does not know {name}"
    return config


def resolve_tag(name: str, tag: str) -> str:
    """Return the tag; for DEFAULT_TAG, the one of timm's default weights.

    Raises:
        InputError: timm has no weights of that tag for the model; the line lists the tags.
    """
    tags = list_tags(name)
    if not tags:
        raise InputError(
            f"timm has no weights for {name}: give --model.init FILE, or --model.pretrained '' for random weights"
        )
    wanted = describe_weights(name).tag if tag == DEFAULT_TAG else tag
    if wanted not in tags:
        near = difflib.get_close_matches(tag, tags, n=1)
        raise InputError(
            f"timm has no weights {tag} for {name}{f' (did you mean {near[0]}?)' if near else ''}: "
            f"give --model.pretrained one of {', '.join(tags)}"
        )
    return wanted


def fetch_weights(name: str, tag: str) -> Path:
    """Return the file with timm's weights of a tag: from the local cache, or else downloaded into it.

    Raises:
        InputError: it is not in the cache, and the hub cannot be reached or does not give it.
    """
    config = describe_weights(f"{name}.{tag}")
    try:
        return _fetch_from_hub(config.hf_hub_id) if config.hf_hub_id else _fetch_from_url(str(config.url))
    except Exception as error:  # the hub's client and its HTTP client raise almost any exception
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"the weights {name}.{tag} are not in the local cache, and the hub cannot be reached for them ({reason}): "
            "check the network, or download them elsewhere and give --model.init FILE"
        ) from error


def _fetch_from_hub(repo: str) -> Path:
    import huggingface_hub  # noqa: PLC0415

    for name in HUB_FILES:
        if isinstance(found := huggingface_hub.try_to_load_from_cache(repo, name), str):
            return Path(found)
    # One request that fails at once without a network. A download alone would repeat its request for half a minute.
    siblings = huggingface_hub.HfApi().model_info(repo, timeout=10).siblings or []
    names = {each.rfilename for each in siblings}
    name = next((name for name in HUB_FILES if name in names), HUB_FILES[0])
    return Path(huggingface_hub.hf_hub_download(repo, name))


def _fetch_from_url(url: str) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=False)  # under another name until it is complete
    return path


def convert_file(name: str, num_classes: int, options: Mapping[str, Any], weights: Weights) -> Weights:
    """Return all tensors of a network, as timm converts weights of any source that it knows.

    Args:
        num_classes: of the classifier in the weights; 0: they have none, and neither has the result.
        options: further arguments of the model.

    Raises:
        RuntimeError: tensors are missing, unknown or of another shape, also after the conversion. Networks and
            conversions raise other exceptions too.
    """
    overlay = {"num_classes": num_classes, "label_offset": 0}
    # timm loads a few networks (DLA, Inception v3) without checking that nothing is missing. So the conversion also
    # runs on NaN: a number in its result is not from the file.
    all_nan = {
        each: torch.full_like(tensor, torch.nan) if tensor.is_floating_point() else tensor
        for each, tensor in weights.items()
    }
    tracked = _load_by_timm(name, all_nan, num_classes, overlay, options)
    missing = [each for each, tensor in tracked.items() if tensor.is_floating_point() and not tensor.isnan().all()]
    if missing:
        raise RuntimeError(f"missing: {list_some(missing)}")
    return _load_by_timm(name, weights, num_classes, overlay, options)


def convert_published(name: str, tag: str, options: Mapping[str, Any], weights: Weights) -> Weights:
    """Return all tensors of timm's own weights, as timm converts them; raise as `convert_file` does."""
    return _load_by_timm(f"{name}.{tag}", weights, None, {}, options)


def _load_by_timm(
    name: str, weights: Weights, num_classes: int | None, overlay: dict[str, Any], options: Mapping[str, Any]
) -> Weights:
    # timm changes the dict. Building a network draws random numbers, which must not change those of the run.
    source = {"state_dict": dict(weights), **overlay}
    with torch.random.fork_rng(devices=[]), _without_warnings():
        model = timm.create_model(
            name, pretrained=True, num_classes=num_classes, pretrained_cfg_overlay=source, **options
        )
    return model.state_dict()


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence timm's warnings about tensors that it leaves out: `describe_conversion` counts them."""
    logger = logging.getLogger("timm")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def describe_conversion(before: Weights, after: Weights) -> tuple[str, ...]:
    """Return what a conversion changed, one phrase each: names, and shapes of tensors with the same name."""
    resized = [
        f"{name} {tuple(before[name].shape)} -> {tuple(tensor.shape)}"
        for name, tensor in after.items()
        if name in before and before[name].shape != tensor.shape
    ]
    added, gone = (
        sum(not name.endswith(COUNTER) for name in names)
        for names in (after.keys() - before.keys(), before.keys() - after.keys())
    )
    changes = [f"timm resized {list_some(resized)}"] if resized else []
    if added:
        changes.append(f"timm gave {gone} tensors other names" + (f", as {added} tensors" if added != gone else ""))
    elif gone:
        changes.append(f"timm left out {gone} tensors")
    return tuple(changes)
