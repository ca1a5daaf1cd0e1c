"""The short recipes: their published values, the images they see on any number of processes, and `--dry-run`."""

import json
import os
import runpy
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.commands import CHECKOUT

from loaders import Sampling, World
from loaders.plan import Images, Plan, TrainTransform, size_at, sizes, train_plan
from train.config import ModelConfig, OptimConfig, Recipe
from train.fit import check_recipe
from train.optim import lr_factor, peak_lr
from train.recipe import RECIPES, fast, quick

SHORT = [name for name in RECIPES if name.startswith(("fast_", "quick_"))]
WORLD_SIZES = [1, 4, 8]
# FFCV's rn50_configs: epochs of start_ramp and end_ramp; MosaicML's: epochs of the run and of the schedule.
FFCV = {16: (11, 13), 24: (17, 20), 32: (23, 27), 40: (29, 34), 56: (41, 48), 88: (65, 76)}
MOSAIC = {"quick_24": (24, 28), "quick_27": (27, 28), "quick_60": (60, 60)}


def ffcv_size(epoch: int, start: int, end: int) -> int:
    """Return the resolution of an epoch as train_imagenet.py computes it."""
    if epoch <= start:
        return 160
    return 192 if epoch >= end else int(np.round(np.interp(epoch, [start, end], [160, 192]) / 32)) * 32


@pytest.mark.parametrize("epochs", FFCV)
def test_fast_recipes_are_ffcvs(epochs: int) -> None:
    recipe = fast(epochs)
    assert [size_at(recipe.transform, epoch) for epoch in range(epochs)] == [
        ffcv_size(epoch, *FFCV[epochs]) for epoch in range(epochs)
    ]
    assert recipe.model == ModelConfig("resnet50", blur_first=True)
    optim = recipe.optim
    assert (optim.momentum, optim.nesterov, optim.weight_decay, recipe.label_smoothing) == (0.9, False, 1e-4, 0.1)
    for epoch in np.linspace(0, epochs, 50):
        expected = np.interp(epoch, [0, 2, epochs], [0, 1.7, 0])  # for 8 processes x 512 images
        ours = peak_lr(optim, 8 * 512) * lr_factor(epoch / epochs, optim.warmup_epochs / epochs, optim.schedule)
        assert ours == pytest.approx(expected, abs=1e-9)
    if f"fast_{epochs}" in RECIPES:
        assert RECIPES[f"fast_{epochs}"]() == recipe


def test_the_learning_rate_for_each_image_is_ffcvs_at_any_batch_size() -> None:
    """With 0.425 for 256 images, 1,024 images had the rate that FFCV gives to 4,096."""
    assert fast(24).batch_size == 4096
    assert peak_lr(fast(24).optim, 1024) == pytest.approx(1.7 / 4)


@pytest.mark.parametrize("name", MOSAIC)
def test_quick_recipes_are_mosaicmls(name: str) -> None:
    recipe, (epochs, length) = RECIPES[name](), MOSAIC[name]
    assert (recipe.epochs, recipe.schedule_epochs, recipe.batch_size) == (epochs, length, 2048)
    assert (recipe.loss, recipe.label_smoothing) == ("bce", 0.08)
    assert (recipe.ema_every, recipe.ema_half_life) == (20, 100 * 2048)
    assert recipe.model == ModelConfig("resnet50", blur_first=True, prior_bias=True)
    expected = OptimConfig(
        lr=0.256,
        momentum=0.875,
        nesterov=False,
        weight_decay=5e-4,
        decay_all=True,
        decoupled=True,
        warmup_epochs=8,
        schedule_epochs=length if length != epochs else None,
    )
    assert recipe.optim == expected and peak_lr(expected, 2048) == pytest.approx(2.048)
    assert (recipe.transform.scale, recipe.evaluation.size, recipe.evaluation.resize) == ((0.08, 1.0), 224, 232)


@pytest.mark.parametrize("name", MOSAIC)
def test_quick_recipes_grow_between_40_and_80_percent_of_their_schedule(name: str) -> None:
    """Each epoch has the step that is nearest to the size of MosaicML's ramp at its beginning."""
    recipe, (epochs, length) = RECIPES[name](), MOSAIC[name]
    assert sizes(recipe.transform, epochs) == [88, 104, 120, 136, 152, 168, 176]
    for epoch in range(epochs):
        theirs = 176 * (0.5 + 0.5 * float(np.clip((epoch / length - 0.4) / 0.4, 0, 1)))
        assert abs(size_at(recipe.transform, epoch) - theirs) <= 8.5
    assert {size_at(recipe.transform, epoch) for epoch in range(int(0.4 * length) + 1)} == {88}
    assert size_at(recipe.transform, round(0.8 * length)) == 176


def test_quick_24_and_quick_27_are_the_same_run_that_stops_earlier() -> None:
    long, short = quick(27, 28), quick(24, 28)
    assert replace(long, name=short.name, epochs=24) == short


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("size", WORLD_SIZES)
def test_short_recipes_are_accepted_for_any_of_these_machines(name: str, size: int) -> None:
    for rank in range(size):
        check_recipe(RECIPES[name](), World(rank, size))


# The same images in the same order, whatever the number of processes.

IMAGES = Images(np.full(5000, 500, np.int32), np.arange(300, 5300, dtype=np.int32))  # widths, heights


def decide(plan: Plan) -> list[tuple[Any, ...]]:
    columns = (plan.rows_B, plan.windows_B4, plan.resized_B2, plan.flips_B)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def borders(transform: TrainTransform, epochs: int) -> list[int]:
    """Return the epochs whose resolution is another one than before."""
    return [epoch for epoch in range(1, epochs) if size_at(transform, epoch) != size_at(transform, epoch - 1)]


@pytest.mark.parametrize("name", SHORT)
def test_any_number_of_processes_sees_the_same_images_where_the_resolution_grows(name: str) -> None:
    recipe = RECIPES[name]()
    batch_size, found = recipe.batch_size, borders(recipe.transform, int(recipe.epochs))
    assert len(found) == (6 if name.startswith("quick") else 1)
    for epoch in found:
        # The batch that straddles the border, and its neighbours.
        straddling = epoch * len(IMAGES) // batch_size * batch_size
        for position in (straddling - batch_size, straddling, straddling + batch_size):
            batches = {}
            for size in WORLD_SIZES:
                shares = [World(rank, size).share(batch_size) for rank in range(size)]
                plans = [train_plan(Sampling(), position, slots, IMAGES, recipe.transform) for slots in shares]
                assert len({plan.size for plan in plans}) == 1
                batches[size] = (plans[0].size, [row for plan in plans for row in decide(plan)])
            assert batches[1] == batches[4] == batches[8]
            assert batches[1][0] == size_at(recipe.transform, position // len(IMAGES))
    before, after = (
        train_plan(Sampling(), position, range(8), IMAGES, recipe.transform).size
        for position in ((found[0] - 1) * len(IMAGES), (found[0] + 1) * len(IMAGES))
    )
    assert before < after


# --dry-run.


def dry_run(patch: pytest.MonkeyPatch, arguments: list[str], rank: int, size: int) -> None:
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}.items():
        patch.setenv(name, str(value))
    patch.setattr(sys, "argv", ["train/main.py", *arguments, "--dry-run"])
    runpy.run_path(str(CHECKOUT / "train/main.py"), run_name="__main__")


@pytest.mark.parametrize(
    ("size", "flags", "line"),
    [
        (1, [], "quick_24: batch 2,048 = 1 process x 2,048 images, 1 microbatch of 2,048 in each, peak lr 2.048"),
        (
            1,
            ["--speed.microbatch", "256"],
            "quick_24: batch 2,048 = 1 process x 2,048 images, 8 microbatches of 256 in each, peak lr 2.048",
        ),
        (4, [], "quick_24: batch 2,048 = 4 processes x 512 images, 1 microbatch of 512 in each, peak lr 2.048"),
        (
            8,
            ["--batch-size", "1024", "--speed.microbatch", "64"],
            "quick_24: batch 1,024 = 8 processes x 128 images, 2 microbatches of 64 in each, peak lr 1.024",
        ),
    ],
)
def test_a_dry_run_tells_how_these_processes_share_a_batch(
    size: int,
    flags: list[str],
    line: str,
    digits: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dry_run(monkeypatch, ["quick_24", "--data.root", str(digits), *flags], 0, size)
    printed = capsys.readouterr()
    assert Recipe.from_dict(json.loads(printed.out)).name == "quick_24"
    batch_size = int(dict(pairwise(flags)).get("--batch-size", "2048"))
    steps = -(-24 * 1437 // batch_size)
    per_epoch = f"quick_24: 1,437 images = {1437 / batch_size:.1f} optimizer steps per epoch"
    expected = f"{per_epoch}, {steps} in 24 epochs of a schedule of 28"
    assert printed.err.splitlines() == [line, expected]
    for rank in range(1, size):  # the others print nothing
        dry_run(monkeypatch, ["quick_24", "--data.root", str(digits), *flags], rank, size)
        assert capsys.readouterr() == ("", "")


def test_a_dry_run_without_the_data_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dry_run(monkeypatch, ["quick_60", "--data.root", str(tmp_path / "none")], 0, 1)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("quick_60: 60 epochs; the number of steps is not known: ") and "none" in last


@pytest.mark.parametrize(
    ("flags", "size", "words"),
    [
        ([], 3, "must be a multiple of the number of processes, 3, got 2048"),
        (["--speed.microbatch", "300"], 1, "give --speed.microbatch 256"),
        (["--epochs", "30"], 1, "schedule_epochs must be at least epochs, which is 30, got 28"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would_refuse(
    flags: list[str], size: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        dry_run(monkeypatch, ["quick_24", *flags], 0, size)
    assert words in str(exit_.value.code)
    json.loads(capsys.readouterr().out)


def test_a_dry_run_under_torchrun_prints_once(digits: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "4", "train/main.py", "quick_27"]
    done = subprocess.run(
        [*command, "--data.root", str(digits), "--dry-run"],
        cwd=CHECKOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert json.loads(done.stdout)["name"] == "quick_27"
    assert done.stderr.count("quick_27: batch 2,048 = 4 processes x 512 images") == 1
