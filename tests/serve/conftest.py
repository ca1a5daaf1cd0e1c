"""Fixtures for the tests of serve: a small trained network, exported as users do it, and the app as a server."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers.sharing import build_once

if TYPE_CHECKING:  # a fixture that lacks a package skips its tests, not the whole folder
    from helpers.app_visitors import Server
    from helpers.served import Exported

NUM_STEPS = 80


@pytest.fixture(scope="session")
def exported(digits: Path, shared_folder: Path) -> "Exported":
    """A network for digits at 16 pixels, much better than chance, with the accuracy that evaluation measured."""
    return train_and_export(digits, shared_folder, blurs=False)


@pytest.fixture(scope="session")
def exported_with_blur(digits: Path, shared_folder: Path) -> "Exported":
    """The same of a network that blurs before its strides."""
    return train_and_export(digits, shared_folder, blurs=True)


def train_and_export(digits: Path, shared_folder: Path, blurs: bool) -> "Exported":
    """Train, evaluate and export a network for digits, once for all workers."""
    from helpers.evaluations import learn, save, tiny_recipe  # noqa: PLC0415
    from helpers.served import Exported, run_here  # noqa: PLC0415

    def export(folder: Path) -> None:
        recipe = tiny_recipe(digits)
        recipe = replace(recipe, model=replace(recipe.model, blur_first=blurs))
        path = save(folder, recipe, *learn(recipe, NUM_STEPS))
        flags = ("--backend", "reference", "--device", "cpu", "--model", "ema", "--out", folder / "scores")
        run_here("train/evaluate.py", path, *flags)
        run_here("train/export.py", path, "--out", folder / "artifact", "--scores", folder / "scores" / "scores.json")

    folder = build_once(shared_folder, "exported-with-blur" if blurs else "exported", export)
    (checkpoint,) = (folder / "checkpoints").glob("step_*")
    return Exported(digits, checkpoint, folder / "scores", folder / "artifact")


@pytest.fixture(scope="session")
def server(exported: "Exported", tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Server]":
    """`python serve/app.py`, as a user starts it."""
    from helpers.app_visitors import serving  # noqa: PLC0415

    with serving(exported.artifact, tmp_path_factory.mktemp("app") / "log") as running:
        yield running
