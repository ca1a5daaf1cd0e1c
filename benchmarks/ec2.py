"""What is known of machines: cloud/machines.json, and the rates at which their GPUs train and their vCPUs decode.

Rates are from records, or published by somebody. A derived rate is never called measured: `Speed.origin` says in words
what was computed from what.
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from options import check_known
from reports.records import CHECKOUT, Record, Records, format_number

from prep.errors import InputError

MACHINES = CHECKOUT / "cloud" / "machines.json"
BLOCK = 4096  # bytes of an operation in AWS's figures of disks
RECORD, PUBLICATION = "record", "publication"
NETWORKS = ("resnet50", "resnet50d")
GPU_STEP, THROUGHPUTS = "gpu model", ("throughput of a recipe", "throughput")  # kinds of records with a training step
PLAIN_STEP = {
    "network": "resnet50",
    "amp": "bf16",
    "compile": "none",
    "is_small": False,
    "fused": False,
    "graph": False,
}
# How the rate depends on the size beyond the sizes that are known: as (size / known size) to the power of -1.66. FFCV's
# A100 trained 1.353 times as many images/s at 160 as at 192 pixels, where the number of pixels says 1.44.
EXPONENT = 1.66
# Of the decoding: CPU time at 224 and at 88 pixels, the rate of a vCPU, the rate of JPEG engines.
RATES = "h200/rates.json"
DECODING_FILES = ("sweeps.json", "sweeps-88.json", RATES, "h200/decode.json")
REFERENCE = 224  # pixels, of the measured rate of a vCPU
STORED = {  # forms of stored images, and their names in the records
    "original": "original",
    "500": "max side 500, quality 90",
    "256": "short side 256, quality 90",
}
HAS_ENGINES = ("H100", "H200")  # decode on the GPU by default; an H200 was measured


@dataclass(frozen=True)
class Machine:
    """One type of machine; its fields have the names of the file's."""

    name: str
    gpu: str
    gpus: int
    vcpus: int
    memory_gib: float
    network_gbit: float  # per second, always
    network_burst_gbit: float  # for minutes, at best effort
    disk_gb: float  # instance store, all disks together
    disk_read_iops: float  # operations of BLOCK bytes
    disk_write_iops: float
    on_demand: float  # dollars per hour
    spot: float  # dollars per hour
    spot_is_typical: bool  # no price was found: a typical share of the price on demand


def interpolate_seconds(seconds: dict[int, float], size: int) -> float:
    """Return the time of an image by size: linear in the number of pixels between the known sizes, else constant."""
    known = sorted(seconds)
    return float(np.interp(size**2, [each**2 for each in known], [seconds[each] for each in known]))


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

    def at(self, size: int) -> float:
        """Return images/s at any size: between known sizes linear in the pixels, beyond them by EXPONENT."""
        nearest = min(max(size, min(self.by_size)), max(self.by_size))
        seconds = interpolate_seconds({each: 1 / rate for each, rate in self.by_size.items()}, size)
        return (nearest / size) ** EXPONENT / seconds

    def describe_derived(self, sizes: Iterable[int]) -> str:
        """Return how the rates at other sizes than the known ones are derived, "" if none are."""
        low, high = min(self.by_size), max(self.by_size)
        others = [size for size in sizes if size not in self.by_size]
        words = ["linear in the pixels between them"] * any(low < size < high for size in others)
        words += [f"by the exponent {EXPONENT} beyond them"] * any(not low < size < high for size in others)
        return f"known at {', '.join(map(str, sorted(self.by_size)))} px; {', '.join(words)}" if words else ""


# The file of machines.


@dataclass(frozen=True)
class Catalogue:
    """The content of a file of machines."""

    sources: dict[str, dict[str, str]]
    machines: dict[str, Machine]
    published: dict[str, Speed]  # by GPU, of the first publication


def read_catalogue(path: Path, pytorch_share: float) -> Catalogue:
    """Read a file of machines.

    Args:
        pytorch_share: PyTorch's share of a rate that was published for MXNet.

    Raises:
        InputError: it does not exist, is not JSON, or lacks a field.
    """
    try:
        content = json.loads(path.read_bytes())
        share, gpus = content["typical_spot_share"], content["gpus"]
        machines = {name: _read_machine(name, each, share) for name, each in content["machines"].items()}
        published = {gpu: _read_publication(gpu, rates[0], pytorch_share) for gpu, rates in gpus.items() if rates}
        return Catalogue(content["sources"], machines, published)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: give a file like cloud/machines.json") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__} {error}"
        raise InputError(f"{path} is not a file of machines ({what}): write it like cloud/machines.json") from error


def _read_machine(name: str, content: dict[str, Any], typical_share: float) -> Machine:
    known = [field.name for field in fields(Machine) if field.name not in ("name", "spot_is_typical")]
    values = {field: content[field] for field in known}
    is_typical = values["spot"] is None
    if is_typical:
        values["spot"] = typical_share * values["on_demand"]
    for field, value in values.items():
        if field != "gpu" and not value > 0:
            raise ValueError(f"{field} of {name} must be more than 0, got {value}")
    return Machine(name, **values, spot_is_typical=is_typical)


def _read_publication(gpu: str, content: dict[str, Any], pytorch_share: float) -> Speed:
    """Return somebody's rates of training ResNet-50; those of MXNet times PyTorch's share of them."""
    share = pytorch_share if content["software"] == "MXNet" else 1.0
    published = {int(size): float(rate) for size, rate in content["images_per_second"].items()}
    quoted = ", ".join(f"{format_number(rate)} at {size} px" for size, rate in published.items())
    scaled = f" × {share:g} for PyTorch" if share != 1 else ""
    origin = f"{content['software']} {quoted}{scaled}; {content['source']}"
    by_size = {size: rate * share for size, rate in published.items()}
    return Speed(gpu, by_size, content["network"], PUBLICATION, origin, has_loader=True)


def choose_machines(machines: dict[str, Machine], names: Sequence[str]) -> list[Machine]:
    """Return the machines with these names, a family such as g6e standing for all its sizes; all without names."""
    families: dict[str, list[Machine]] = {}
    for name, machine in machines.items():
        families.setdefault(name.partition(".")[0], []).append(machine)
    known = {name: [machine] for name, machine in machines.items()} | families
    check_known("--machine", names, known)
    return list(dict.fromkeys(machine for name in names or machines for machine in known[name]))


def replace_prices(machines: dict[str, Machine], prices: Sequence[str], flag: str) -> dict[str, Machine]:
    """Return machines with other prices, each given as NAME=DOLLARS per hour; `flag` is --price or --spot-price.

    Raises:
        InputError: a machine is unknown, or a price is not a number greater than 0.
    """
    changed = dict(machines)
    for price in prices:
        name, _, text = price.partition("=")
        check_known(flag, [name], machines)
        try:
            dollars = float(text)
        except ValueError:
            dollars = 0.0
        if not 0 < dollars < math.inf:
            raise InputError(f"{flag} must be NAME=DOLLARS per hour, such as {name}=1.86, got {price}")
        old = machines[name]
        if flag == "--spot-price":
            changed[name] = replace(old, spot=dollars, spot_is_typical=False)
        else:  # a typical price on the spot market follows the price on demand
            spot = dollars * (old.spot / old.on_demand) if old.spot_is_typical else old.spot
            changed[name] = replace(old, on_demand=dollars, spot=spot)
    return changed


# Records of the training step.


def join_speeds(records: Sequence[Record], gpus: Sequence[str]) -> dict[str, Speed]:
    """Return the rates of all records by GPU. A later record replaces the sizes that it has of an earlier one.

    Raises:
        InputError: a record has no rates, or its GPU is in no machine.
    """
    joined: dict[str, Speed] = {}
    for record in records:
        speed = read_speed(record)
        gpu = match_gpu(speed.gpu, gpus)
        if gpu is None:
            known = ", ".join(gpus)
            raise InputError(f"{record.path} was measured on {speed.gpu}, which no machine has: they have {known}")
        speed, before = replace(speed, gpu=gpu), joined.get(gpu)
        if before and before.network == speed.network:
            origin, by_size = f"{before.origin}, {speed.origin}", before.by_size | speed.by_size
            speed = replace(speed, by_size=by_size, origin=origin, shape=speed.shape or before.shape)
        joined[gpu] = speed
    return joined


def match_gpu(text: str, gpus: Iterable[str]) -> str | None:
    """Return the known GPU that the words of a description name, such as H100 in "NVIDIA H100 80GB HBM3"."""
    words = re.split(r"[^0-9A-Za-z]+", text)
    return next((gpu for gpu in gpus if gpu in words), None)


def read_speed(record: Record) -> Speed:
    """Return the rates of a record.

    Raises:
        InputError: its kind has no training step, it was measured on a CPU, or it lacks a field.
    """
    content, path = record.content, record.path
    if record.what not in (GPU_STEP, *THROUGHPUTS):
        raise InputError(
            f"{path} is a record of {record.what}, which has no training step: "
            "give one of throughput.py or gpu_model.py"
        )
    if content.get("device") != "cuda" or content.get("is_rehearsal"):
        raise InputError(f"{path} was not measured on a GPU: give a record of the machine's GPU")
    with record.explain_errors():
        gpu = content["hardware"]["gpu"]
        network, by_size, shape = _read_step(content) if record.what == GPU_STEP else _read_throughput(content)
    if network not in NETWORKS or not by_size:
        raise InputError(f"{path} has no rate of {' or '.join(NETWORKS)}: give another record")
    return Speed(gpu, by_size, network, RECORD, record.name, has_loader=False, shape=shape)


def _read_step(content: dict[str, Any]) -> tuple[str, dict[int, float], None]:
    """Return the rates of the plain bf16 step of ResNet-50 in a record of gpu_model.py, which has no whole machine."""
    by_size: dict[int, float] = {}
    for case in content["cases"].values():
        result, settings = case["result"] or {}, case["settings"]
        is_plain = PLAIN_STEP.items() <= settings.items()
        if case["status"] == "done" and "images_per_second" in result and is_plain:
            by_size.setdefault(settings["size"], result["images_per_second"]["median"])
    return "resnet50", by_size, None


def _read_throughput(content: dict[str, Any]) -> tuple[str, dict[int, float], Shape]:
    """Return network and rates of the model's stage in a record of throughput.py, for one GPU, and its machine."""
    gpus = content["num_processes"]
    phases = content.get("phases") or [{"measured_size": content["size"], "stages": content["stages"]}]
    model, train = (
        {each["measured_size"]: each["stages"][name]["total"]["median"] for each in phases if name in each["stages"]}
        for name in ("model", "train")
    )
    shape = Shape(gpus, content["hardware"]["cores"], content["dataset"]["mean_bytes"], train)
    return content["model"], {size: rate / gpus for size, rate in model.items()}, shape


# Records of decoding.


@dataclass(frozen=True)
class Stored:
    """One form of stored images."""

    name: str
    bytes_per_image: float
    cpu_seconds: dict[int, float]  # of the loader per image, by size in pixels


@dataclass(frozen=True)
class Decoding:
    """The measured rates of decoding, and what training reaches.

    The rate of a vCPU is the measured one of a machine with 16 vCPUs, at 224 pixels from photographs as they are. For
    other sizes and stored forms it is scaled by the CPU times of the loader, measured on a machine with two cores.
    """

    stored: dict[str, Stored]
    vcpu: float  # images/s of one vCPU at 224 pixels, originals
    engines: float  # images/s of the JPEG engines of one GPU, at any size
    efficiency: float = 1.0  # of training with a loader, relative to the lowest bound, if the step was measured alone

    def per_vcpu(self, stored: Stored, size: int) -> float:
        """Return images/s of one vCPU."""
        scale = self.stored["original"].cpu_seconds[REFERENCE] / interpolate_seconds(stored.cpu_seconds, size)
        return self.vcpu * scale

    def rate(self, machine: Machine, stored: Stored, size: int) -> float:
        """Return images/s of a machine: of its vCPUs, or of its JPEG engines if they are faster."""
        engines = machine.gpus * self.engines if machine.gpu in HAS_ENGINES else 0.0
        return max(machine.vcpus * self.per_vcpu(stored, size), engines)


def read_decoding(records: Records) -> Decoding:
    """Return the rates of decoding, and the efficiency of training, from the committed records."""
    large, small, rates, engines = (records[name].content for name in DECODING_FILES)
    by_size = {88: small, REFERENCE: large}
    stored: dict[str, Stored] = {}
    for alias, name in STORED.items():
        found = {
            size: next(each for each in content["sizes"] if each["name"] == name) for size, content in by_size.items()
        }
        cpu = {size: each["cpu_seconds_per_1000_images"]["median"] / 1000 for size, each in found.items()}
        stored[alias] = Stored(alias, found[REFERENCE]["bytes_per_image"], cpu)

    loader = rates["cases"]["loader-cpu"]
    train, step = (_rate(rates, name) for name in ("train-resnet50-full-0.99", "model-resnet50"))
    vcpu = _rate(rates, "loader-cpu") / loader["hardware"]["cores"]
    return Decoding(stored, vcpu, _rate(engines, "decode-full-0.99"), train / step)


def _rate(content: dict[str, Any], case: str) -> float:
    """Return the images/s of a case of the GPU suite."""
    return content["cases"][case]["result"]["images_per_second"]["median"]
