"""What the tests of serve share for the whole session: a small network that has learnt digits, exported as users do."""

from pathlib import Path

import pytest
from evaluations import learn, save, tiny_recipe
from served import Exported, run_here

NUM_STEPS = 80


@pytest.fixture(scope="session")
def exported(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Digits at 16 pixels, learnt well enough to be far from chance, with the accuracy that evaluation found."""
    folder = tmp_path_factory.mktemp("served")
    recipe = tiny_recipe(digits)
    path = save(folder, recipe, *learn(recipe, NUM_STEPS))
    flags = ("--backend", "reference", "--device", "cpu", "--model", "ema", "--out", folder / "scores")
    run_here("train/evaluate.py", path, *flags)
    run_here("train/export.py", path, "--out", folder / "artifact", "--scores", folder / "scores" / "scores.json")
    return Exported(digits, path, folder / "scores", folder / "artifact")
