"""Versions in checkpoints and records, also where this project was put on PYTHONPATH and never installed."""

import json
import os
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import timm
import torch
from helpers.commands import CHECKOUT, run_command
from helpers.train_runs import Run

import train.versions
from train.checkpoint import newest_complete, read_meta
from train.versions import describe_versions, find_version

VERSION = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
# Python imports this module at its start from the first folder of PYTHONPATH. A distribution that is not installed
# is found by none of the finders, and `version` raises: here for one name only.
HIDE = """
from importlib import metadata

find = metadata.Distribution.from_name

def from_name(name):
    if name == "penstock":
        raise metadata.PackageNotFoundError(name)
    return find(name)

metadata.Distribution.from_name = from_name
"""


@pytest.fixture
def hide(monkeypatch: pytest.MonkeyPatch) -> None:
    """No package has metadata."""

    def fail(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(train.versions, "version", fail)


def test_installed_packages_are_described_by_their_metadata() -> None:
    found = describe_versions("pillow")
    assert found.pop("penstock") == VERSION  # by whichever way
    assert found == {name: metadata.version(name) for name in ("torch", "timm", "numpy", "pillow")}


@pytest.mark.usefixtures("hide")
def test_without_metadata_modules_and_the_checkout_are_asked() -> None:
    found = describe_versions("no-such-package")
    assert (found["torch"], found["timm"], found["penstock"]) == (torch.__version__, timm.__version__, VERSION)
    assert "no-such-package" not in found


@pytest.mark.usefixtures("hide")
@pytest.mark.parametrize("text", [None, '[project]\nname = "another"\nversion = "9"\n', "[tool]\n", "[project"])
def test_a_checkout_that_does_not_tell_its_version_has_none(
    text: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "pyproject.toml").write_text(text)
    monkeypatch.setattr(train.versions, "CHECKOUT", tmp_path)
    assert find_version("penstock") is None
    assert "penstock" not in describe_versions()


def test_a_run_starts_and_saves_where_the_project_is_not_installed(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDE)
    paths = (str(tmp_path), os.environ.get("PYTHONPATH", str(CHECKOUT)))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    asked = run_command("-c", "from importlib.metadata import version; version('penstock')")
    assert "PackageNotFoundError" in asked.stderr
    run = Run(digits, tmp_path / "run", ("--epochs", "0.2", "--optim.warmup-epochs", "0.1"))
    done = run_command(CHECKOUT / "train/main.py", *run.arguments)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    (start,) = [json.loads(line) for line in (run.folder / "starts.jsonl").read_text().splitlines()]
    checkpoint, damaged = newest_complete(run.folder / "checkpoints")
    assert checkpoint is not None and damaged == []
    assert start["versions"]["penstock"] == read_meta(checkpoint)["versions"]["penstock"] == VERSION
