"""Choose the device of a command in serve: its --device flag, and the check that torch can use the device."""

# ruff: noqa: PLC0415 - torch takes seconds to import, and --help must not wait for it

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from prep.errors import InputError

if TYPE_CHECKING:
    import torch


def add_device_flag(parser: argparse.ArgumentParser) -> None:
    """Add --device to a command line."""
    parser.add_argument(
        "--device", default="auto", metavar="DEVICE", help="auto (a GPU if there is one), cpu, cuda or cuda:N"
    )


def choose_device(wanted: str) -> torch.device:
    """Return the device for `wanted`: auto (a GPU if torch can use one, else the CPU), cpu, cuda or cuda:N.

    Raises:
        InputError: the device is unknown, or this machine does not have it.
    """
    import torch

    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto":
        return torch.device("cuda" if num_gpus else "cpu")
    kind, _, number = wanted.partition(":")
    if (kind, number) != ("cpu", "") and not (kind == "cuda" and (number.isdecimal() or wanted == "cuda")):
        raise InputError(f"--device must be auto, cpu, cuda or cuda:N, got {wanted}")
    if kind == "cuda" and int(number or 0) >= num_gpus:
        raise InputError(f"--device {wanted} was requested, but torch can use {num_gpus} GPUs: choose --device cpu")
    return torch.device(wanted)
