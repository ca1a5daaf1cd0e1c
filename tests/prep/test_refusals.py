"""Unusable sources: one line that names the fault and the fix, a failing exit status, and nothing written."""

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.commands import CHECKOUT, run_command
from helpers.datasets import prepare_folder, tree

from prep import prepare
from prep.dataset import Options
from prep.digits import write_digits

Refusal = Callable[..., str]
LABELS = [0, 1, 2, 1]
IMAGES = [{"bytes": b"never looked at", "path": f"{row}.jpg"} for row in range(len(LABELS))]


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Refusal:
    """Run `prep/shard.py ARGUMENTS…` in this process (a second faster); its one line `error: …`."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["prep/shard.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_status:
            runpy.run_path(str(CHECKOUT / "prep" / "shard.py"), run_name="__main__")
        line = exit_status.value.code  # which Python prints on stderr, exiting with 1
        assert isinstance(line, str)
        assert line.startswith("error: ")
        assert "\n" not in line
        assert capfd.readouterr() == ("", "")
        return line

    return run


def _write_parquet(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def _write_labelled(path: Path, labels: list[int], write_statistics: bool = True) -> Path:
    """A file of the three classes a, b and c, which its labels need not keep to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    classes = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    table = pa.table({"image": IMAGES, "label": labels}, schema=classes.arrow_schema)
    pq.write_table(table, path, write_statistics=write_statistics)
    return path


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere/at/all", ["nowhere/at/all does not exist: --source must be a folder or a hub id"]),
        ("file.jpg", ["file.jpg is a file: --source must be a folder or a hub id"]),
        ("empty", ["empty holds no parquet file and no CLASS/IMAGE.jpg: nothing to prepare"]),
        ("strange", ["strange/val/bird is not a class of the train split: remove it, or add it to the train split"]),
        ("twice", ["twice/val and ", "twice/validation are both the validation split: keep one of them"]),
    ],
)
def test_a_folder_without_images_is_refused(source: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "file.jpg").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    for name in ("strange/train/cat", "strange/val/bird", "twice/train/cat", "twice/val/cat", "twice/validation/cat"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.jpg").write_bytes(b"image")
    result = run_command("prep/shard.py", "--source", tmp_path / source, "--out", tmp_path / "out")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert all(word in result.stderr for word in words), result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--workers", "--images-per-shard", "--limit"])
@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5"])
def test_a_count_below_one_is_refused(
    option: str, value: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["prep/shard.py", f"{option}={value}"])
    with pytest.raises(SystemExit) as exit_status:
        runpy.run_path(str(CHECKOUT / "prep" / "shard.py"), run_name="__main__")
    assert exit_status.value.code == 2
    assert f"argument {option}: must be a whole number of at least 1, got {value}" in capfd.readouterr().err


def _truncate(folder: Path) -> Path:
    path = _write_labelled(folder / "train.parquet", LABELS)
    path.write_bytes(path.read_bytes()[:-20])
    return path


def _write_text(folder: Path) -> Path:
    path = folder / "train.parquet"
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    return path


def _leave_out_image(folder: Path) -> Path:
    return _write_parquet(folder / "train.parquet", label=LABELS)


def _leave_out_label(folder: Path) -> Path:
    return _write_parquet(folder / "train.parquet", image=IMAGES)


def _leave_out_label_in_one_file(folder: Path) -> Path:
    _write_parquet(folder / "train.parquet", image=IMAGES, label=LABELS)
    return _write_parquet(folder / "validation.parquet", image=IMAGES)


def _label_with_text(folder: Path) -> Path:
    return _write_parquet(folder / "train.parquet", image=IMAGES, label=["a", "b", "c", "b"])


def _lose_a_label(folder: Path) -> Path:
    return _write_parquet(folder / "train.parquet", image=IMAGES, label=[0, None, 1, 1])


def _label_too_high(folder: Path) -> Path:
    _write_labelled(folder / "train.parquet", LABELS)
    return _write_labelled(folder / "validation.parquet", [0, 3, 1, 1])


def _label_too_low_without_statistics(folder: Path) -> Path:
    _write_labelled(folder / "train.parquet", LABELS)
    return _write_labelled(folder / "validation.parquet", [0, -1, 1, 1], write_statistics=False)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_truncate, "is not a complete parquet file"),
        (_write_text, "is a Git LFS pointer, not the file itself: run `git lfs pull` in its folder"),
        (_leave_out_image, "needs a column of images named image or img; its columns: label (int64)"),
        (_leave_out_label, "needs a column of labels named label or labels or fine_label; its columns: image (struct<"),
        (_leave_out_label_in_one_file, "needs a column of labels named label or labels or fine_label"),
        (_label_with_text, "column label (string) holds text, expected ClassLabel or integers: make classes of it"),
        (_lose_a_label, "has 1 rows without a label (null) in column label: leave this split out with --splits"),
        (_label_too_high, "holds label 3, outside the classes 0 to 2: correct it at the source"),
        (
            _label_too_low_without_statistics,
            "has the label -1, which means none, in column label: leave this split out with --splits",
        ),
    ],
)
def test_parquet_that_cannot_be_used_is_refused_before_anything_is_written(
    spoil: Callable[[Path], Path], words: str, refusal: Refusal, tmp_path: Path
) -> None:
    (tmp_path / "source").mkdir()
    culprit = spoil(tmp_path / "source")
    line = refusal("--source", tmp_path / "source", "--out", tmp_path / "out")
    assert line.startswith(f"error: {culprit}")
    assert words in line
    assert not (tmp_path / "out").exists()


def test_parquet_damaged_inside_is_refused_in_one_line(refusal: Refusal, digits_source: Path, tmp_path: Path) -> None:
    shutil.copytree(digits_source, tmp_path / "source")
    path = tmp_path / "source" / "data" / "train-00000-of-00001.parquet"
    data = path.read_bytes()
    path.write_bytes(data[:4] + bytes(len(data) // 2) + data[4 + len(data) // 2 :])  # as a lost block of a disk
    line = refusal("--source", tmp_path / "source", "--out", tmp_path / "out", "--workers", "1")
    assert line.startswith(f"error: {path} cannot be read (")
    assert "download the file again" in line
    assert {name.split("/")[-1] for name in tree(tmp_path / "out")} <= {"job.json", "lock", "train-000000.tar.partial"}


def test_a_split_that_is_not_there_is_refused(refusal: Refusal, digits_source: Path, tmp_path: Path) -> None:
    line = refusal("--source", digits_source, "--out", tmp_path / "out", "--splits", "train", "dev")
    assert line == f"error: {digits_source} has no images in a split dev: it has train, validation"
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_other_files_is_refused(refusal: Refusal, digits_source: Path, tmp_path: Path) -> None:
    (tmp_path / "validation").mkdir()
    (tmp_path / "validation" / "thesis.txt").write_text("years of work")
    line = refusal("--source", digits_source, "--out", tmp_path)
    assert line == f"error: {tmp_path / 'validation'} holds other files: choose another --out or empty it"
    assert tree(tmp_path) == {"validation/thesis.txt": b"years of work"}  # train was not begun either


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--images-per-shard", "40"], "was begun with images_per_shard 300, not 40: use the same value as before"),
        (["--limit", "10"], "was begun with limit None, not 10: use the same value as before"),
        (["--no-decode-check"], "was begun with decode_check True, not False: use the same value as before"),
    ],
)
def test_a_folder_of_other_options_is_refused(
    options: list[str], words: str, refusal: Refusal, digits: Path, digits_source: Path, tmp_path: Path
) -> None:
    shutil.copytree(digits, tmp_path / "digits")
    given = ["--images-per-shard", "300", *options]
    assert words in refusal("--source", digits_source, "--out", tmp_path / "digits", *given)
    assert tree(tmp_path / "digits") == tree(digits)


def test_a_folder_of_another_source_is_refused(refusal: Refusal, digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits, tmp_path / "digits")
    other = tmp_path / json.loads((digits / "train" / "manifest.json").read_text())["source"]["name"]
    write_digits(other)  # the same name and content, except one footer
    path = other / "data" / "train-00000-of-00001.parquet"
    pq.write_table(pq.read_table(path), path, compression="gzip")
    line = refusal("--source", other, "--out", tmp_path / "digits", "--images-per-shard", "300")
    assert f"{tmp_path / 'digits' / 'train'} was begun with revision " in line
    assert tree(tmp_path / "digits") == tree(digits)


def test_an_unfinished_folder_of_other_options_is_refused(
    refusal: Refusal, digits_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prepare, "_write_shards", die)
        prepare_folder(digits_source, "train", tmp_path, Options(images_per_shard=300))
    before = tree(tmp_path)
    line = refusal("--source", digits_source, "--out", tmp_path, "--images-per-shard", "40")
    assert (
        "train was begun with images_per_shard 300, not 40: use the same value as before, choose another --out" in line
    )
    assert tree(tmp_path) == before
