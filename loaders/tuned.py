"""Settings that `benchmarks/throughput.py --tune` found: what a file of them holds, and how a loader takes it.

A file holds for the machine that it was taken on. Elsewhere it is left aside, for the defaults fit any machine.
"""

import json
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from loaders.batch import World
from loaders.config import LoaderConfig
from prep.errors import InputError

KIND, FORMAT = "loader settings", 1  # of such a file
SETTINGS = ("placement", "num_threads", "batches_ahead", "decode", "hw_decoder_load", "pin_threads")
log = logging.getLogger("penstock")


class TunedFileError(InputError):
    """A file of tuned settings cannot be used."""


@dataclass(frozen=True)
class Place:
    """What settings of speed hold for."""

    cores: int  # that a process may run on
    gpu: str | None  # None: decoded on the CPU
    num_processes: int  # that share the machine

    def __str__(self) -> str:
        return f"{self.cores} cores, {self.gpu or 'no GPU'}, processes on the machine: {self.num_processes}"


@dataclass(frozen=True)
class Tuned:
    """What the loader needs of a file."""

    settings: dict[str, Any]  # some of SETTINGS
    backend: str
    place: Place


def find_place(world: World) -> Place:
    """Where this process runs."""
    on_gpu = world.device.type == "cuda"
    gpu = torch.cuda.get_device_name(world.device) if on_gpu else None
    return Place(len(os.sched_getaffinity(0)), gpu, world.local_size)


def read_tuned(path: Path) -> Tuned:
    """The settings in a file.

    Raises:
        TunedFileError: it cannot be read, is damaged, or is something else.
    """
    try:
        return _parse(json.loads(path.read_text()))
    except OSError as error:
        raise TunedFileError(f"{path} cannot be read ({error.strerror}): give the file that --tune wrote") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        fix = f"write it again with `python benchmarks/throughput.py --tune --out {path}`"
        raise TunedFileError(f"{path} holds no loader settings ({reason}): {fix}") from error


def _parse(record: dict[str, Any]) -> Tuned:
    """Raises KeyError, TypeError or ValueError for what is not such a record."""
    if (record["what"], record["format"]) != (KIND, FORMAT):
        raise ValueError(f"it is {record['what']!r} of format {record['format']!r}, not {KIND!r} of format {FORMAT}")
    settings, hardware = record["settings"], record["hardware"]
    for name, value in settings.items():
        usual = getattr(LoaderConfig(), name) if name in SETTINGS else None
        if type(value) is not type(usual) and not (name == "hw_decoder_load" and type(value) is int):
            raise ValueError(f"{name} {value!r} is no setting")
    LoaderConfig(**settings).check()
    # A record's hardware also names the GPU's driver and memory, which are not what settings hold for. Files of before
    # there was a field for the name alone are of machines without a GPU.
    place = Place(hardware["cores"], record.get("gpu", hardware["gpu"]), record["local_processes"])
    return Tuned(settings, record["backend"], place)


def settle(config: LoaderConfig, world: World) -> LoaderConfig:
    """The configuration with the settings of its file in the place of those fields that have their default.

    Where the file is of another machine none is taken, and a line of the log says so.

    Raises:
        TunedFileError: as `read_tuned`, or the file is of another backend.
    """
    if config.tuned is None:
        return config
    path, tuned = Path(config.tuned), read_tuned(Path(config.tuned))
    if tuned.backend != config.backend:
        raise TunedFileError(
            f"{path} was measured with the backend {tuned.backend}, not {config.backend}: "
            f"leave it out, or take --loader.backend {tuned.backend}"
        )
    if tuned.place != (here := find_place(world)):
        log.warning("%s is left aside: it was measured on %s; here are %s. Tune again here", path, tuned.place, here)
        return replace(config, tuned=None)
    usual = LoaderConfig()
    taken = {name: each for name, each in tuned.settings.items() if getattr(config, name) == getattr(usual, name)}
    return replace(config, tuned=None, **taken)
