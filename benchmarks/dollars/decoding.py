"""How fast a machine reads and decodes: bytes and CPU time of an image by stored form, from the records.

The rate of a vCPU is the measured one of a machine with 16 vCPUs, at 224 pixels from photographs as they are. For other
sizes and stored forms it is scaled by the CPU times of the loader, measured on another machine with two cores.
"""

from dataclasses import dataclass
from typing import Any

from dollars.machines import Machine
from reports.reading import Records
from reports.recipes import seconds_per_image

from prep.errors import InputError

LARGE, SMALL = "sweeps.json", "sweeps-88.json"  # CPU time at 224 and at 88 pixels
LOADER, ENGINES = "h200/rates.json", "h200/decode.json"
FILES = (LARGE, SMALL, LOADER, ENGINES)
ANCHOR = 224  # pixels, of the measured rate of a vCPU
STORED = {  # forms of stored images, and their names in the records
    "original": "original",
    "500": "max side 500, quality 90",
    "256": "short side 256, quality 90",
}
HAS_ENGINES = ("H100", "H200")  # decode on the GPU by default; an H200 was measured


@dataclass(frozen=True)
class Stored:
    """One form of stored images."""

    name: str
    bytes_per_image: float
    cpu_seconds: dict[int, float]  # of the loader per image, by size in pixels


@dataclass(frozen=True)
class Decoding:
    """The measured rates of decoding."""

    stored: dict[str, Stored]
    vcpu: float  # images/s of one vCPU at 224 pixels, originals
    engines: float  # images/s of the JPEG engines of one GPU, at any size

    def per_vcpu(self, stored: Stored, size: int) -> float:
        """Return images/s of one vCPU."""
        anchor = self.stored["original"].cpu_seconds[ANCHOR]
        return self.vcpu * anchor / cpu_seconds(stored, size)

    def rate(self, machine: Machine, stored: Stored, size: int) -> float:
        """Return images/s of a machine: of its vCPUs, or of its JPEG engines if they are faster."""
        engines = machine.gpus * self.engines if machine.gpu in HAS_ENGINES else 0.0
        return max(machine.vcpus * self.per_vcpu(stored, size), engines)


def cpu_seconds(stored: Stored, size: int) -> float:
    """Return the loader's CPU time of an image, linear in the pixels between measured sizes, constant beyond them."""
    nearest = min(max(size, min(stored.cpu_seconds)), max(stored.cpu_seconds))
    return seconds_per_image({size: 1 / seconds for size, seconds in stored.cpu_seconds.items()}, nearest)


def read_decoding(records: Records) -> Decoding:
    """Return the rates of decoding from the committed records."""
    large, small, loader, engines = (records[name].content for name in FILES)
    stored = {
        alias: Stored(alias, _find(large, name)["bytes_per_image"], {88: _cpu(small, name), 224: _cpu(large, name)})
        for alias, name in STORED.items()
    }
    case = loader["cases"]["loader-cpu"]
    vcpu = case["result"]["images_per_second"]["median"] / case["hardware"]["cores"]
    return Decoding(stored, vcpu, engines["cases"]["decode-full-0.99"]["result"]["images_per_second"]["median"])


def _find(content: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in content["sizes"] if each["name"] == name)


def _cpu(content: dict[str, Any], name: str) -> float:
    return _find(content, name)["cpu_seconds_per_1000_images"]["median"] / 1000


def choose_stored(decoding: Decoding, name: str) -> Stored:
    """Return a stored form by name; raise InputError for an unknown one."""
    if name not in decoding.stored:
        raise InputError(f"unknown stored form {name}: choose from {', '.join(decoding.stored)}")
    return decoding.stored[name]
