"""Training rates of one GPU by image size: measured in a record, or published by somebody.

A derived rate is never called measured: `Speed.origin` says in words what was computed from what.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dollars.machines import Publication
from reports.reading import Record
from reports.recipes import seconds_per_image
from reports.words import format_number

from prep.errors import InputError

RECORD, PUBLICATION = "record", "publication"
NETWORKS = ("resnet50", "resnet50d")
PER_RECIPE, ONE_SIZE, GPU_STEP = "throughput of a recipe", "throughput", "gpu model"
KINDS = (PER_RECIPE, ONE_SIZE, GPU_STEP)
# How the rate depends on the size beyond the sizes that are known: as (size / known size) to the power of -1.66. FFCV's
# A100 trained 1.353 times as many images/s at 160 as at 192 pixels, where the number of pixels says 1.44.
EXPONENT = 1.66
# PyTorch's share of the rate of MLPerf's MXNet code, which fuses BatchNorm with other operations. Both are published
# for an A100 of 80 GB: 2,470 images/s (NVIDIA/DeepLearningExamples) and 3,400 (training_results_v2.1, HPE XL675d).
PYTORCH_SHARE = round(2470 / 3400, 2)


@dataclass(frozen=True)
class Shape:
    """The machine that a record measured as a whole, with its loader."""

    gpus: int
    cores: int
    mean_bytes: float  # of a stored image
    train: dict[int, float]  # images/s of training by size, all GPUs together


@dataclass(frozen=True)
class Speed:
    """The images/s of the training step on one GPU, by image size in pixels."""

    gpu: str
    by_size: dict[int, float]
    network: str
    kind: str  # RECORD or PUBLICATION
    origin: str  # the record's name or the publication's source, and what was changed
    has_loader: bool  # the rate is of a whole training with its loader
    shape: Shape | None = None


def rate_at(by_size: dict[int, float], size: int) -> float:
    """Return images/s at any size: between known sizes linear in the pixels, beyond them by EXPONENT."""
    nearest = min(max(size, min(by_size)), max(by_size))
    known = by_size[nearest] if nearest in by_size else 1 / seconds_per_image(by_size, nearest)
    return known * (nearest / size) ** EXPONENT


def describe_sizes(by_size: dict[int, float], sizes: Iterable[int]) -> str:
    """Return how the rates at other sizes than the known ones are derived, "" if none are."""
    others = [size for size in sizes if size not in by_size]
    beyond = any(not min(by_size) <= size <= max(by_size) for size in others)
    inside = any(min(by_size) <= size <= max(by_size) for size in others)
    known = ", ".join(map(str, sorted(by_size)))
    words = ["linear in the pixels between them"] * inside + [f"by the exponent {EXPONENT} beyond them"] * beyond
    return f"known at {known} px; {', '.join(words)}" if words else ""


def read_speed(record: Record) -> Speed:
    """Return the rates of a record.

    Raises:
        InputError: its kind has no training step, it was measured on a CPU, or it lacks a field.
    """
    if record.what not in KINDS:
        raise InputError(
            f"{record.path} is a record of {record.what}, which has no training step: give one of throughput.py or "
            "gpu_model.py"
        )
    content = record.content
    if content.get("device") != "cuda" or content.get("is_rehearsal"):
        raise InputError(f"{record.path} was not measured on a GPU: give a record of the machine's GPU")
    try:
        speed = _read_step(content) if record.what == GPU_STEP else _read_throughput(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise record.make_error(error) from error
    if speed.network not in NETWORKS or not speed.by_size:
        raise InputError(f"{record.path} has no rate of {' or '.join(NETWORKS)}: give another record")
    return replace(speed, origin=record.name)


def _read_step(content: dict[str, Any]) -> Speed:
    """Return the rates of the plain bf16 step of ResNet-50 in a record of gpu_model.py."""
    by_size: dict[int, float] = {}
    for case in content["cases"].values():
        result, settings = case["result"] or {}, case["settings"]
        if case["status"] == "done" and "images_per_second" in result and _is_plain(settings):
            by_size.setdefault(settings["size"], result["images_per_second"]["median"])
    return Speed(content["hardware"]["gpu"], by_size, "resnet50", RECORD, "", has_loader=False)


def _is_plain(settings: dict[str, Any]) -> bool:
    changed = any(settings[name] for name in ("is_small", "fused", "graph"))
    plain = ("resnet50", "bf16", "none")
    return tuple(settings[name] for name in ("network", "amp", "compile")) == plain and not changed


def _read_throughput(content: dict[str, Any]) -> Speed:
    """Return the rates of the model's stage in a record of throughput.py, for one GPU."""
    gpus, hardware = content["num_processes"], content["hardware"]
    phases = content.get("phases") or [{"measured_size": content["size"], "stages": content["stages"]}]
    model, train = (
        {each["measured_size"]: each["stages"][name]["total"]["median"] for each in phases if name in each["stages"]}
        for name in ("model", "train")
    )
    step = {size: rate / gpus for size, rate in model.items()}
    shape = Shape(gpus, hardware["cores"], content["dataset"]["mean_bytes"], train)
    return Speed(hardware["gpu"], step, content["model"], RECORD, "", has_loader=False, shape=shape)


def match_gpu(text: str, gpus: Iterable[str]) -> str | None:
    """Return the known GPU that the words of a description name, such as H100 in "NVIDIA H100 80GB HBM3"."""
    words = re.split(r"[^0-9A-Za-z]+", text)
    return next((gpu for gpu in gpus if gpu in words), None)


def join_records(records: Sequence[Record], gpus: Sequence[str]) -> dict[str, Speed]:
    """Return the rates of all records by GPU. A later record replaces the sizes that it has of an earlier one.

    Raises:
        InputError: a record has no rates, or its GPU is in no machine.
    """
    joined: dict[str, Speed] = {}
    for record in records:
        speed = read_speed(record)
        gpu = match_gpu(speed.gpu, gpus)
        if gpu is None:
            raise InputError(
                f"{record.path} was measured on {speed.gpu}, which no machine has: they have {', '.join(gpus)}"
            )
        speed, before = replace(speed, gpu=gpu), joined.get(gpu)
        if before and before.network == speed.network:
            origin = f"{before.origin}, {speed.origin}"
            by_size = before.by_size | speed.by_size
            speed = replace(speed, by_size=by_size, origin=origin, shape=speed.shape or before.shape)
        joined[gpu] = speed
    return joined


def quote_publication(gpu: str, publications: Sequence[Publication], pytorch_share: float) -> Speed:
    """Return the rates of the first publication; those of MXNet times PyTorch's share of it.

    Raises:
        InputError: there is none.
    """
    if not publications:
        raise InputError(f"no rate is published for {gpu}: give a record of one with --record")
    first = publications[0]
    share = pytorch_share if first.software == "MXNet" else 1.0
    by_size = {size: rate * share for size, rate in first.images_per_second.items()}
    quoted = ", ".join(f"{format_number(rate)} at {size} px" for size, rate in first.images_per_second.items())
    scaled = f" × {share:g} for PyTorch" if share != 1 else ""
    origin = f"{first.software} {quoted}{scaled}; {first.source}"
    return Speed(gpu, by_size, first.network, PUBLICATION, origin, has_loader=True)
