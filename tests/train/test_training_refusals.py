"""Runs that cannot work are refused in one line, before a run folder exists."""

import inspect
import json
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.commands import CHECKOUT, run_command

from loaders import World
from prep.errors import InputError
from train.arguments import describe_recipe, parse_command
from train.fit import fit
from train.recipe import DEFAULT_RECIPE, RECIPES, demo, seed_113

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


def test_help_lists_the_recipes_and_help_of_a_recipe_its_flags(tmp_path: Path) -> None:
    done = run_command(CHECKOUT / "train/main.py", "--help", cwd=tmp_path)
    words = " ".join(done.stdout.split())
    assert done.returncode == 0 and "train/main.py RECIPE --help" in words
    for name, recipe in RECIPES.items():
        title, expected = describe_recipe(inspect.getdoc(recipe) or "")
        assert title and expected and ("Hardware" not in expected) and ("Command" not in expected)
        default = " (default)" if name == DEFAULT_RECIPE else ""
        assert f"{name}{default} {title} Expected: {expected}" in words
    done = run_command(CHECKOUT / "train/main.py", "demo", "--help", cwd=tmp_path)
    assert done.returncode == 0 and "--optim.lr" in done.stdout and "(default: demo)" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_without_a_recipe_the_default_one_is_trained() -> None:
    assert parse_command(["--seed", "3"]).recipe == replace(seed_113(), seed=3)


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


@pytest.mark.parametrize(
    ("flag", "values"),
    [
        ("--epochs", ("0", "-1", "nan", "inf")),
        ("--optim.warmup-epochs", ("-1", "nan", "0.2")),
        ("--run.log-every", ("0", "-5")),
        ("--run.evaluate-every", ("0", "-1", "nan")),
        ("--run.save-every", ("0", "-1", "nan")),
        ("--ema-decay", ("1", "-0.1", "nan")),
        ("--ema-half-life", ("0", "-64", "nan", "inf")),
        ("--ema-every", ("0", "-20")),
        ("--optim.schedule-epochs", ("0.05", "-1", "nan", "inf")),
        ("--label-smoothing", ("1", "nan")),
        ("--batch-size", ("0", "-8")),
        ("--data.fraction", ("0", "nan", "1.5")),
    ],
)
def test_lengths_and_shares_that_mean_nothing_are_refused(
    refusal: Main, digits: Path, tmp_path: Path, flag: str, values: tuple[str, ...]
) -> None:
    for value in values:
        line = refusal("demo", *_flags(digits, tmp_path / "run"), flag, value)
        name = flag.strip("-").rpartition(".")[2].replace("-", "_")
        assert (name if name != "batch_size" else "batch") in line and value in line, line
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (("--data.fraction", "0.01"), r"at least one batch of 32 images, and has 20, of 1,437"),
        (("--data.fraction", "0.01", "--data.classes", "0-3"), r"has 8, of \d+ .*in the chosen classes"),
        (("--batch-size", "2000"), r"one batch of 2000 images, and has 1437"),
        (("--epochs", "0.01", "--optim.warmup-epochs", "0"), r"--epochs 0.01 are 14"),
        (("--optim.warmup-epochs", "5"), r"warmup_epochs must be 0 to epochs, which is 1, got 5"),
        (("--optim.schedule-epochs", "0.5"), r"schedule_epochs must be at least epochs, which is 1, got 0\.5"),
        (("--ema-half-life", "-1"), r"ema_half_life must be a number of images above 0, got -1"),
    ],
)
def test_a_run_that_is_too_short_is_refused_and_each_advice_trains(
    refusal: Main, digits: Path, tmp_path: Path, flags: tuple[str, ...], found: str
) -> None:
    given = [*_flags(digits, tmp_path / "run"), "--epochs", "1", *flags]
    line = refusal("demo", *given)
    assert re.search(found, line), line
    assert list(tmp_path.iterdir()) == []
    advised = re.findall(r"(--[a-z.-]+) ([\d.]+)(?: or|$)", line.partition(": give ")[2])
    assert advised, line
    for number, advice in enumerate(advised):
        command = parse_command(["demo", *given, *advice, "--run.dir", str(tmp_path / str(number))])
        assert fit(command.recipe, World())


def test_the_run_to_start_from_is_a_flag(tmp_path: Path) -> None:
    run = parse_command(["demo", "--run.from", str(tmp_path), "--run.from-optimizer"]).recipe.run
    assert (run.start_from, run.from_optimizer) == (tmp_path, True)
    with pytest.raises(InputError, match=r"unknown flag --run.form; did you mean --run.from"):
        parse_command(["demo", "--run.form", str(tmp_path)])


def test_cuda_without_a_gpu_is_refused(
    refusal: Main, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "cuda" in refusal("demo", *_flags(digits, tmp_path / "run"), "--device", "cuda").lower()
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_does_not_divide_is_refused(digits: Path, tmp_path: Path) -> None:
    recipe = demo()
    recipe = replace(recipe, data=replace(recipe.data, root=digits), run=replace(recipe.run, dir=tmp_path / "run"))
    with pytest.raises(InputError, match=r"number of processes, 3, got 64: use 63 or 66"):
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
    assert "cannot be resumed: the saved position belongs to dataset" in refusal(
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


def test_a_size_or_an_optimizer_that_cannot_be_is_refused_before_a_run_folder_exists(
    refusal: Main, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    usual = ["demo", *_flags(digits, run), "--model.name", "test_vit"]
    line = refusal(*usual, "--transform.size", 40)
    assert "40 is not a multiple of its patch size, 16 pixels" in line
    advised = line.rpartition("one of ")[2].split(",")[0]
    sizes = ["--transform.size", advised, "--evaluation.size", advised, "--evaluation.resize", advised]
    assert "did you mean adamw" in refusal(*usual, *sizes, "--optim.name", "adamww", "--optim.lr", "0.001")
    assert "give --optim.lr" in refusal(*usual, *sizes, "--optim.name", "adamw")
    assert not run.exists()
    monkeypatch.setattr(sys, "argv", ["train/main.py", *usual, *sizes, "--optim.name", "adamw", "--optim.lr", "0.001"])
    runpy.run_path(str(CHECKOUT / "train/main.py"), run_name="__main__")
    assert run.exists()


def test_a_decay_on_the_command_line_replaces_the_recipes_half_life() -> None:
    recipe = parse_command(["quick_24", "--ema-decay", "0.9"]).recipe
    assert recipe.ema_half_life is None and recipe.ema_decay == 0.9
    assert parse_command(["quick_24", "--ema_decay=0.9"]).recipe.ema_half_life is None
    assert parse_command(["quick_24", "--ema-every", "1"]).recipe.ema_half_life == 204_800
    with pytest.raises(InputError, match="exclude each other"):
        parse_command(["quick_24", "--ema-decay", "0.9", "--ema-half-life", "1e6"])
