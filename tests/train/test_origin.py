"""--model.init: one set of weights from each kind of file, for model and EMA; what does not fit is one line."""

import copy
import hashlib
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from helpers.ranks import Ranks
from helpers.starts import (
    change_model,
    change_run,
    first_checkpoint,
    newest_checkpoint,
    read_starts,
    refuse,
    small_recipe,
)
from helpers.steps import CPU
from helpers.train_runs import PATIENCE, Run, assert_ended, start
from safetensors.torch import load_file, save_file

from loaders import World
from train.checkpoint import EMA, MODEL
from train.config import Recipe
from train.export import main as export
from train.fit import fit
from train.model import build_model
from train.optim import build_optimizer
from train.origin import find_origin
from train.step import new_state
from train.transfer import describe_body_misfit, load_origin

NAME = "test_resnet"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def finished(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A run on all ten digits."""
    recipe = small_recipe(digits, tmp_path_factory.mktemp("finished") / "run")
    assert fit(recipe, World())
    return recipe


def trained_tensors(recipe: Recipe, name: str = EMA) -> Tensors:
    return load_file(newest_checkpoint(recipe) / name)


def make_foreign(name: str = NAME, num_classes: int = 1000) -> Tensors:
    """Return a state_dict as timm publishes it; random numbers stand for a training."""
    torch.manual_seed(7)
    return timm.create_model(name, num_classes=num_classes).state_dict()


def load_first(recipe: Recipe) -> tuple[Tensors, Tensors]:
    """Train, and return the model and the EMA of the first checkpoint."""
    assert fit(recipe, World())
    first = first_checkpoint(recipe)
    assert first.name == "step_0000000000"
    return load_file(first / MODEL), load_file(first / EMA)


def differences(ours: Tensors, theirs: Tensors) -> set[str]:
    """Return the names of the tensors that are not the same bits."""
    return {
        name
        for name, tensor in ours.items()
        if name not in theirs or tensor.shape != theirs[name].shape or not torch.equal(tensor, theirs[name])
    }


@pytest.mark.parametrize("kind", ["run", "checkpoint", "export"])
def test_our_own_weights_start_model_and_ema_from_the_ema(
    finished: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = {"run": finished.run_dir, "checkpoint": newest_checkpoint(finished)}.get(kind, tmp_path / "artifact")
    if kind == "export":
        monkeypatch.setattr("sys.argv", ["train/export.py", str(finished.run_dir), "--out", str(source)])
        export()
    recipe = change_run(change_model(finished, init=source), dir=tmp_path / "run")
    assert [differences(each, trained_tensors(finished)) for each in load_first(recipe)] == [set(), set()]
    assert "; the classifier too\n" in capsys.readouterr().out
    # Other classes, as many as there were: refused by name, as with --run.from.
    others = replace(recipe, data=replace(recipe.data, classes=("0-4",), fraction=0.2))
    five = change_run(replace(others, model=finished.model), dir=tmp_path / "five")
    assert fit(five, World())
    others = change_run(change_model(others, init=five.run_dir), dir=tmp_path / "others")
    others = replace(others, data=replace(others.data, classes=("5-9",)))
    assert "5 classes of other names: give --run.from-head new" in refuse(others)
    assert fit(change_run(others, from_head="keep"), World())


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.pth.tar", "wrapped.pth", "old.pth"])
def test_a_file_of_others_starts_a_run_with_a_new_classifier_and_is_recorded(
    digits: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, theirs = tmp_path / name, make_foreign()
    if path.suffix == ".safetensors":
        save_file(theirs, path)
    elif name == "old.pth":  # as torchvision's first files: no counters, and no zip archive
        old = {key: tensor for key, tensor in theirs.items() if not key.endswith("num_batches_tracked")}
        torch.save(old, path, _use_new_zipfile_serialization=False)
    else:
        torch.save({"epoch": 3, "state_dict": theirs} if name == "wrapped.pth" else theirs, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    recipe = small_recipe(digits, tmp_path / "run", init=path)
    model, ema = load_first(recipe)
    assert differences(model, theirs) == differences(ema, theirs) == {"fc.weight", "fc.bias"}
    assert differences(model, ema) == set() and len(model["fc.bias"]) == 10
    assert f"weights of {path}; a new classifier; 1,000 classes there, 10 here" in capsys.readouterr().out
    # Neither a resumed run nor its record needs the file.
    path.unlink()
    assert fit(recipe, World())
    for entry in read_starts(recipe):
        assert entry["origin"]["files"] == {name: digest} and entry["origin"]["path"] == str(path)


def test_the_classifier_of_a_file_with_as_many_classes_is_kept_and_said(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, theirs = tmp_path / "w.pth", make_foreign(num_classes=10)
    torch.save({key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in theirs.items()}, path)
    recipe = small_recipe(digits, tmp_path / "run", init=path)
    model, _ = load_first(recipe)
    assert differences(model, {key: tensor.half().to(tensor.dtype) for key, tensor in theirs.items()}) == set()
    line = "the classifier too; it has 10 classes as this run has, whose names are not recorded; converted to 32 bits"
    assert line in capsys.readouterr().out
    model, _ = load_first(change_run(recipe, dir=tmp_path / "new", from_head="new"))
    assert {"fc.weight", "fc.bias"} <= differences(model, theirs)
    torch.save(make_foreign(num_classes=9), path)
    assert "has 9 classes, and this run's data has 10" in refuse(
        change_run(recipe, dir=tmp_path / "x", from_head="keep")
    )


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("resnet18", "resnet18"),
        ("resnet50", "resnet50"),
        ("densenet121", "densenet121"),
        ("regnet_y_400mf", "regnety_004"),
    ],
)
def test_torchvisions_files_start_timms_networks_which_compute_the_same(
    digits: Path, tmp_path: Path, theirs: str, ours: str
) -> None:
    torch.manual_seed(3)
    network: Any = torchvision.models.get_model(theirs, weights=None)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    recipe = small_recipe(digits, tmp_path / "run", name=ours, init=tmp_path / "w.pth")
    names, new = tuple("0123456789"), build_model(recipe.model, 10, CPU)
    state = new_state(recipe, new, copy.deepcopy(new), build_optimizer(new, recipe.optim))
    origin = find_origin(recipe)
    assert origin is not None and load_origin(origin, recipe, names, state).new_head
    model = {name: tensor.clone() for name, tensor in state.ema.state_dict().items()}
    copied: Any = timm.create_model(ours, num_classes=10)
    copied.load_state_dict(model)
    copied.reset_classifier(0)
    name = "classifier" if hasattr(network, "classifier") else "fc"
    setattr(network, name, torch.nn.Identity())
    images_BCHW = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(copied.eval()(images_BCHW), network.eval()(images_BCHW))


def test_position_embeddings_are_resampled_by_timm_and_the_line_says_so(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(1)
    theirs = timm.create_model("test_vit", img_size=160, num_classes=1000)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    recipe = small_recipe(digits, tmp_path / "run", name="test_vit", init=tmp_path / "w.pth")
    recipe = replace(
        recipe, transform=replace(recipe.transform, size=64), evaluation=replace(recipe.evaluation, size=64, resize=64)
    )
    model, _ = load_first(recipe)
    assert "timm resized pos_embed (1, 101, 64) -> (1, 17, 64)" in capsys.readouterr().out
    expected: Any = timm.create_model("test_vit", img_size=160, num_classes=1000)
    expected.load_state_dict(theirs.state_dict())
    expected.set_input_size(img_size=64)
    assert torch.equal(model["pos_embed"], expected.state_dict()["pos_embed"])
    assert differences(model, theirs.state_dict()) == {"pos_embed", "head.weight", "head.bias"}


class Bomb:
    """Creates a file when it is unpickled without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (self.path,)  # pyright: ignore[reportReturnType]


def test_what_does_not_fit_is_refused_in_one_line_and_nothing_is_run(digits: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    recipe = small_recipe(digits, tmp_path / "run", init=path)
    assert f"--model.init {path} does not exist: give a run folder" in refuse(recipe)
    (tmp_path / "empty").mkdir()
    assert "holds no complete checkpoint" in refuse(change_model(recipe, init=tmp_path / "empty"))
    marker = tmp_path / "marker"
    path.write_bytes(pickle.dumps({"fc.weight": Bomb(marker)}))
    assert "nothing in it was run" in refuse(recipe) and not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists(), "the pickle is one that runs"

    # Another network, another number of channels, NaN.
    torch.save(make_foreign("resnet18"), path)
    line = refuse(recipe)
    assert "do not fit --model.name test_resnet (missing: " in line and "give the --model.name" in line
    theirs = make_foreign()
    gray = theirs | {"conv1.0.weight": theirs["conv1.0.weight"].sum(1, keepdim=True)}
    torch.save(gray, path)
    assert "of another shape: conv1.0.weight" in refuse(recipe)
    torch.save(theirs | {"conv1.0.weight": theirs["conv1.0.weight"] * torch.nan}, path)
    assert "conv1.0.weight contains NaN or infinity" in refuse(recipe)
    path.with_suffix(".safetensors").write_bytes(b"damaged")
    assert "not a complete safetensors file" in refuse(change_model(recipe, init=path.with_suffix(".safetensors")))


def test_constant_kernels_of_blurs_may_be_missing_but_not_too_many() -> None:
    plain = {"conv.weight": torch.zeros(2, 2), "fc.weight": torch.zeros(3, 2)}
    blurred = {**plain, "conv.blur_kernel": torch.zeros(2, 1, 3, 3)}
    fewer = {**plain, "fc.weight": torch.zeros(1, 2)}
    assert describe_body_misfit(blurred, fewer, ("fc.",)) == ""
    assert describe_body_misfit(plain, blurred, ("fc.",)) == "unknown: conv.blur_kernel"


def test_flags_that_exclude_each_other_are_refused_in_one_line(finished: Recipe, tmp_path: Path) -> None:
    recipe = change_run(change_model(finished, init=finished.run_dir), dir=tmp_path / "run")
    two = change_run(recipe, start_from=finished.run_dir)
    assert "--run.from and --model.init are given: remove one" in refuse(two)
    two = change_model(recipe, pretrained="r160_in1k")
    assert "--model.init and --model.pretrained are given: remove one" in refuse(two)
    assert "--run.from-optimizer needs --run.from PATH" in refuse(change_run(recipe, from_optimizer=True))
    alone = change_run(change_model(recipe, init=None), from_head="new")
    assert "--run.from-head needs --run.from PATH, --model.init PATH or --model.pretrained TAG" in refuse(alone)


def test_only_rank_0_reads_the_file_and_all_ranks_refuse_it(trainers: Ranks, digits: Path, tmp_path: Path) -> None:
    path, theirs = tmp_path / "w.pth", make_foreign()
    torch.save(theirs, path)
    run = Run(digits, tmp_path / "run", ("--model.init", str(path), "--run.keep", "9"))
    start(trainers, run, 2, "fit-blind")
    assert_ended(trainers.wait(PATIENCE), 0)
    for name in (MODEL, EMA):
        assert differences(load_file(run.checkpoints[0] / name), theirs) == {"fc.weight", "fc.bias"}
    shutil.rmtree(run.folder)
    torch.save(make_foreign("resnet18"), path)
    start(trainers, run, 2)
    ended = trainers.wait(PATIENCE)
    assert_ended(ended, 1)
    assert "do not fit --model.name test_resnet" in ended[0].stderr
