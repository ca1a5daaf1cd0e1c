"""Evaluation counts every image once, whatever the number of processes and the padding."""

import json
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import run_command
from safetensors.torch import load_file
from torch.nn import functional

from loaders import Batch, EvalTransform, LoaderConfig, Split, TrainTransform, World, build_loader
from loaders.normalize import Normalize
from train.checkpoint import EMA, MODEL, list_checkpoints
from train.fit import fit
from train.model import build_model
from train.recipe import Recipe, demo
from train.validate import score, to_scores

NUM_VALIDATION = 360

# Imports once, then forks the processes of each world: what torchrun does, in a third of the time.
EVALUATE = """
import os, sys, json, traceback
import torch
from train import evaluate
torch.set_num_threads(1)
for size, port in enumerate(sys.argv[3:], start=1):
    children = []
    for rank in range(size):
        if pid := os.fork():
            children.append(pid)
            continue
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size),
                          MASTER_ADDR="localhost", MASTER_PORT=port)
        sys.argv[1:] = [sys.argv[1], "--data", sys.argv[2], "--device", "cpu", "--batch-size", "50"]
        try:
            with open(f"{sys.argv[1]}/scores-{size}-{rank}", "w") as sys.stdout:
                evaluate.main()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if any([os.waitpid(pid, 0)[1] for pid in children]):
        sys.exit(f"failed with {size} processes")
"""


@pytest.fixture(scope="module")
def recipe(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A short run that has been trained."""
    short = demo()
    recipe = replace(
        short,
        epochs=0.5,
        batch_size=32,
        ema_decay=0.8,
        optim=replace(short.optim, warmup_epochs=0.1),
        transform=TrainTransform(size=16, hflip=0.0),
        evaluation=EvalTransform(size=16, resize=16),
        data=replace(short.data, root=digits),
        run=replace(short.run, dir=tmp_path_factory.mktemp("evaluate") / "run"),
    )
    fit(recipe, World())
    return recipe


@pytest.fixture(scope="module")
def by_size(recipe: Recipe, digits: Path) -> dict[int, dict[str, Any]]:
    """What train/evaluate.py prints with 1, 2 and 3 processes."""
    with socket.socket() as first, socket.socket() as second, socket.socket() as third:
        for free in (first, second, third):
            free.bind(("localhost", 0))
        ports = [free.getsockname()[1] for free in (first, second, third)]
    done = run_command("-c", EVALUATE, recipe.run_dir, digits, *ports, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (recipe.run_dir / "scores-3-2").read_text() == "", "rank 2 spoke too"
    return {size: json.loads((recipe.run_dir / f"scores-{size}-0").read_text()) for size in (1, 2, 3)}


def _assert_same(ours: Mapping[str, Any], theirs: Mapping[str, Any], rel: float) -> None:
    for name in ("num_images", "num_top1", "num_top5"):
        assert ours[name] == theirs[name]
    assert ours["loss_sum"] == pytest.approx(theirs["loss_sum"], rel=rel)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("name", ["model", "ema"])
def test_any_number_of_processes_counts_the_same(by_size: dict[int, dict[str, Any]], size: int, name: str) -> None:
    assert by_size[size]["num_processes"] == size
    assert by_size[size][name]["num_images"] == NUM_VALIDATION
    # Convolutions round differently in a batch padded differently: float32's own noise, no image more or less.
    _assert_same(by_size[size][name], by_size[1][name], rel=1e-6)


@pytest.mark.parametrize(("name", "file"), [("model", MODEL), ("ema", EMA)])
def test_scores_are_those_of_a_plain_loop(
    by_size: dict[int, dict[str, Any]], recipe: Recipe, name: str, file: str
) -> None:
    split = Split(recipe.data.root, "validation")
    model = build_model(recipe.model, 10, torch.device("cpu")).eval()
    model.load_state_dict(load_file(list_checkpoints(recipe.run_dir / "checkpoints")[-1] / file))
    normalize = Normalize(recipe.model.mean, recipe.model.std)
    found = {"num_images": 0, "num_top1": 0, "num_top5": 0, "loss_sum": 0.0}
    with torch.inference_mode():
        for batch in build_loader(split, recipe.evaluation, 1, config=LoaderConfig("dali")):
            logits = model(normalize(batch.images_BCHW))[0]
            label = int(batch.labels_B)
            rank = int((logits > logits[label]).sum())
            found["num_images"] += 1
            found["num_top1"] += rank < 1
            found["num_top5"] += rank < 5
            found["loss_sum"] += float(functional.cross_entropy(logits[None], batch.labels_B))
    _assert_same(by_size[1][name], found, rel=1e-5)


def _batch(labels: list[int], valid: list[bool], damaged: list[bool] | None = None) -> Batch:
    images, damaged_B = torch.zeros(len(labels), 3, 2, 2, dtype=torch.uint8), torch.zeros(len(labels), dtype=torch.bool)
    damaged_B = torch.tensor(damaged) if damaged else damaged_B
    return Batch(images, torch.tensor(labels), torch.tensor(valid), damaged_B, 0, np.arange(len(labels)))


def test_padding_is_not_counted_even_where_its_logits_are_not_numbers() -> None:
    logits = torch.arange(6.0).repeat(4, 1)  # guesses: 5, 4, 3, 2, 1
    logits[3] = torch.nan
    sums = to_scores(score(logits, _batch([5, 1, 0, 5], [True, True, True, False])).tolist())
    assert (sums.num_images, sums.num_top1, sums.num_top5) == (3, 1, 2)
    expected = functional.cross_entropy(logits[:3], torch.tensor([5, 1, 0]), reduction="sum").item()
    assert sums.loss_sum == pytest.approx(expected, rel=1e-6)


def test_a_damaged_image_counts_and_is_never_a_hit() -> None:
    logits = torch.eye(6)[:3]  # guesses: 0, 1, 2, all right
    sums = to_scores(score(logits, _batch([0, 1, 2], [True] * 3, [False, True, False])).tolist())
    assert (sums.num_images, sums.num_damaged, sums.num_top1, sums.num_top5) == (3, 1, 2, 2)


def test_a_padded_image_that_claims_to_be_valid_changes_the_count() -> None:
    logits = torch.eye(4, 6)
    right, wrong = (score(logits, _batch([0, 1, 2, 3], [True, True, True, last])).tolist() for last in (False, True))
    assert (right[:3], wrong[:3]) == ([3, 0, 3], [4, 0, 4])


def test_fewer_classes_than_five_guesses() -> None:
    sums = score(torch.eye(3), _batch([0, 2, 2], [True] * 3)).tolist()
    assert sums[:4] == [3, 0, 2, 3]
