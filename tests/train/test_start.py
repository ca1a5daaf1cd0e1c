"""A run resumes with more epochs, or starts from the weights of another: printed, recorded, and exact to the bit."""

import json
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.starts import newest_checkpoint, read_starts
from helpers.train_runs import Run, assert_same_end
from safetensors.torch import load_file

from loaders import EvalTransform, TrainTransform, World
from prep.errors import InputError
from train import fit as trainer
from train.checkpoint import EMA, MODEL, list_checkpoints, read_meta
from train.config import Recipe
from train.export import main as export
from train.fit import fit
from train.recipe import demo

NUM_IMAGES, BATCH_SIZE = 1437, 48
FIRST = "step_0000000000"


@pytest.fixture(scope="module")
def small(digits: Path) -> Recipe:
    """Seven steps over a tenth of the images."""
    recipe = demo()
    return replace(
        recipe,
        epochs=2.0,
        batch_size=BATCH_SIZE,
        model=replace(recipe.model, name="test_resnet"),
        optim=replace(recipe.optim, warmup_epochs=0.5),
        transform=TrainTransform(size=16, hflip=0.0),
        evaluation=EvalTransform(size=16, resize=16),
        data=replace(recipe.data, root=digits, fraction=0.1),
        run=replace(recipe.run, log_every=1, spot="off"),
    )


@pytest.fixture(scope="module")
def finished(small: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A run that is done."""
    recipe = place(small, tmp_path_factory.mktemp("finished") / "run")
    assert fit(recipe, World())
    return recipe


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[Recipe], None]:
    """Trains until SIGTERM comes in its first step."""

    def train(recipe: Recipe) -> None:
        with monkeypatch.context() as patch:
            warm_up = trainer.warm_up
            patch.setattr(trainer, "warm_up", lambda step: (warm_up(step), signal.raise_signal(signal.SIGTERM)))
            assert not fit(recipe, World())

    return train


def place(recipe: Recipe, folder: Path, **run: Any) -> Recipe:
    """The recipe with another run folder."""
    return replace(recipe, run=replace(recipe.run, dir=folder, **run))


def start_from(recipe: Recipe, source: Path, folder: Path, **run: Any) -> Recipe:
    """A recipe of a new run from another one's weights."""
    return place(recipe, folder, start_from=source, **run)


def read_metrics(recipe: Recipe) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (recipe.run_dir / "metrics.jsonl").read_text().splitlines()]


def refuse(recipe: Recipe) -> str:
    """The line with which a recipe is refused, which changes nothing in its folder."""
    before = {path: path.stat().st_mtime_ns for path in recipe.run_dir.rglob("*") if path.is_file()}
    with pytest.raises(InputError) as refusal:
        fit(recipe, World())
    assert {path: path.stat().st_mtime_ns for path in recipe.run_dir.rglob("*") if path.is_file()} == before
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_an_interrupted_run_goes_on_with_more_epochs_and_says_what_changes(
    small: Recipe, tmp_path: Path, interrupt: Callable[[Recipe], None], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = place(small, tmp_path / "run")
    interrupt(recipe)
    clock, longer = read_meta(newest_checkpoint(recipe))["clock"], replace(recipe, epochs=3.0)
    capsys.readouterr()
    assert fit(longer, World())
    (start,) = [start for start in read_starts(recipe) if "epochs_changed" in start]
    changed = start["epochs_changed"]
    total = next(round(entry["clock"] / entry["epoch"]) for entry in read_metrics(recipe))
    assert abs(total - NUM_IMAGES / 10) < 10  # of each class a tenth, rounded up
    assert changed["epochs"] == [2.0, 3.0] and changed["clock"] == clock == BATCH_SIZE
    assert changed["progress"] == pytest.approx([clock / (2 * total), clock / (3 * total)])
    peak = small.optim.lr * BATCH_SIZE / 256
    assert changed["lr"] == pytest.approx([peak * clock / total / 0.5] * 2)  # both in the warm-up, which is in epochs
    assert "epochs 2 -> 3: at image 48 progress is" in capsys.readouterr().out
    assert json.loads((recipe.run_dir / "recipe.json").read_text())["epochs"] == 3.0
    meta = read_meta(newest_checkpoint(recipe))
    assert meta["recipe"]["epochs"] == 3.0 and meta["clock"] >= 3 * total
    clocks = [entry["clock"] for entry in read_metrics(recipe) if entry["kind"] == "train"]
    assert clocks == list(range(BATCH_SIZE, meta["clock"] + 1, BATCH_SIZE))
    assert fit(longer, World())  # the same command again: nothing changes
    assert len([start for start in read_starts(recipe) if "epochs_changed" in start]) == 1


def test_a_finished_run_is_not_extended_but_the_advice_works(finished: Recipe, tmp_path: Path) -> None:
    line = refuse(replace(finished, epochs=3.0))
    advised = re.search(r"finished after 2 epochs.* --run\.from (\S+) with another --run\.dir", line)
    assert advised
    recipe = start_from(replace(finished, epochs=3.0), Path(advised[1]), tmp_path / "run")
    assert fit(recipe, World())
    assert read_meta(newest_checkpoint(recipe))["origin"]["path"] == str(newest_checkpoint(finished))


def test_a_run_is_not_cut_to_less_than_it_has_trained_but_the_advice_works(
    small: Recipe, tmp_path: Path, interrupt: Callable[[Recipe], None]
) -> None:
    recipe = replace(place(small, tmp_path / "run"), optim=replace(small.optim, warmup_epochs=0.1), epochs=2.0)
    interrupt(recipe)
    interrupt(recipe)
    line = refuse(replace(recipe, epochs=0.5))
    advised = re.search(r"has trained for 96 images.* give --epochs (\S+) or more", line)
    assert advised
    assert fit(replace(recipe, epochs=float(advised[1])), World())


def test_another_setting_than_epochs_is_still_refused_by_name(finished: Recipe) -> None:
    line = refuse(replace(finished, epochs=3.0, optim=replace(finished.optim, lr=0.7)))
    assert "optim.lr differs" in line


def test_a_run_begun_by_an_older_version_has_the_defaults_of_newer_settings(finished: Recipe, tmp_path: Path) -> None:
    recipe = place(finished, tmp_path / "run")
    shutil.copytree(finished.run_dir, recipe.run_dir)
    path = recipe.run_dir / "recipe.json"
    fields = json.loads(path.read_text())
    del fields["run"]["start_from"], fields["optim"]["schedule"]
    path.write_text(json.dumps(fields))
    assert fit(recipe, World())
    path.unlink()  # the checkpoints know it too
    assert "seed differs" in refuse(replace(recipe, seed=1))


def test_a_new_run_starts_from_weights_and_ema_and_needs_them_only_once(
    finished: Recipe, tmp_path: Path, interrupt: Callable[[Recipe], None], capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    shutil.copytree(finished.run_dir, source)
    calm, run = (start_from(replace(finished, epochs=3.0), source, tmp_path / name) for name in ("calm", "run"))
    calm = place(calm, calm.run_dir, keep=9)
    assert fit(calm, World())
    assert "weights and EMA of" in capsys.readouterr().out
    first = list_checkpoints(calm.run_dir / "checkpoints")[0]
    assert first.name == FIRST
    for name in (MODEL, EMA):
        assert (first / name).read_bytes() == (newest_checkpoint(finished) / name).read_bytes()
    momentum = torch.load(first / "optimizer.pt", weights_only=True)["optimizer"]["state"]
    assert all(not each["momentum_buffer"].any() for each in momentum.values())
    interrupt(run)
    shutil.rmtree(source)
    interrupt(run)
    assert fit(place(run, run.run_dir, start_from=None), World())  # without the flag it resumes, too
    assert_same_end(Run(tmp_path, run.run_dir), Run(tmp_path, calm.run_dir))
    for recipe in (calm, run):
        origin = read_meta(newest_checkpoint(recipe))["origin"]
        assert origin["files"] == read_meta(newest_checkpoint(finished))["files"]
        assert origin["clock"] == read_meta(newest_checkpoint(finished))["clock"]
        assert all(start["origin"] == origin for start in read_starts(recipe))


def test_the_optimizers_state_comes_on_demand_with_the_new_settings(finished: Recipe, tmp_path: Path) -> None:
    recipe = replace(finished, optim=replace(finished.optim, weight_decay=0.25))
    recipe = start_from(recipe, newest_checkpoint(finished), tmp_path / "run", from_optimizer=True, keep=9)
    assert fit(recipe, World())
    first = list_checkpoints(recipe.run_dir / "checkpoints")[0]
    ours, theirs = (
        torch.load(path / "optimizer.pt", weights_only=True)["optimizer"]
        for path in (first, newest_checkpoint(finished))
    )
    for index, state in theirs["state"].items():
        assert state["momentum_buffer"].any()
        assert torch.equal(ours["state"][index]["momentum_buffer"], state["momentum_buffer"])
    assert {group["weight_decay"] for group in ours["param_groups"]} == {0, 0.25}


def test_other_classes_are_refused_and_the_advice_starts_a_new_classifier(finished: Recipe, tmp_path: Path) -> None:
    data = replace(finished.data, classes=("0-4",), fraction=0.2)
    recipe = start_from(replace(finished, data=data), finished.run_dir, tmp_path / "run", keep=9)
    line = refuse(recipe)
    assert "has 10 classes, and this run's data has 5" in line and "--run.from-head new" in line
    assert not recipe.run_dir.exists()
    assert "has 10 classes, and" in refuse(place(recipe, recipe.run_dir, from_head="keep"))
    assert fit(place(recipe, recipe.run_dir, from_head="new"), World())
    ours = load_file(list_checkpoints(recipe.run_dir / "checkpoints")[0] / MODEL)
    theirs = load_file(newest_checkpoint(finished) / MODEL)
    same = {name for name in theirs if ours[name].shape == theirs[name].shape and torch.equal(ours[name], theirs[name])}
    assert ours.keys() - same == {"fc.weight", "fc.bias"} and len(ours["fc.bias"]) == 5


def test_as_many_classes_of_other_names_are_not_taken_for_the_same(finished: Recipe, tmp_path: Path) -> None:
    source = tmp_path / "source"
    five = replace(finished, data=replace(finished.data, classes=("0-4",), fraction=0.2))
    assert fit(place(five, source), World())
    others = start_from(replace(five, data=replace(five.data, classes=("5-9",))), source, tmp_path / "run")
    line = refuse(others)
    assert "5 classes of other names" in line and "--run.from-head new" in line and "--run.from-head keep" in line
    assert fit(place(others, others.run_dir, from_head="keep"), World())


def test_an_export_gives_its_weights_to_model_and_ema(
    finished: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = tmp_path / "artifact"
    monkeypatch.setattr("sys.argv", ["train/export.py", str(finished.run_dir), "--out", str(artifact)])
    export()
    recipe = start_from(finished, artifact, tmp_path / "run", keep=9)
    assert "has no optimizer" in refuse(place(recipe, recipe.run_dir, from_optimizer=True))
    assert fit(recipe, World())
    first, theirs = list_checkpoints(recipe.run_dir / "checkpoints")[0], load_file(artifact / MODEL)
    for name in (MODEL, EMA):
        ours = load_file(first / name)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    (artifact / MODEL).write_bytes(b"damaged")
    assert "not a complete export" in refuse(place(recipe, tmp_path / "another"))


def test_weights_with_blur_start_a_run_with_blur_alone(
    finished: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blurring = place(
        replace(finished, epochs=1.0, model=replace(finished.model, blur_first=True)), tmp_path / "blurring"
    )
    assert fit(blurring, World())
    artifact = tmp_path / "artifact"
    monkeypatch.setattr("sys.argv", ["train/export.py", str(blurring.run_dir), "--out", str(artifact)])
    export()
    for source in (artifact, blurring.run_dir):
        line = refuse(start_from(finished, source, tmp_path / "run"))
        assert "weights of test_resnet with blur, which do not fit --model.name test_resnet" in line
        assert line.endswith("give --model.blur-first")
    assert refuse(start_from(blurring, finished.run_dir, tmp_path / "run")).endswith("give --model.no-blur-first")
    recipe = start_from(blurring, artifact, tmp_path / "run", keep=9)
    assert fit(recipe, World())
    first, theirs = list_checkpoints(recipe.run_dir / "checkpoints")[0], load_file(artifact / MODEL)
    for name in (MODEL, EMA):
        ours = load_file(first / name)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_what_cannot_be_started_from_is_refused(finished: Recipe, tmp_path: Path) -> None:
    run, new = finished.run_dir, tmp_path / "run"
    for inside in (run, newest_checkpoint(finished), run / ".." / run.name):
        assert "this run's own folder: remove it" in refuse(start_from(finished, inside, run))
    assert fit(finished, World())  # as advised
    assert "did not start from" in refuse(start_from(finished, tmp_path, run))
    assert "holds no complete checkpoint" in refuse(start_from(finished, tmp_path, new))
    assert "needs --run.from PATH" in refuse(place(finished, new, from_optimizer=True))
    other = replace(finished, model=replace(finished.model, name="resnet10t"))
    for head in ("auto", "new"):
        line = refuse(start_from(other, run, new, from_head=head))
        assert "weights of test_resnet, which do not fit --model.name resnet10t" in line
        assert "give --model.name test_resnet" in line
    refused = start_from(finished, run, new, from_optimizer=True, from_head="new")
    assert "remove --run.from-optimizer" in refuse(refused)
    assert list(tmp_path.iterdir()) == []
