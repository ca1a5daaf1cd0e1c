"""Small training runs in this process, for tests of how a run starts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loaders import EvalTransform, TrainTransform, World
from prep.errors import InputError
from train.checkpoint import list_checkpoints, newest_complete
from train.config import Recipe
from train.fit import fit
from train.recipe import demo

SIZE, BATCH_SIZE = 16, 48


def small_recipe(data: Path, run_dir: Path, classes: tuple[str, ...] = (), **model: Any) -> Recipe:
    """Return a recipe of three steps of a small network over a tenth of the digits; `model`: fields of ModelConfig."""
    recipe = demo()
    return replace(
        recipe,
        epochs=1.0,
        batch_size=BATCH_SIZE,
        model=replace(recipe.model, **{"name": "test_resnet", **model}),
        optim=replace(recipe.optim, warmup_epochs=0.5),
        transform=TrainTransform(size=SIZE, hflip=0.0),
        evaluation=EvalTransform(size=SIZE, resize=SIZE),
        data=replace(recipe.data, root=data, fraction=0.2 if classes else 0.1, classes=classes),
        run=replace(recipe.run, dir=run_dir, log_every=1, keep=9, spot="off"),
    )


def change_model(recipe: Recipe, **model: Any) -> Recipe:
    """Return the recipe with other fields of ModelConfig."""
    return replace(recipe, model=replace(recipe.model, **model))


def change_run(recipe: Recipe, **run: Any) -> Recipe:
    """Return the recipe with other fields of RunConfig."""
    return replace(recipe, run=replace(recipe.run, **run))


def first_checkpoint(recipe: Recipe) -> Path:
    """Return the oldest checkpoint of a run."""
    return list_checkpoints(recipe.run_dir / "checkpoints")[0]


def newest_checkpoint(recipe: Recipe) -> Path:
    """Return the newest checkpoint of a run."""
    path = newest_complete(recipe.run_dir / "checkpoints")[0]
    assert path is not None
    return path


def read_starts(recipe: Recipe) -> list[dict[str, Any]]:
    """Return the entries of starts.jsonl."""
    return [json.loads(line) for line in (recipe.run_dir / "starts.jsonl").read_text().splitlines()]


def refuse(recipe: Recipe) -> str:
    """Return the one line with which a new run is refused, which leaves no folder behind."""
    assert not recipe.run_dir.exists()
    with pytest.raises(InputError) as refusal:
        fit(recipe, World())
    assert not recipe.run_dir.exists()
    assert "\n" not in str(refusal.value)
    return str(refusal.value)
