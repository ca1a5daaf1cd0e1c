"""Files of loader settings that `benchmarks/throughput.py --tune` measured, and how a loader applies them.

A file applies to the machine on which it was measured. On another machine it is ignored with a warning, because the
defaults fit any machine.
"""

import json
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loaders.config import LoaderConfig
from loaders.world import World
from prep.errors import InputError

KIND, FORMAT = "loader settings", 1  # identify such a file
SETTINGS = ("placement", "num_threads", "batches_ahead", "decode", "hw_decoder_load", "pin_threads")
log = logging.getLogger("penstock")


class TunedFileError(InputError):
    """A file of tuned settings cannot be used."""


@dataclass(frozen=True)
class Machine:
    """The machine that tuned settings apply to, and how many processes share it."""

    cores: int  # on which a process may run
    gpu: str | None  # the GPU's name; None if the model runs on the CPU
    num_processes: int

    def __str__(self) -> str:
        return f"{self.cores} cores, {self.gpu or 'no GPU'}, processes on the machine: {self.num_processes}"


@dataclass(frozen=True)
class Tuned:
    """The contents of a file that the loader uses."""

    settings: dict[str, Any]  # some of SETTINGS
    backend: str
    machine: Machine


def find_machine(world: World) -> Machine:
    """Return the machine of this process."""
    gpu = None
    if world.device.type == "cuda":
        import torch  # noqa: PLC0415  (commands parse their flags without torch)

        gpu = torch.cuda.get_device_name(world.device)
    return Machine(len(os.sched_getaffinity(0)), gpu, world.local_size)


def read_tuned(path: Path) -> Tuned:
    """Return the settings in a file.

    Raises:
        TunedFileError: the file cannot be read, is damaged, or is another kind of file.
    """
    try:
        return _parse_record(json.loads(path.read_text()))
    except OSError as error:
        raise TunedFileError(f"{path} cannot be read ({error.strerror}): use the file that --tune wrote") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        fix = f"write it again with `python benchmarks/throughput.py --tune --out {path}`"
        raise TunedFileError(f"{path} contains no valid loader settings ({reason}): {fix}") from error


def _parse_record(record: dict[str, Any]) -> Tuned:
    """Return the settings of a parsed file; raise KeyError, TypeError or ValueError if it is not such a record."""
    if (record["what"], record["format"]) != (KIND, FORMAT):
        raise ValueError(f"it is {record['what']!r} of format {record['format']!r}, not {KIND!r} of format {FORMAT}")

    # Each setting must have the type of its default; JSON may write the float 1.0 as 1.
    settings, hardware = record["settings"], record["hardware"]
    for name, value in settings.items():
        usual = getattr(LoaderConfig(), name) if name in SETTINGS else None
        if type(value) is not type(usual) and not (name == "hw_decoder_load" and type(value) is int):
            raise ValueError(f"{name} {value!r} is not a setting")
    LoaderConfig(**settings).check()

    # `hardware` also describes the GPU's driver and memory, which may change; the field `gpu` holds its name alone.
    # Files written before this field existed are from machines without a GPU.
    machine = Machine(hardware["cores"], record.get("gpu", hardware["gpu"]), record["local_processes"])
    return Tuned(settings, record["backend"], machine)


def apply_tuned(config: LoaderConfig, world: World) -> LoaderConfig:
    """Return the configuration with the settings of its `tuned` file; fields that differ from their default stay.

    If the file was measured on another machine, its settings are ignored, and a warning is logged.

    Raises:
        TunedFileError: see `read_tuned`, or the file is for another backend.
    """
    if config.tuned is None:
        return config
    path, tuned = Path(config.tuned), read_tuned(Path(config.tuned))
    if tuned.backend != config.backend:
        raise TunedFileError(
            f"{path} was measured with the backend {tuned.backend}, not {config.backend}: "
            f"remove the flag, or set --loader.backend {tuned.backend}"
        )
    if tuned.machine != (here := find_machine(world)):
        log.warning("ignoring %s: measured on %s; this machine: %s; run --tune here", path, tuned.machine, here)
        return replace(config, tuned=None)
    usual = LoaderConfig()
    changed = {name: each for name, each in tuned.settings.items() if getattr(config, name) == getattr(usual, name)}
    return replace(config, tuned=None, **changed)
