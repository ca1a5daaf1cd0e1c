"""A run with `--loader.tuned FILE` equals one with those settings as flags, also when resumed without the file."""

import json
import os
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.commands import CHECKOUT
from helpers.ranks import Ranks
from helpers.train_runs import (
    PATIENCE,
    SAVE_OFTEN,
    Run,
    assert_ended,
    assert_same_end,
    await_that,
    count_logs,
    finish,
    start,
)
from helpers.tuned_files import SETTINGS, write_tuned

from train.checkpoint import read_meta

SIZE = 2  # processes
BY_HAND = [
    *("--loader.num-threads", "1"),
    *("--loader.batches-ahead", "3"),
    *("--loader.decode", "full"),
    *("--loader.hw-decoder-load", "0"),
    "--loader.pin-threads",
]


def _delete(path: Path) -> str:
    path.unlink()
    return "cannot be read"


def _damage(path: Path) -> str:
    os.truncate(path, 40)
    return "contains no valid loader settings"


@pytest.fixture(scope="module")
def by_hand(trainers: Ranks, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An undisturbed run with the settings as flags."""
    run = Run(digits, tmp_path_factory.mktemp("by-hand") / "run", tuple(BY_HAND))
    finish(trainers, run, SIZE)
    return run


@pytest.mark.parametrize("spoil", [_delete, _damage])
def test_a_run_goes_on_to_the_same_bits_when_the_file_is_spoilt(
    trainers: Ranks, by_hand: Run, digits: Path, tmp_path: Path, spoil: Callable[[Path], str]
) -> None:
    path = write_tuned(tmp_path / "settings.json", SIZE)
    run = Run(digits, tmp_path / "run", (*SAVE_OFTEN, "--loader.tuned", str(path)))
    group = start(trainers, run, SIZE)
    await_that(lambda: count_logs(group) > 0 and run.checkpoints, "a checkpoint")
    assert_ended(trainers.kill(), -signal.SIGKILL)
    said = spoil(path)
    group = start(trainers, run, SIZE)
    assert_ended(trainers.wait(PATIENCE), 0)
    assert said in (text := (group / "stdout-0").read_text()) and f"using {run.folder}/tuned.json instead" in text
    assert (group / "stdout-1").read_text() == ""
    assert_same_end(run, by_hand)
    theirs = {**json.loads((by_hand.folder / "recipe.json").read_text())["loader"]}
    for recipe in (
        json.loads((run.folder / "recipe.json").read_text()),
        read_meta(run.checkpoints[-1])["recipe"],
        *(json.loads(line)["recipe"] for line in (run.folder / "starts.jsonl").read_text().splitlines()),
    ):
        assert recipe["loader"] == theirs == {**theirs, **SETTINGS, "tuned": None}


def test_a_file_that_was_written_anew_is_what_the_run_goes_on_with(
    trainers: Ranks, digits: Path, tmp_path: Path
) -> None:
    path = write_tuned(tmp_path / "settings.json")
    run = Run(digits, tmp_path / "run", (*SAVE_OFTEN, "--loader.tuned", str(path), "--loader.num-threads", "2"))
    for batches_ahead in (3, 4):
        write_tuned(path, settings={**SETTINGS, "batches_ahead": batches_ahead})
        start(trainers, run, 1, "fit-interrupted", moment="gather_facts")
        assert_ended(trainers.wait(PATIENCE), 0)
        assert (run.folder / "tuned.json").read_bytes() == path.read_bytes()
    starts = [json.loads(line)["recipe"]["loader"] for line in (run.folder / "starts.jsonl").read_text().splitlines()]
    assert [(each["num_threads"], each["batches_ahead"]) for each in starts] == [(2, 3), (2, 4)]


def _main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["train/main.py", "demo", *map(str, arguments)])
    runpy.run_path(str(CHECKOUT / "train/main.py"), run_name="__main__")


def test_a_dry_run_shows_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_tuned(tmp_path / "settings.json")
    flags = ["--run.dir", tmp_path / "run", "--device", "cpu"]
    _main(monkeypatch, "--dry-run", "--loader.tuned", path, "--loader.batches-ahead", "5", *flags)
    shown = json.loads(capsys.readouterr().out)["loader"]
    assert shown == {**shown, **SETTINGS, "batches_ahead": 5, "tuned": None}
    assert not (tmp_path / "run").exists()


def test_a_new_run_without_the_file_is_refused_in_one_line(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--data.root", digits, "--run.dir", tmp_path / "run", "--device", "cpu"]
    with pytest.raises(SystemExit) as exit_:
        _main(monkeypatch, "--loader.tuned", tmp_path / "nowhere.json", *flags)
    line = str(exit_.value.code)
    assert line.startswith("error: ") and "nowhere.json cannot be read" in line and "\n" not in line
    assert list(tmp_path.iterdir()) == []
