"""What cannot be trained is refused in one line, before a run folder exists."""

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import CHECKOUT, run_command

from loaders import InputError, World
from train.fit import fit
from train.recipe import demo

FLAGS = [
    *("--epochs", "0.1"),
    *("--batch-size", "32"),
    *("--transform.size", "16"),
    *("--evaluation.size", "16"),
    *("--evaluation.resize", "16"),
    *("--optim.warmup-epochs", "0.05"),
    *("--device", "cpu"),
]

Main = Callable[..., str]


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch) -> Main:
    """Runs train/main.py as a script with arguments that it must refuse; its line on stderr."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["train/main.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(CHECKOUT / "train/main.py"), run_name="__main__")
        line = exit_.value.code  # Python prints a text to stderr and exits with 1
        assert isinstance(line, str)
        assert line.startswith("error: ") and "\n" not in line
        return line

    return run


def _flags(data: Path, run: Path) -> list[str]:
    return ["--data.root", str(data), "--run.dir", str(run), *FLAGS]


@pytest.fixture(scope="module")
def finished(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that is done."""
    run = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train/main.py", "demo", *_flags(digits, run)])
        runpy.run_path(str(CHECKOUT / "train/main.py"), run_name="__main__")
    return run


def test_a_refusal_is_one_line_on_stderr_and_status_1(tmp_path: Path) -> None:
    done = run_command(CHECKOUT / "train/main.py", "--run.dir", tmp_path / "run", "--device", "cpu", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "data/imagenet" in done.stderr  # what no arguments mean
    assert list(tmp_path.iterdir()) == []


def test_missing_data_is_named(refusal: Main, tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in refusal("demo", *_flags(tmp_path / "nowhere", tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_unknown_recipe_names_the_near_one(refusal: Main) -> None:
    assert "did you mean seed_113" in refusal("seed_13")


def test_unknown_flag_names_the_near_one(refusal: Main) -> None:
    line = refusal("demo", "--optim.weight-decy", "0.1")
    assert "--optim.weight-decy" in line and "did you mean --optim.weight-decay" in line


def test_unknown_model_names_the_near_one(refusal: Main, digits: Path, tmp_path: Path) -> None:
    line = refusal("demo", *_flags(digits, tmp_path / "run"), "--model.name", "resnet50dd")
    assert "resnet50dd" in line and "resnet50d" in line.partition("did you mean")[2]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flag", "value"), [("--run.keep", "0"), ("--run.most-bad-steps", "0"), ("--run.hang-minutes", "0")]
)
def test_a_run_that_cannot_be_kept_or_watched_is_refused(
    refusal: Main, digits: Path, tmp_path: Path, flag: str, value: str
) -> None:
    assert flag[6:].replace("-", "_") in refusal("demo", *_flags(digits, tmp_path / "run"), flag, value)
    assert list(tmp_path.iterdir()) == []


def test_cuda_without_a_gpu_is_refused(
    refusal: Main, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "cuda" in refusal("demo", *_flags(digits, tmp_path / "run"), "--device", "cuda").lower()
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_does_not_divide_is_refused(digits: Path, tmp_path: Path) -> None:
    recipe = demo()
    recipe = replace(recipe, data=replace(recipe.data, root=digits), run=replace(recipe.run, dir=tmp_path / "run"))
    with pytest.raises(InputError, match=r"64 does not divide by 3 processes.* 63 and 66"):
        fit(recipe, World(size=3))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flag", "value", "field"),
    [("--optim.lr", "0.7", "optim.lr"), ("--transform.size", "24", "transform.size"), ("--seed", "1", "seed")],
)
def test_another_recipe_in_a_run_folder_names_the_field(
    refusal: Main, digits: Path, finished: Path, flag: str, value: str, field: str
) -> None:
    line = refusal("demo", *_flags(digits, finished), flag, value)
    assert f" {field} differs" in line and str(finished) in line


def test_other_data_in_a_run_folder_is_refused(refusal: Main, digits: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(digits / "train", tmp_path / "validation")
    shutil.copytree(digits / "validation", tmp_path / "train")
    assert "cannot go on: the saved position is of dataset" in refusal(
        "demo", *_flags(tmp_path, finished), "--epochs", "0.1"
    )


def test_a_finished_run_says_so_and_changes_nothing(
    digits: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(sys, "argv", ["train/main.py", "demo", *_flags(digits, finished)])
    runpy.run_path(str(CHECKOUT / "train/main.py"), run_name="__main__")  # returns: status 0
    assert f"{finished} is finished" in capsys.readouterr().out
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_dry_run_prints_the_recipe_and_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["train/main.py", "demo", "--dry-run", "--optim.lr", "0.3", "--run.dir", str(run)])
    runpy.run_path(str(CHECKOUT / "train/main.py"), run_name="__main__")
    recipe = demo()
    expected = replace(recipe, optim=replace(recipe.optim, lr=0.3), run=replace(recipe.run, dir=run))
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(expected.to_dict()))
    assert not run.exists()
