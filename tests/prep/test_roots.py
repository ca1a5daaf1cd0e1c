"""A dataset, split or root at another place than given: the error names the right place, which then works."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.datasets import prepare_folder
from helpers.hostile import encode, photo

import prep.shard
from prep import prepare
from prep.dataset import Options, Split
from prep.errors import InputError, run


@pytest.fixture
def root(digits: Path, tmp_path: Path) -> Path:
    """Copy the prepared digits, so that a test can damage them."""
    shutil.copytree(digits, tmp_path / "shards" / "digits")
    return tmp_path / "shards" / "digits"


def _refusal(root: Path, name: str) -> str:
    with pytest.raises(InputError) as refusal:
        Split(root, name)
    line = str(refusal.value)
    assert line.startswith(f"{root / name / 'manifest.json'} does not exist: ")
    assert "\n" not in line
    return line


def _follow(line: str, monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    """Run the command that an error's line gives."""
    command = re.search(r"`python prep/shard\.py (.+?)`", line)
    assert command, line
    arguments = shlex.split(command[1].replace("SRC", str(source)))
    monkeypatch.setattr("sys.argv", ["prep/shard.py", *arguments, "--images-per-shard", "300", "--workers", "1"])
    run(prep.shard.main)


@pytest.mark.parametrize(("folder", "flag"), [("val", "--data.validation val"), ("dev", "--data.validation dev")])
def test_a_split_of_another_name_is_named(folder: str, flag: str, root: Path) -> None:
    (root / "validation").rename(root / folder)
    line = _refusal(root, "validation")
    assert f"{root} has the splits {', '.join(sorted([folder, 'train']))}: give {flag} to train/main.py" in line
    assert len(Split(root, flag.split()[1])) > 0


def test_a_training_split_of_another_name_is_named(root: Path) -> None:
    (root / "train").rename(root / "training")
    assert f"{root} has the splits training, validation: give --data.train training" in _refusal(root, "train")
    assert len(Split(root, "training")) > 0


def test_a_split_that_is_not_prepared_is_prepared_by_the_line(
    root: Path, digits_source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(root / "validation")
    line = _refusal(root, "validation")
    assert f"{root} has only the split train: prepare validation too" in line
    _follow(line, monkeypatch, digits_source)
    assert len(Split(root, "validation")) > 0


def test_a_root_that_is_a_split_is_told(root: Path) -> None:
    line = _refusal(root / "train", "validation")
    assert line.endswith(f"{root / 'train'} is one split, not a folder of splits: give the folder above it, {root}")
    assert len(Split(root, "validation")) > 0


def test_a_root_that_is_a_folder_too_high_is_told(root: Path) -> None:
    line = _refusal(root.parent, "train")
    assert line.endswith(f"the splits are a folder deeper: give {root} instead of {root.parent}")


def test_an_interrupted_split_is_told(digits_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prepare, "_write_shards", die)
        prepare_folder(digits_source, "train", tmp_path, Options(images_per_shard=300))
    line = _refusal(tmp_path, "train")
    assert line.endswith("its preparation was interrupted: run the same prep/shard.py (or prep/adopt.py) command again")
    prepare_folder(digits_source, "train", tmp_path, Options(images_per_shard=300))
    assert len(Split(tmp_path, "train")) > 0


def test_images_that_are_not_prepared_are_prepared_by_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("china.jpg", "flower.jpg"):
        path = tmp_path / "images" / "train" / name.removesuffix(".jpg") / name
        path.parent.mkdir(parents=True)
        path.write_bytes(encode(photo(name, 32), "JPEG"))
    line = _refusal(tmp_path / "images", "train")
    assert f"{tmp_path / 'images'} is not prepared yet (train has folders such as china)" in line
    _follow(line, monkeypatch, tmp_path)
    assert len(Split(tmp_path / "images-shards", "train")) == 2


def test_a_split_that_lost_its_manifest_is_prepared_again(
    root: Path, digits_source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "train" / "manifest.json").unlink()
    line = _refusal(root, "train")
    assert f"delete {root / 'train'} and prepare it again with" in line
    shutil.rmtree(root / "train")
    _follow(line, monkeypatch, digits_source)
    assert len(Split(root, "train")) > 0


def test_a_root_where_nothing_is_says_how_to_prepare(
    digits_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = _refusal(tmp_path / "new", "train")
    assert line.endswith(f"prepare the data with `python prep/shard.py --source SRC --out {tmp_path / 'new'}`")
    _follow(line, monkeypatch, digits_source)
    assert len(Split(tmp_path / "new", "train")) > 0
