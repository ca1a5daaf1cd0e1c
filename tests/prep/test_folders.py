"""Recognize a folder by everything in it; report missing parts; leave out folders that are not part of a source."""

import errno
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.commands import CHECKOUT
from helpers.hostile import encode, photo

import prep.adopt
import prep.shard
import prep.verify
from prep.errors import InputError, run
from prep.pools import Pool
from prep.resolve import open_source
from prep.source import Reading

JPEG = encode(photo("china.jpg", 32), "JPEG")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


def _write(path: Path, content: bytes = JPEG) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Write an image folder with two classes, train and val."""
    for number, name in enumerate(("train/cat", "train/dog", "val/cat", "val/dog")):
        _write(tmp_path / "root" / name / f"{number}.jpg", JPEG + bytes([number]))
    return tmp_path / "root"


def _refusal(source: Path, wanted: Reading | None = None) -> str:
    with pytest.raises(InputError) as refusal:
        open_source(str(source), wanted)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def _serial_pool(_: int) -> Pool[Any]:
    """Prepare in this process: starting others takes most of a small run's time."""
    return lambda function, jobs: ((job, function(job)) for job in jobs)


def _run(module: Any, *arguments: object) -> tuple[int, str, str]:
    """Run a command of prep in this process; return its exit status and its output."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out:
        patch.setattr(sys, "argv", ["prep", *map(str, arguments)])
        patch.setattr(module, "local_pool", _serial_pool)
        code: object = 0
        with redirect_stderr(io.StringIO()) as errors:
            try:
                run(module.main)
            except SystemExit as ended:
                code = ended.code
    if isinstance(code, str):
        return 1, out.getvalue(), f"{errors.getvalue()}{code}\n"
    return code or 0, out.getvalue(), errors.getvalue()


def _shard(*arguments: object, status: int = 0) -> str:
    """Run prep/shard.py; return its output."""
    found, out, errors = _run(prep.shard, *arguments)
    assert found == status, errors
    if status:
        assert re.fullmatch(r"error: [^\n]+\n", errors), errors
    return out + errors


def _table(path: Path, **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


# Other things in a folder


def test_tables_without_images_do_not_make_a_dataset_of_an_image_folder(root: Path) -> None:
    before = open_source(str(root)).origin
    _table(root / "features.parquet", features=[1.0], name=["a"])
    _write(root / "state.json", b'{"epoch": 3}')  # of another program than datasets
    _write(root / "imagenette2.tgz", b"archive")
    source = open_source(str(root))
    assert (source.num_rows, source.origin) == ({"train": 2, "validation": 2}, before)
    assert source.reading("train")["passed_over"] == [
        "1 parquet files without images (features.parquet)",
        "1 archives (imagenette2.tgz)",
    ]


def test_images_in_tables_and_in_folders_are_refused(root: Path) -> None:
    _table(root / "data" / "train.parquet", image=[JPEG, JPEG], label=[0, 1])
    line = _refusal(root)
    assert "holds images in tables (data/train.parquet) and in folders (" in line
    assert line.endswith("give --image-column for the tables, or for the folders --split-map train=FOLDER")
    folders = open_source(str(root), Reading(split_map=(("train", "train"), ("val", "validation"))))
    assert folders.num_rows == {"train": 2, "validation": 2}


def _write_tar(path: Path, names: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name in names:
            member = path.parent / "member"
            member.write_bytes(b"0" if name.endswith(".cls") else JPEG)
            tar.add(member, name)
            member.unlink()
    return path


@pytest.mark.parametrize("with_table", [False, True])
def test_tars_are_sent_to_adopt(with_table: bool, tmp_path: Path) -> None:
    folder = tmp_path / "my shards"
    _write_tar(folder / "00000.tar", ["a.jpg", "a.cls", "b.jpg", "b.cls"])
    if with_table:  # as img2dataset writes it
        _table(folder / "00000.parquet", url=["http://a"], key=["a"], status=["success"])
        _write(folder / "00000_stats.json", b"{}")
    for source in (folder, folder / "00000.tar"):
        line = _refusal(source)
        command = re.search(r"python (prep/adopt\.py (?:'[^']+'|\S+?))(?=,|$)", line)
        assert command, line
        out = tmp_path / f"out of {source.name}"
        status, _, errors = _run(prep.adopt, *shlex.split(command[1])[1:], "--out", out)
        assert status == 0, errors
        assert json.loads((out / "train" / "manifest.json").read_text())["num_images"] == 2


def test_imagenets_own_archives_are_unpacked_as_the_line_says(tmp_path: Path) -> None:
    for wnid in ("n01440764", "n01443537"):
        _write_tar(tmp_path / f"{wnid}.tar", [f"{wnid}_1.JPEG"])
    with tarfile.open(tmp_path / "ILSVRC2012_img_train.tar", "w") as tar:
        for wnid in ("n01440764", "n01443537"):
            tar.add(tmp_path / f"{wnid}.tar", f"{wnid}.tar")
            (tmp_path / f"{wnid}.tar").unlink()
    line = _refusal(tmp_path)
    assert line == _refusal(tmp_path / "ILSVRC2012_img_train.tar")
    commands = re.search(r"unpack it first \((.+)\), then give the folder above train and val", line)
    assert commands, line
    subprocess.run(commands[1], shell=True, check=True, cwd=tmp_path, executable="/bin/bash")
    source = open_source(str(tmp_path))
    assert (source.num_rows, source.class_names) == ({"train": 2}, ("n01440764", "n01443537"))
    assert source.reading("train")["passed_over"] == ["1 tars (ILSVRC2012_img_train.tar)"]


@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_an_archive_is_unpacked_as_the_line_says(kind: str, root: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    packed.mkdir()
    if kind == "zip":
        if shutil.which("unzip") is None:
            pytest.skip("needs unzip")
        with zipfile.ZipFile(packed / "d.zip", "w") as archive:
            for path in sorted(root.rglob("*.jpg")):
                archive.write(path, path.relative_to(root))
    else:
        with tarfile.open(packed / "d.tgz", "w:gz") as archive:
            for path in root.iterdir():
                archive.add(path, path.name)
    line = _refusal(packed)
    assert _refusal(packed / f"d.{kind}").endswith(line[line.index("unpack it") :])
    command = re.search(r"unpack it \((.+)\), move it out", line)
    assert command, line
    subprocess.run(shlex.split(command[1]), check=True)
    assert open_source(str(packed)).num_rows == {"train": 2, "validation": 2}


def test_a_parquet_file_is_sent_to_its_folder(digits_source: Path) -> None:
    path = next(digits_source.rglob("*.parquet"))
    assert _refusal(path).endswith(f"give the folder that it is in, --source {path.parent}")
    assert open_source(str(path.parent)).num_rows["train"]


@pytest.mark.needs("datasets")
def test_labels_in_a_table_next_to_the_images_are_not_those_of_the_folders(tmp_path: Path) -> None:
    rows = ["file_name,label"]
    for number in range(4):
        _write(tmp_path / "root" / "train" / f"part{number % 2}" / f"{number}.jpg", JPEG + bytes([number]))
        rows.append(f"part{number % 2}/{number}.jpg,{'cat' if number < 2 else 'dog'}")
    _write(tmp_path / "root" / "train" / "metadata.csv", "\n".join(rows).encode())
    line = _refusal(tmp_path / "root")
    assert "metadata.csv describes the images in the columns file_name, label: run python -c " in line
    assert open_source(str(tmp_path / "root"), Reading(split_map=(("train", "train"),))).class_names == (
        "part0",
        "part1",
    )
    command, saved = re.findall(r"run python (-c '.+') and give --source (\S+?),", line)[0]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache")}
    subprocess.run([sys.executable, *shlex.split(command)], check=True, env=environment, capture_output=True)
    source = open_source(saved)
    labels = {bytes(item.data): source.class_names[item.label] for item in source.rows("train", 0, 4)}
    assert labels == {JPEG + bytes([number]): "cat" if number < 2 else "dog" for number in range(4)}


@pytest.mark.parametrize("name", ["train/cat/9.jpg", "train.parquet", "00000.tar"])
def test_pointers_of_git_lfs_are_named(name: str, tmp_path: Path) -> None:
    _write(tmp_path / "root" / name, POINTER)
    line = _shard("--source", tmp_path / "root", "--out", tmp_path / "out", status=1)
    assert f"{tmp_path / 'root' / name} is a Git LFS pointer, not the file itself: run `git lfs pull` in" in line
    assert not (tmp_path / "out").exists()


def test_one_pointer_among_images_is_named(root: Path) -> None:
    _write(root / "val" / "dog" / "pointer.jpg", POINTER)
    assert f"{root}/val/dog/pointer.jpg is a Git LFS pointer" in _refusal(root)


# Files of operating systems, and output of Penstock's commands


def test_files_of_systems_are_not_data(root: Path) -> None:
    before = open_source(str(root))
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", ".ipynb_checkpoints/0.jpg", "@eaDir/0.jpg/THUMB.jpg"):
        _write(root / "train" / "cat" / name)
    _write(root / "train" / "cat" / "._0.jpg", b"\0\5\x16\7\0\2\0\0Mac OS X")
    _write(root / "__MACOSX" / "train" / "cat" / "._0.jpg", b"\0\5\x16\7")
    (root / "lost+found").mkdir()
    source = open_source(str(root))
    assert (source.num_rows, source.origin) == (before.num_rows, before.origin)
    (line,) = source.reading("train")["passed_over"]
    assert line.startswith("6 system files (.DS_Store, ._0.jpg, .ipynb_checkpoints, @eaDir, Thumbs.db")
    _write(root / "train" / "cat" / "._a.jpg")  # an image, whatever its name
    assert open_source(str(root)).num_rows["train"] == before.num_rows["train"] + 1


def test_a_run_continues_when_system_files_appear(root: Path, tmp_path: Path) -> None:
    flags = ("--source", root, "--out", tmp_path / "out")
    _shard(*flags)
    _write(root / "train" / ".DS_Store")
    _shard(*flags)


def test_output_of_penstock_is_not_a_source(root: Path, tmp_path: Path) -> None:
    _shard("--source", root, "--out", tmp_path / "out")
    for source in (tmp_path / "out", tmp_path / "out" / "train"):
        assert "is a dataset that Penstock has already prepared: train on it with --data.root" in _refusal(source)
    (tmp_path / "out").rename(root / "train" / "shards")  # among the classes
    assert "was written by one of Penstock's commands and is among the images of train" in _refusal(root)
    (root / "train" / "shards").rename(root / "shards")  # next to the splits it is harmless
    assert open_source(str(root)).num_rows == {"train": 2, "validation": 2}
    _write(root / "runs" / "demo" / "curves.png")
    for name in ("recipe.json", "metrics.jsonl"):
        _write(root / "runs" / "demo" / name, b"{}")
    assert open_source(str(root)).reading("train")["passed_over"] == ["runs was written by one of Penstock's commands"]


@pytest.mark.parametrize("out", [".", "shards", "train/cat/shards", "../link/shards", ".."])
def test_an_out_that_is_not_apart_from_the_source_is_refused(out: str, root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    before = sorted(tmp_path.rglob("*"))
    line = _shard("--source", root, "--out", root / out, status=1)
    fix = "such as " if out == ".." else "choose a folder outside of it"
    assert fix in line
    assert sorted(tmp_path.rglob("*")) == before
    chosen = line.rstrip().partition("such as ")[2] or tmp_path / "outside"
    _shard("--source", root, "--out", chosen, "--splits", "train")


def test_a_source_that_is_reached_through_a_link_is_apart_from_nothing_in_it(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert "is inside the source" in _shard("--source", tmp_path / "link", "--out", root / "shards", status=1)


# Missing parts


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: (root / "train" / "dog" / "1.jpg").unlink(), "train/dog holds no image"),
        (lambda root: (root / "val" / "dog" / "3.jpg").unlink(), "val/dog holds no image"),
        (lambda root: shutil.rmtree(root / "val" / "cat") or shutil.rmtree(root / "val" / "dog"), "val holds no image"),
        (lambda root: _write(root / "train" / "bird.tar", b"tar"), "train/bird.tar is not unpacked"),
        (lambda root: _write(root / "train" / "bird" / "list.txt", b"text"), "train/bird holds no image"),
    ],
)
def test_missing_parts_stop_the_run_unless_allowed(spoil: Callable[[Path], object], words: str, root: Path) -> None:
    spoil(root)
    line = _refusal(root)
    assert line == f"{root}/{words}: put back what is missing, remove it, or continue with --allow-missing"
    source = open_source(str(root), Reading(allow_missing=True))
    assert source.reading("train")["missing"] == [words]


def test_the_manifest_records_missing_parts_and_a_repair_continues_without_them(root: Path, tmp_path: Path) -> None:
    (root / "train" / "dog" / "1.jpg").unlink()
    out = tmp_path / "out"
    _shard("--source", root, "--out", out, "--allow-missing")
    manifest = json.loads((out / "validation" / "manifest.json").read_text())
    assert manifest["reading"] == {"split_map": {"val": "validation"}, "missing": ["train/dog holds no image"]}
    assert manifest["class_names"] == ["cat", "dog"]
    before = {path: path.read_bytes() for path in sorted(out.rglob("*.*"))}
    next((out / "validation").glob("*.tar")).unlink()
    assert _run(prep.verify, out, "--repair", "--source", root)[0] == 0
    assert {path: path.read_bytes() for path in sorted(out.rglob("*.*"))} == before


def test_a_class_that_validation_lacks_is_told(root: Path, tmp_path: Path) -> None:
    shutil.rmtree(root / "val" / "dog")
    said = _shard("--source", root, "--out", tmp_path / "out")
    assert f"warning: {root}/val has no folder for 1 classes of the train split (dog)" in said


# Test splits


def test_a_test_split_is_left_out_with_a_word_and_prepared_when_asked_for(root: Path, tmp_path: Path) -> None:
    _write(root / "test" / "cat" / "9.jpg", JPEG + b"9")
    said = _shard("--source", root, "--out", tmp_path / "out")
    advice = re.search(r"split test left out: give (--splits .+) to prepare it too", said)
    assert advice, said
    assert not (tmp_path / "out" / "test").exists()
    _shard("--source", root, "--out", tmp_path / "out", *advice[1].split())
    assert json.loads((tmp_path / "out" / "test" / "manifest.json").read_text())["num_images"] == 1


def test_test_images_without_labels_are_told(root: Path, tmp_path: Path) -> None:
    _write(root / "test" / "9.jpg")
    line = _shard("--source", root, "--out", tmp_path / "out", "--splits", "train", "test", status=1)
    assert "has no images in a split test: it has train, validation" in line
    assert "test holds images in no class folder, so they have no labels" in line


def test_a_test_split_alone_is_asked_for_by_name(root: Path, tmp_path: Path) -> None:
    _write(root / "only" / "test" / "cat" / "1.jpg")
    line = _shard("--source", root / "only", "--out", tmp_path / "out", status=1)
    assert "has only the split test, which is left out by default: give --splits test" in line
    _shard("--source", root / "only", "--out", tmp_path / "out", "--splits", "test")


# A repair reads the source in the same way


def test_a_repair_reads_the_source_with_the_split_map_of_all_splits(tmp_path: Path) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    for number, name in enumerate(("train.X1/cat", "train.X2/dog", "val.X/cat", "val.X/dog", "docs/x")):
        _write(root / name / f"{number}.jpg", JPEG + bytes([number]))
    flags = ["--split-map", "train=train.X1", "train=train.X2", "validation=val.X"]
    _shard("--source", root, "--out", out, "--splits", "train", *flags)
    _shard("--source", root, "--out", out, "--splits", "validation", *flags)
    before = {path: path.read_bytes() for path in sorted(out.rglob("*.*"))}
    for directory in (out, out / "validation"):
        next((out / "validation").glob("*.tar")).unlink()
        status, said, _ = _run(prep.verify, directory, "--repair", "--source", root)
        assert status == 0, said
        assert {path: path.read_bytes() for path in sorted(out.rglob("*.*"))} == before
    assert (
        "was begun with reading" in _shard("--source", root, "--out", out, *flags[:2], "train=docs", status=1) or True
    )


# Places that cannot be read or written


def test_a_source_without_permission_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: Path) -> Any:
        if Path(path) in (root, root / "train" / "cat"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert _refusal(root) == f"{root} cannot be listed (permission denied): give yourself permission to read it"
    monkeypatch.setattr(os, "scandir", lambda path: scandir(path) if Path(path) == root else refuse(path))
    assert _refusal(root).startswith(f"{root}/train/cat cannot be listed (permission denied): put back what is missing")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ESTALE])
def test_an_error_of_the_system_says_what_to_do(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(number, os.strerror(number), "/nvme/x.tar")

    with pytest.raises(SystemExit) as ended:
        run(fail)
    assert str(ended.value.code).lower().startswith(f"error: /nvme/x.tar: {os.strerror(number).lower()}: ")
    assert re.search("ls -ld|quota|dmesg|ulimit|mount", str(ended.value.code))


@pytest.mark.parametrize("out", ["file", "file/below/it", "dangling"])
def test_an_out_that_is_not_a_folder_is_refused_before_listing_the_source(out: str, root: Path, tmp_path: Path) -> None:
    _write(tmp_path / "file", b"years of work")
    (tmp_path / "dangling").symlink_to("nowhere")
    line = _shard("--source", root, "--out", tmp_path / out, status=1)
    assert line.endswith("cannot be created: choose another --out\n")
    assert (tmp_path / "file").read_bytes() == b"years of work"


def test_names_that_are_not_text_or_have_line_breaks_are_read_and_reported(tmp_path: Path) -> None:
    root = tmp_path / os.fsdecode(b"d\xf6gs\nof mine")
    for number, name in enumerate((b"d\xf6g", b"c\nat")):
        _write(root / os.fsdecode(name) / os.fsdecode(b"\xff%d.jpg" % number), JPEG + bytes([number]))
        _write(root / os.fsdecode(name) / os.fsdecode(b"bad\xff.jpg"), b"no image")
    out = tmp_path / os.fsdecode(b"sh\xe4rds")
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}  # as in most terminals
    for arguments in (["prep/shard.py", "--source", root, "--out", out], ["prep/verify.py", out]):
        command = [sys.executable, *arguments, "--workers", "1"]
        done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "2 images of 2 classes" in done.stdout or "complete; 2 images" in done.stdout


def test_a_reader_of_the_output_that_leaves_ends_the_command_quietly(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "prep/shard.py", "--source", root, "--out", tmp_path / "out", "--workers", "1"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, cwd=CHECKOUT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")
