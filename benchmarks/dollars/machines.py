"""Read cloud/machines.json: EC2 machines with their prices, and published training rates of their GPUs."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from reports.reading import CHECKOUT

from prep.errors import InputError

MACHINES = CHECKOUT / "cloud" / "machines.json"
BLOCK = 4096  # bytes of an operation in AWS's figures of disks
GIGABIT = 1e9 / 8  # bytes


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
    disk_read_iops: float
    disk_write_iops: float
    on_demand: float  # dollars per hour
    spot: float  # dollars per hour
    spot_is_typical: bool  # no price was found: a typical share of the price on demand

    @property
    def disk_read(self) -> float:
        """Bytes/s that the disks give at least."""
        return self.disk_read_iops * BLOCK

    @property
    def disk_write(self) -> float:
        """Bytes/s that the disks take at least."""
        return self.disk_write_iops * BLOCK


@dataclass(frozen=True)
class Publication:
    """Somebody's rate of training ResNet-50 on one GPU."""

    images_per_second: dict[int, float]  # by size in pixels
    network: str
    software: str
    source: str


@dataclass(frozen=True)
class Catalogue:
    """The content of a file of machines."""

    date: str
    sources: dict[str, dict[str, str]]
    machines: dict[str, Machine]
    publications: dict[str, list[Publication]]  # by GPU


def read_catalogue(path: Path) -> Catalogue:
    """Read a file of machines.

    Raises:
        InputError: it does not exist, is not JSON, or lacks a field.
    """
    try:
        content = json.loads(path.read_bytes())
        machines = {name: _read_machine(name, each, content) for name, each in content["machines"].items()}
        publications = {gpu: [_read_publication(each) for each in rates] for gpu, rates in content["gpus"].items()}
        return Catalogue(content["date"], content["sources"], machines, publications)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: give a file like cloud/machines.json") from error
    except ValueError as error:
        raise InputError(f"{path} is not a file of machines ({error}): write it like cloud/machines.json") from error
    except (KeyError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__} {error}"
        raise InputError(f"{path} is not a file of machines ({what}): write it like cloud/machines.json") from error


def _read_machine(name: str, content: dict[str, Any], catalogue: dict[str, Any]) -> Machine:
    is_typical = content["spot"] is None
    spot = content["on_demand"] * catalogue["typical_spot_share"] if is_typical else content["spot"]
    given = {field.name: content[field.name] for field in fields(Machine)[1:] if field.name != "spot_is_typical"}
    for field, value in given.items():
        if field != "gpu" and not (field == "spot" and is_typical) and not value > 0:
            raise ValueError(f"{field} of {name} must be more than 0, got {value}")
    return Machine(name, **(given | {"spot": spot}), spot_is_typical=is_typical)


def _read_publication(content: dict[str, Any]) -> Publication:
    by_size = {int(size): float(rate) for size, rate in content["images_per_second"].items()}
    return Publication(by_size, content["network"], content["software"], content["source"])


def choose_machines(catalogue: Catalogue, names: Sequence[str]) -> list[Machine]:
    """Return the machines with these names, a family such as g6e standing for all of its sizes; all without names.

    Raises:
        InputError: a name is unknown; the message lists the known ones.
    """
    known = catalogue.machines
    chosen: dict[str, Machine] = {}
    for name in names or known:
        found = {each: known[each] for each in known if name in (each, each.partition(".")[0])}
        if not found:
            raise InputError(f"unknown machine {name}: choose from {', '.join(known)}")
        chosen |= found
    return list(chosen.values())


def replace_prices(catalogue: Catalogue, prices: Sequence[str], spot_prices: Sequence[str]) -> Catalogue:
    """Return the machines with other prices, each given as NAME=DOLLARS per hour.

    Raises:
        InputError: a machine is unknown, or a price is not a number greater than 0.
    """
    machines = dict(catalogue.machines)
    for name, dollars in _parse_prices(catalogue, prices, "--price"):
        machine = replace(machines[name], on_demand=dollars)
        # A typical price on the spot market follows the price on demand.
        share = machines[name].spot / machines[name].on_demand
        machines[name] = replace(machine, spot=dollars * share) if machine.spot_is_typical else machine
    for name, dollars in _parse_prices(catalogue, spot_prices, "--spot-price"):
        machines[name] = replace(machines[name], spot=dollars, spot_is_typical=False)
    return replace(catalogue, machines=machines)


def _parse_prices(catalogue: Catalogue, words: Sequence[str], flag: str) -> Iterator[tuple[str, float]]:
    for word in words:
        name, _, text = word.partition("=")
        (machine,) = choose_machines(catalogue, [name]) if name in catalogue.machines else (None,)
        if machine is None:
            raise InputError(f"{flag}: unknown machine {name}: choose from {', '.join(catalogue.machines)}")
        try:
            dollars = float(text)
        except ValueError:
            dollars = 0.0
        if not 0 < dollars < float("inf"):
            raise InputError(f"{flag} must be NAME=DOLLARS per hour, such as {name}=1.86, got {word}")
        yield name, dollars
