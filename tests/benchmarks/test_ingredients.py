"""The proxy of ingredients: its command lines parse, its results are read, finished runs are not repeated."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import recorded
from helpers.commands import CHECKOUT

from prep.errors import InputError
from train.arguments import parse_command

ENTRY = {"kind": "validation", "clock": 24000, "epoch": 6.0, "top1": 21.5, "ema_top1": 22.25}


@pytest.fixture
def ingredients() -> Any:
    return importlib.import_module("ingredients")


def ours(ingredients: Any) -> Iterator[tuple[str, Any]]:
    yield from ((name, arm) for name, arm in ingredients.list_arms().items() if name != ingredients.TIMM)


def test_every_command_parses_to_the_recipe_that_its_arm_names(ingredients: Any, tmp_path: Path) -> None:
    recipes = {}
    for name, arm in ours(ingredients):
        command = ingredients.build_command(name, arm, 2, tmp_path, None)
        assert command[:2] == [sys.executable, str(CHECKOUT / "train" / "main.py")]
        recipes[name] = parse_command(command[2:]).recipe
    assert all(each.seed == 2 and each.data.root == tmp_path / "shards" for each in recipes.values())
    twice = recipes.pop("growing resolution alone, twice the images")
    assert (twice.epochs, twice.optim.warmup_epochs, twice.transform.grow) == (12, 2, (4.8, 9.6))
    assert {each.epochs for each in recipes.values()} == {ingredients.EPOCHS}  # equal budgets of images
    assert len({each.batch_size for each in recipes.values()}) == 1
    *_, before, last = recipes.values()
    assert last.optim.decoupled and last.optim.decay_all and not before.optim.decoupled
    for each in (before, last):  # each arm has the ingredients of all before it
        assert each.model.blur_first and each.model.prior_bias and each.loss == "bce"
        assert each.transform.first_size == 24 and each.ema_half_life == 1280 and each.ema_every == 4
    plain = recipes["baseline"]
    assert plain.transform.first_size is None and plain.loss == "cross_entropy" and not plain.model.blur_first


def test_timm_gets_the_hyperparameters_of_our_arm(ingredients: Any, tmp_path: Path) -> None:
    recipe = parse_command([*ingredients.COMMON, *ingredients.list_arms()["baseline"].flags]).recipe
    command = ingredients.build_command(
        ingredients.TIMM, ingredients.list_arms()[ingredients.TIMM], 1, tmp_path, Path("train.py")
    )
    given = {word: command[i + 1] for i, word in enumerate(command[:-1]) if word.startswith("--")}
    assert command[1] == "train.py" and given["--data-dir"] == str(tmp_path / "shards") and given["--seed"] == "1"
    assert float(given["--lr"]) == pytest.approx(recipe.optim.lr * recipe.batch_size / 256)
    assert float(given["--weight-decay"]) == recipe.optim.weight_decay
    assert float(given["--momentum"]) == recipe.optim.momentum and recipe.optim.nesterov  # timm's sgd is Nesterov
    assert float(given["--smoothing"]) == recipe.label_smoothing
    assert (int(given["--epochs"]), int(given["--batch-size"])) == (recipe.epochs, recipe.batch_size)
    assert float(given["--warmup-epochs"]) == recipe.optim.warmup_epochs and given["--model"] == recipe.model.name
    size = command.index("--input-size")
    assert command[size + 2] == command[size + 3] == str(recipe.transform.size) == str(recipe.evaluation.size)


def test_only_the_named_arms_run(ingredients: Any) -> None:
    assert list(ingredients.list_arms(("timm's", "base"))) == [ingredients.TIMM, "baseline"]
    assert len(ingredients.list_arms(("+ ",))) == 4
    with pytest.raises(InputError, match=r"--only must name parts of .*baseline.*, got no such arm"):
        ingredients.list_arms(("no such arm",))


def test_results_are_read_from_both_kinds_of_folders(ingredients: Any, tmp_path: Path) -> None:
    (tmp_path / "run" / "timm").mkdir(parents=True)
    lines = [{**ENTRY, "clock": 12000, "top1": 1.0}, ENTRY, {"kind": "train", "clock": 24000, "epoch": 6.0}]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    assert ingredients.read_result("baseline", tmp_path) == {"model": 21.5, "ema": 22.25}
    (tmp_path / "run" / "timm" / "summary.csv").write_text("epoch,train_loss,eval_top1\n0,3.5,9.5\n5,2.5,20.75\n")
    assert ingredients.read_result(ingredients.TIMM, tmp_path) == {"model": 20.75}


def test_a_run_is_taken_up_where_it_stopped(ingredients: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three seeds: one finished, one finished with other flags, one new; the two missing ones run."""
    arm = ingredients.Arm(("--optim.lr", "0.4"))
    finished = [{"name": "a", "seed": 0, "flags": arm.flags, "model": 20.0, "ema": 21.0}]
    finished += [{"name": "a", "seed": 1, "flags": ["--optim.lr", "9"], "model": 1.0, "ema": 1.0}]
    (tmp_path / ingredients.RUNS).write_text("".join(json.dumps(each) + "\n" for each in finished))
    started = []

    def pretend(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        started.append(command[command.index("--seed") + 1])
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps(ENTRY) + "\n")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pretend)
    ingredients.train_missing({"a": arm}, tmp_path, None)
    assert started == ["1", "2"]
    runs = ingredients.read_runs(tmp_path, {"a": arm})
    monkeypatch.undo()
    record = json.loads(json.dumps(ingredients.build_record({"a": arm}, runs)))
    top1 = record["arms"]["a"]["top1_model"]
    assert record["arms"]["a"]["seeds"] == [0, 1, 2] and top1["repetitions"] == [20.0, 21.5, 21.5]
    assert (top1["mean"], top1["min"], top1["max"]) == (21.0, 20.0, 21.5)
    tables = importlib.import_module("reports.kinds").make_tables(record)
    assert "21.00 (20.00 to 21.50)" in importlib.import_module("tables").to_markdown(tables)


def test_work_is_that_of_the_sizes(ingredients: Any) -> None:
    """By hand: three epochs at 24 pixels, then 32, 40 and 48; the exact steps are 30 and 40."""
    assert ingredients.relative_work(ingredients.list_arms()["baseline"]) == 1.0
    expected = (3 * 24**2 + 32**2 + 40**2 + 48**2) / (6 * 48**2)
    assert ingredients.relative_work(ingredients.list_arms()["+ growing resolution"]) == pytest.approx(expected)
    twice = ingredients.list_arms()["growing resolution alone, twice the images"]
    assert 0.9 < ingredients.relative_work(twice) < 1.1  # about the work of the baseline


def test_the_part_of_the_source_is_the_first_images_of_the_first_classes(ingredients: Any, tmp_path: Path) -> None:
    write_subset = ingredients.write_subset
    labels = [2, 0, 1, 0, 0, 1, 1, 2]
    images = [{"bytes": bytes([i]), "path": None} for i in range(len(labels))]
    for split in ("train", "validation"):
        pq.write_table(pa.table({"image": images, "label": labels}), tmp_path / f"{split}-00000-of-00001.parquet")
    write_subset(tmp_path, tmp_path / "out", 2, {"train": 2, "validation": 1})
    found = {str(path.relative_to(tmp_path / "out")): path.read_bytes() for path in (tmp_path / "out").rglob("*.JPEG")}
    assert found == {
        "train/000/00000.JPEG": b"\x01",
        "train/000/00001.JPEG": b"\x03",
        "train/001/00000.JPEG": b"\x02",
        "train/001/00001.JPEG": b"\x05",
        "validation/000/00000.JPEG": b"\x01",
        "validation/001/00000.JPEG": b"\x02",
    }
    with pytest.raises(
        InputError, match="must have 9 images of each of the first 2 classes in train, found 3 of class 0"
    ):
        write_subset(tmp_path, tmp_path / "again", 2, {"train": 9})


def test_the_log_has_the_figures_of_the_record() -> None:
    """Every arm but those of the tuning, with its work, mean and spread, over three seeds."""
    page = (CHECKOUT / "docs" / "LOG.md").read_text(encoding="utf-8")

    def describe(top1: dict[str, Any]) -> str:
        return f"{top1['mean']:.2f} ({top1['min']:.2f} to {top1['max']:.2f}) |"

    arms = {name: arm for name, arm in recorded.read("ingredients.json")["arms"].items() if "tuning" not in name}
    assert len(arms) == 7
    for arm in arms.values():
        assert arm["seeds"] == [0, 1, 2]
        ema = f" {describe(arm['top1_ema'])}" if "top1_ema" in arm else " |"
        assert f"| {arm['relative_work']:.2f} | {describe(arm['top1_model'])}{ema}" in page
