"""Helpers of serve's tests: a network at each stage of its way, and commands in this process."""

import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers.commands import CHECKOUT
from helpers.evaluations import one_thread


@dataclass(frozen=True)
class Exported:
    """A network at each stage of its way."""

    data: Path  # the prepared digits
    checkpoint: Path
    scores: Path  # a folder of train/evaluate.py
    artifact: Path


def run_here(script: str, *arguments: object) -> None:
    """Run a command of the checkout in this process.

    Raises:
        SystemExit: its status is not 0; `code` is the status or the message.
    """
    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(str(CHECKOUT / script), run_name="__main__")
