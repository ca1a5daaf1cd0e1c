"""A model of each of timm's families from training to the gallery, and what cannot work is one line.

PENSTOCK_SOAK_FAMILIES=1 tries all of tests/helpers/families.py, as the table in docs/models.md lists them.
"""

import json
import os
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers.commands import CHECKOUT
from helpers.datasets import prepare_folder
from helpers.evaluations import one_thread
from helpers.families import FAMILIES, Family
from PIL import Image

from loaders import EvalTransform, World
from serve.artifact import load_artifact
from train.artifact import golden_logits
from train.config import DataConfig, ModelConfig, Recipe, RunConfig
from train.fit import fit
from train.recipe import demo

USUAL = ["ResNet"]
TRIED = list(FAMILIES) if os.environ.get("PENSTOCK_SOAK_FAMILIES") else USUAL
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared dataset of two classes of bright and dark noise: 24 images to train on, 8 to validate."""
    source, out = tmp_path_factory.mktemp("noise"), tmp_path_factory.mktemp("noise-shards")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for kind, least in (("dark", 0), ("bright", 150)):
            folder = source / split / kind
            folder.mkdir(parents=True)
            for number in range(count):
                pixels_HWC = rng.integers(least, least + 100, (70, 80, 3), dtype=np.uint8)
                Image.fromarray(pixels_HWC).save(folder / f"{number}.jpg")
    for split in ("train", "validation"):
        prepare_folder(source, split, out)
    return out


def small(data: Path, run: Path, model: str, size: int, evaluation: int = 0) -> Recipe:
    """Three steps of a model, and an evaluation."""
    recipe = demo()
    return replace(
        recipe,
        epochs=1,
        batch_size=8,
        model=ModelConfig(model),
        optim=replace(recipe.optim, lr=0.01, warmup_epochs=0.5),
        transform=replace(recipe.transform, size=size),
        evaluation=EvalTransform(evaluation or size, evaluation or size),
        data=DataConfig(data),
        run=RunConfig(run, log_every=8),
    )


def run_script(script: str, *arguments: object) -> None:
    """Run a command of the checkout in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        try:
            runpy.run_path(str(CHECKOUT / script), run_name="__main__")
        except SystemExit as left:
            assert not left.code, left.code


def go_all_the_way(family: Family, data: Path, folder: Path, evaluation: int = 0) -> None:
    """Train, evaluate, export, load with timm and with serve, draw a gallery or be refused in one line."""
    run, artifact = folder / "run", folder / "artifact"
    recipe = small(data, run, family.model, family.size, evaluation)
    assert fit(recipe, World())
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("ema_top1" in entry for entry in logged)
    run_script("train/evaluate.py", run, "--device", "cpu", "--out", folder / "scores", "--batch-size", 8)
    run_script("train/export.py", run, "--out", artifact, "--scores", folder / "scores" / "scores.json")
    loaded = timm.create_model(f"local-dir:{artifact}", pretrained=True).eval()
    served = load_artifact(artifact)
    golden_K = golden_logits(loaded, recipe)
    torch.testing.assert_close(golden_logits(served.model, recipe), golden_K, rtol=1e-4, atol=1e-5)
    picture = folder / "gallery.png"
    where = ("--checkpoint_path", artifact, "--validation_img_path", data / "validation", "--output_path", picture)
    if not family.maps:
        with pytest.raises(AssertionError, match=r"^error: no stage of .* gives a feature map"):
            run_script("serve/gradcam_viz.py", *where, "--all", "--anyway")
        return
    run_script("serve/gradcam_viz.py", *where, "--all", "--anyway")
    with Image.open(picture) as drawn:
        assert drawn.width > 500


@pytest.mark.parametrize("name", TRIED)
def test_a_model_trains_evaluates_exports_loads_and_is_explained(name: str, noise: Path, tmp_path: Path) -> None:
    with one_thread():
        go_all_the_way(FAMILIES[name], noise, tmp_path)


def test_a_transformer_is_exported_for_another_resolution_than_it_was_trained_at(noise: Path, tmp_path: Path) -> None:
    family = Family("ViT", "vit_tiny_patch16_224")
    with one_thread():
        go_all_the_way(family, noise, tmp_path, evaluation=96)
        run_script("train/evaluate.py", tmp_path / "run", "--device", "cpu", "--size", 80)
    config = json.loads((tmp_path / "artifact/config.json").read_text())
    assert (config["model_args"]["img_size"], config["model_args"]["dynamic_img_size"]) == ([64, 64], True)
    assert config["pretrained_cfg"]["input_size"] == [3, 96, 96]
