"""Same inputs and options, same bytes: for any workers, and after missing shards were written again."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.commands import run_command
from helpers.datasets import prepare_folder, tree
from helpers.tars import one_by_one
from PIL import Image

from prep import store
from prep.dataset import Options, Split
from prep.errors import InputError
from prep.folder_tree import list_folder
from prep.image_folder import open_image_folder
from prep.prepare import rewrite_shards
from prep.resolve import open_source
from prep.source import Reading

DIGITS_OPTIONS = Options(images_per_shard=300)


def _write_images(folder: Path, num_classes: int, num_images_per_class: int) -> Path:
    """An image folder of small JPEGs, no two alike."""
    for label in range(num_classes):
        (folder / "train" / f"class{label:02d}").mkdir(parents=True)
        for number in range(num_images_per_class):
            encoded = io.BytesIO()
            Image.new("RGB", (8 + label, 8), (number * 5, label * 9, 77)).save(encoded, "JPEG")
            (folder / "train" / f"class{label:02d}" / f"{number:03d}.jpg").write_bytes(encoded.getvalue())
    return folder


def test_one_worker_and_two_give_the_same_digits(digits: Path, digits_source: Path, tmp_path: Path) -> None:
    for split in ("train", "validation"):
        prepare_folder(digits_source, split, tmp_path, DIGITS_OPTIONS)
    assert tree(tmp_path) == tree(digits)  # which two workers wrote


def test_one_worker_and_two_give_the_same_shards_of_an_image_folder(tmp_path: Path) -> None:
    source = _write_images(tmp_path / "images", 3, 20)
    for num_workers in (1, 2):
        prepare_folder(
            source, "train", tmp_path / str(num_workers), Options(images_per_shard=7), num_workers=num_workers
        )
    assert len(list((tmp_path / "1" / "train").glob("*.tar"))) == 9
    assert tree(tmp_path / "1") == tree(tmp_path / "2")


def test_an_image_folder_is_read_in_one_fixed_permutation_of_its_sorted_files(tmp_path: Path) -> None:
    source = open_image_folder(list_folder(_write_images(tmp_path, 2, 4)), Reading())
    names = [name.removeprefix("train/") for name, _ in source.files["train"]]
    assert names == [  # golden: prepared data of another order is other data
        "class00/000.jpg",
        "class00/002.jpg",
        "class00/001.jpg",
        "class01/001.jpg",
        "class01/000.jpg",
        "class00/003.jpg",
        "class01/002.jpg",
        "class01/003.jpg",
    ]


def test_an_image_folders_classes_come_mixed(tmp_path: Path) -> None:
    source = open_image_folder(list_folder(_write_images(tmp_path, 2, 50)), Reading())
    labels = [label for _, label in source.files["train"]]
    assert sorted(labels) == [0] * 50 + [1] * 50
    assert all(10 < sum(labels[start : start + 50]) < 40 for start in range(0, 51, 10))


def test_labels_have_one_width_and_follow_the_sorted_class_folders(tmp_path: Path) -> None:
    prepare_folder(_write_images(tmp_path / "images", 11, 2), "train", tmp_path / "out")
    split = Split(tmp_path / "out", "train")
    assert split.class_names == tuple(f"class{label:02d}" for label in range(11))
    assert split.column("label").tolist() == [width - 8 for width in split.column("width")]
    index_lines = (tmp_path / "out" / "train" / "train-000000.idx").read_text().splitlines()[1:]
    assert {line.split()[6] for line in index_lines} == {"2"}  # bytes of each .cls: "00" to "10"


def test_a_limit_takes_the_first_rows(digits: Path, digits_source: Path, tmp_path: Path) -> None:
    prepare_folder(digits_source, "validation", tmp_path, Options(images_per_shard=40, limit=50))
    limited, whole = Split(tmp_path, "validation"), Split(digits, "validation")
    assert [shard.num_images for shard in limited.manifest.shards] == [40, 10]
    assert limited.samples.column("sha256").to_pylist() == whole.samples.column("sha256").to_pylist()[:50]


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def _lose_index(path: Path) -> None:
    path.with_suffix(".idx").unlink()


@pytest.mark.parametrize("harm", [Path.unlink, _truncate, _lose_index])
def test_only_a_missing_shard_is_written_again(
    harm: Callable[[Path], None], digits: Path, digits_source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "digits"
    shutil.copytree(digits, out)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*.*")}
    victim = out / "train" / "train-000002.tar"
    harm(victim)
    prepare_folder(digits_source, "train", out, DIGITS_OPTIONS, num_workers=2)
    assert tree(out) == tree(digits)
    rewritten = {path.name for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert rewritten == {"train-000002.tar", "train-000002.idx"}


def test_a_shard_that_comes_out_otherwise_than_its_manifest_says_is_refused(tmp_path: Path) -> None:
    images = _write_images(tmp_path / "images", 1, 2)
    prepare_folder(images, "train", tmp_path / "out")
    swap = [images / "train" / "class00" / name for name in ("000.jpg", "001.jpg")]
    assert swap[0].stat().st_size == swap[1].stat().st_size  # so that the source looks the same
    contents = [path.read_bytes() for path in swap]
    for path, content in zip(swap, reversed(contents), strict=True):
        path.write_bytes(content)
    (tmp_path / "out" / "train" / "train-000000.tar").unlink()
    before = tree(tmp_path / "out")
    with pytest.raises(
        InputError, match=r"train-000000\.tar came out different from its manifest .*: use what prepared it"
    ):
        prepare_folder(images, "train", tmp_path / "out")
    assert tree(tmp_path / "out") == before


def test_a_shard_that_gains_its_first_image_or_loses_its_last_is_refused(tmp_path: Path) -> None:
    """Another Pillow may decode an image that was rejected, or reject one that was kept."""
    images, out = _write_images(tmp_path / "images", 1, 2), tmp_path / "out"
    paths = [images / "train" / "class00" / name for name in ("000.jpg", "001.jpg")]
    size = paths[0].stat().st_size
    paths[0].write_bytes(b"x" * size)
    prepare_folder(images, "train", out, Options(images_per_shard=1))
    manifest, before = Split(out, "train").manifest, tree(out)
    assert [shard.name for shard in manifest.shards] == ["train-000001.tar"]
    paths[0].write_bytes(paths[1].read_bytes())
    paths[1].write_bytes(b"x" * size)
    for number in range(2):
        name = f"train-{number:06d}.tar"
        with pytest.raises(InputError, match=f"{name} came out different from its manifest"):
            rewrite_shards(open_source(str(images)), manifest, store.LocalStore(out), {name}, one_by_one)
        assert tree(out) == before


def test_a_run_killed_while_it_cleans_up_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = _write_images(tmp_path / "images", 1, 2)
    (images / "train" / "class00" / "000.jpg").write_bytes(b"")  # one of two shards is left out altogether
    options = Options(images_per_shard=1)

    def die(folder: Path) -> None:
        raise KeyboardInterrupt(folder)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store.shutil, "rmtree", die)
        prepare_folder(images, "train", tmp_path / "out", options)
    assert (tmp_path / "out" / "train" / "manifest.json").exists()
    prepare_folder(images, "train", tmp_path / "out", options)
    assert not (tmp_path / "out" / "train" / ".prep").exists()
    assert len(Split(tmp_path / "out", "train")) == 1


def test_a_second_preparation_of_the_same_folder_is_refused(digits_source: Path, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with store.LocalStore(tmp_path / "train").lock():
        result = run_command("prep/shard.py", "--source", digits_source, "--out", tmp_path, "--splits", "train")
    assert result.returncode == 1
    assert result.stderr == f"error: {tmp_path / 'train'} is being written by another process: wait for it\n"
    assert tree(tmp_path) == {}
