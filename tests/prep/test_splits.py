"""Folders that may be splits or classes: read if it is clear, else refused with the flag that makes it clear."""

import re
import shlex
from pathlib import Path

import pytest

from prep.errors import InputError
from prep.resolve import open_source
from prep.shard import build_reading, parse_arguments
from prep.source import Source

Found = dict[str, tuple[str, str]]  # image -> (split, class)


def _write(root: Path, names: list[str]) -> Path:
    for name in names:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"\xff\xd8\xff" + name.encode())  # as a JPEG starts
    return root


def _read(source: Source) -> Found:
    items = [(split, item) for split, rows in source.num_rows.items() for item in source.rows(split, 0, rows)]
    assert all(bytes(item.data) for _, item in items)
    found = {item.name: (split, source.class_names[item.label]) for split, item in items}
    assert len(found) == len(items)
    return found


def _open(root: Path, *flags: str) -> Source:
    """Open a source as prep/shard.py does with these flags."""
    arguments = parse_arguments(["--source", str(root), *flags])
    return open_source(arguments.source, build_reading(arguments))


def _refusal(root: Path, *flags: str) -> str:
    with pytest.raises(InputError) as refusal:
        _open(root, *flags)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


READABLE = {
    "documented": (["train/cat/1.jpg", "val/cat/2.jpg", "test/cat/3.jpg"], {"val/cat/2.jpg": "validation cat"}),
    "a lone train split": (["cat/1.jpg", "dog/2.jpg"], {"cat/1.jpg": "train cat", "dog/2.jpg": "train dog"}),
    "images folders": (["train/cat/images/1.jpg", "train/dog/images/2.jpg"], {"train/dog/images/2.jpg": "train dog"}),
    "deeper in one class": (["cat/1.jpg", "dog/a/2.jpg", "dog/b/3.jpg"], {"dog/b/3.jpg": "train dog"}),
    "deeper in one split": (
        ["train/cat/a/1.jpg", "train/cat/b/2.jpg", "val/cat/3.jpg"],
        {"train/cat/a/1.jpg": "train cat"},
    ),
    "a class called train": (["train/1.jpg", "car/2.jpg", "boat/3.jpg"], {"train/1.jpg": "train train"}),
    "such a class in splits": (
        ["train/train/1.jpg", "train/car/2.jpg", "val/train/3.jpg"],
        {"val/train/3.jpg": "validation train"},
    ),
    "a class val in all splits": (
        ["train/val/1.jpg", "train/car/2.jpg", "val/val/3.jpg", "val/car/4.jpg"],
        {"val/val/3.jpg": "validation val"},
    ),
    "no suffix": (["train/cat/a", "train/dog/b.jpg"], {"train/dog/b.jpg": "train dog"}),
    "a hidden split, and a hidden picture": (
        ["train/cat/1.jpg", ".val/cat/2.jpg", "train/.thumbs/3.jpg", ".cover.jpg"],
        {"train/cat/1.jpg": "train cat"},
    ),
    "hidden and other files": (
        ["train/cat/1.jpg", "train/list.txt", "README.md", ".git/x/1.jpg"],
        {"train/cat/1.jpg": "train cat"},
    ),
}


@pytest.mark.parametrize("name", READABLE)
def test_what_can_be_read_in_one_way_is_read(name: str, tmp_path: Path) -> None:
    files, expected = READABLE[name]
    (tmp_path / "root").mkdir()
    found = _read(_open(_write(tmp_path / "root", files)))
    assert {path: " ".join(found[path]) for path in expected} == expected


# Folders; words of the refusal, R for the source; the flags that it names; and what is then read.
UNCLEAR = {
    "another case": (
        ["Train/cat/1.jpg", "Val/cat/2.jpg"],
        "R has folders Train, Val, expected train and validation (or val)",
        "--split-map train=Train validation=Val",
        {"Train/cat/1.jpg": "train cat", "Val/cat/2.jpg": "validation cat"},
    ),
    "other words": (
        ["training/cat/1.jpg", "testing/cat/2.jpg", "dev/cat/3.jpg"],
        "R has folders dev, testing, training",
        "--split-map validation=dev test=testing train=training",
        {"training/cat/1.jpg": "train cat", "testing/cat/2.jpg": "test cat", "dev/cat/3.jpg": "validation cat"},
    ),
    "pieces of disjoint classes": (
        ["train.X1/a/1.jpg", "train.X2/b/2.jpg", "val.X/a/3.jpg", "val.X/b/4.jpg"],
        "R has folders train.X1, train.X2, val.X",
        "--split-map train=train.X1 train=train.X2 validation=val.X",
        {"train.X1/a/1.jpg": "train a", "train.X2/b/2.jpg": "train b", "val.X/b/4.jpg": "validation b"},
    ),
    "split names with spaces": (
        ["My Train/cat/1.jpg"],
        "R has folders My Train",
        "--split-map 'train=My Train'",
        {"My Train/cat/1.jpg": "train cat"},
    ),
    "one folder too high": (
        ["imagenette2/train/a/1.jpg", "imagenette2/val/a/2.jpg"],
        "R/imagenette2/train, R/imagenette2/val look like splits in a folder below the source",
        "--source R/imagenette2",
        {"train/a/1.jpg": "train a", "val/a/2.jpg": "validation a"},
    ),
    "one folder too high, next to pictures": (
        ["imagenette2/cat/1.jpg", "imagenette2/dog/2.jpg", "pictures/logo.png"],
        "imagenette2 in R hold no image, only folders (cat, dog), so it is not clear which are the classes",
        "--source R/imagenette2",
        {"cat/1.jpg": "train cat", "dog/2.jpg": "train dog"},
    ),
    "two folders too high, two datasets": (
        ["d/one/train/a/1.jpg", "d/one/val/a/2.jpg", "d/two/train/b/3.jpg"],
        "look like splits in a folder below the source",
        "--source R/d/one or --source R/d/two",
        {"train/a/1.jpg": "train a", "val/a/2.jpg": "validation a"},
    ),
    "too high, and other names": (
        ["d/Train/a/1.jpg", "d/Val/a/2.jpg"],
        "R/d/Train, R/d/Val look like splits below the source",
        "--split-map train=d/Train validation=d/Val",
        {"d/Train/a/1.jpg": "train a", "d/Val/a/2.jpg": "validation a"},
    ),
    "a lone train split too high": (
        ["photos/cat/1.jpg", "photos/dog/2.jpg"],
        "photos in R hold no image, only folders (cat, dog), so it is not clear which are the classes",
        "--source R/photos",
        {"cat/1.jpg": "train cat", "dog/2.jpg": "train dog"},
    ),
    "a folder between split and class": (
        ["train/birds/3/1.jpg", "train/birds/4/2.jpg", "train/trees/7/3.jpg", "train/trees/8/4.jpg"],
        "birds, trees in R/train hold no image, only folders (3, 4), so it is not clear which are the classes",
        "--split-map train=train/birds train=train/trees",
        {"train/birds/3/1.jpg": "train 3", "train/trees/8/4.jpg": "train 8"},
    ),
    "the same, and the upper ones are meant": (
        ["train/birds/3/1.jpg", "train/birds/4/2.jpg", "train/trees/7/3.jpg", "train/trees/8/4.jpg"],
        "or --split-map train=train if birds is a class",
        "--split-map train=train",
        {"train/birds/3/1.jpg": "train birds", "train/trees/8/4.jpg": "train trees"},
    ),
    "a folder between split and class of one split": (
        ["train/part1/cat/1.jpg", "train/part2/dog/2.jpg", "val/cat/3.jpg", "val/dog/4.jpg", "test/images/5.jpg"],
        "part1, part2 in R/train hold no image, only folders (cat), so it is not clear",
        "--split-map train=train/part1 train=train/part2 validation=val",
        {"train/part1/cat/1.jpg": "train cat", "train/part2/dog/2.jpg": "train dog", "val/dog/4.jpg": "validation dog"},
    ),
    "folds": (
        ["fold1/cat/1.jpg", "fold1/dog/2.jpg", "fold2/cat/3.jpg", "fold2/dog/4.jpg"],
        "it is not clear which are the classes",
        "--split-map train=fold1 train=fold2",
        {"fold1/cat/1.jpg": "train cat", "fold2/cat/3.jpg": "train cat"},
    ),
    "an archive's folder in the split": (
        ["train/ILSVRC2012_img_train/n01/1.jpg", "train/ILSVRC2012_img_train/n02/2.jpg"],
        "R/train/ILSVRC2012_img_train looks like splits below the source",
        "--split-map train=train/ILSVRC2012_img_train",
        {"train/ILSVRC2012_img_train/n01/1.jpg": "train n01"},
    ),
    "three names of one split": (
        ["train/cat/0.jpg", "val/cat/1.jpg", "valid/cat/2.jpg", "validation/cat/3.jpg"],
        "R/val and R/valid and R/validation are both the validation split",
        "--split-map train=train validation=val",
        {"train/cat/0.jpg": "train cat", "val/cat/1.jpg": "validation cat"},
    ),
    "cases of one name": (
        ["train/cat/1.jpg", "Train/cat/2.jpg"],
        "which leaves out Train",
        "--split-map train=train",
        {"train/cat/1.jpg": "train cat"},
    ),
    "a folder more": (
        ["train/cat/1.jpg", "val/cat/2.jpg", "extra/cat/3.jpg"],
        "R has folders extra, train, val",
        "--split-map train=train validation=val",
        {"train/cat/1.jpg": "train cat", "val/cat/2.jpg": "validation cat"},
    ),
    "validation images without labels": (
        ["train/cat/1.jpg", "val/2.jpg"],
        "(val: images not in class folders)",
        "--split-map train=train",
        {"train/cat/1.jpg": "train cat"},
    ),
    "classes named like two splits": (
        ["train/1.jpg", "val/2.jpg", "car/3.jpg"],
        "they have no labels",
        "--split-map train=.",
        {"train/1.jpg": "train train", "val/2.jpg": "train val", "car/3.jpg": "train car"},
    ),
    "a class called val": (
        ["val/1.jpg", "car/2.jpg"],
        "if car, val are classes",
        "--split-map train=.",
        {"val/1.jpg": "train val", "car/2.jpg": "train car"},
    ),
    "a class called train that holds folders": (
        ["train/steam/1.jpg", "car/2.jpg"],
        "which leaves out car",
        "--split-map train=.",
        {"train/steam/1.jpg": "train train", "car/2.jpg": "train car"},
    ),
    "splits in classes": (
        ["cat/train/1.jpg", "cat/val/2.jpg", "dog/train/3.jpg", "dog/val/4.jpg"],
        "look like splits among or below classes: move them out (SPLIT/CLASS/IMAGE.jpg)",
        "--split-map train=.",
        {"cat/train/1.jpg": "train cat", "dog/val/4.jpg": "train dog"},
    ),
    "images and labels of YOLO": (
        ["train/images/1.jpg", "train/labels/1.txt"],
        "R/train/images hold images, but their names are not those of classes",
        "--split-map train=train",
        None,
    ),
    "images and masks": (
        ["JPEGImages/1.jpg", "SegmentationClass/1.png"],
        "R/JPEGImages, R/SegmentationClass hold images, but their names are not those of classes",
        "--split-map train=.",
        {"JPEGImages/1.jpg": "train JPEGImages", "SegmentationClass/1.png": "train SegmentationClass"},
    ),
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_what_can_be_read_in_several_ways_is_refused_with_a_way_that_works(name: str, tmp_path: Path) -> None:
    files, words, flags, expected = UNCLEAR[name]
    root = tmp_path / "root"
    line = _refusal(_write(root, files))
    assert words in line.replace(str(root), "R")
    assert flags in line.replace(str(root), "R"), line
    flag, *values = shlex.split(flags.partition(" or ")[0].replace("R/", f"{root}/"))
    if expected is None:
        assert "train/labels holds no image" in _refusal(root, flag, *values)
        return
    source = _open(root, flag, *values)
    assert {path: " ".join(place) for path, place in _read(source).items()}.items() >= expected.items()
    unread = {path for path in files if path not in _read(source)} if flag == "--split-map" else set()
    told = " ".join(source.reading("train").get("passed_over", ()))
    assert all(path.partition("/")[0] in told for path in unread), told


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["train=Trian"], "R/Trian, which --split-map names, is not a folder: folders with images are Train, val"),
        (["train=docs"], "R/docs, which --split-map names, holds no image"),
        (["train=Train", "validation=Train"], "R/Train and R/Train are the same folder: read it as one split"),
        (
            ["train=.", "validation=val"],
            "R/val is inside R: the folders that --split-map names must not contain each other",
        ),
        (["train=Train/../val"], "R/Train/../val, which --split-map names, is not a folder"),
        (["train=linked", "validation=val"], "are the same folder: read it as one split"),
    ],
)
def test_a_split_map_that_cannot_be_is_refused(flags: list[str], words: str, tmp_path: Path) -> None:
    _write(tmp_path, ["Train/cat/1.jpg", "val/cat/2.jpg", "docs/readme.txt"])
    if "train=linked" in flags:
        (tmp_path / "linked").symlink_to(tmp_path / "val")
    assert words in _refusal(tmp_path, "--split-map", *flags).replace(str(tmp_path), "R")


def test_a_split_map_leaves_the_documented_names_what_they_are(tmp_path: Path) -> None:
    _write(tmp_path, ["Train/cat/1.jpg", "val/cat/2.jpg", "train/cat/3.jpg", "test/4.jpg", "more/cat/5.jpg"])
    source = _open(tmp_path, "--split-map", "train=Train", "train=Train")
    assert source.num_rows == {"train": 1, "validation": 1}
    assert source.reading("validation") == {
        "split_map": {"Train": "train", "val": "validation"},
        "passed_over": [
            "more is not in --split-map",
            "test holds images in no class folder, so they have no labels",
            "train is not in --split-map",
        ],
    }


def test_a_flag_that_is_given_twice_counts_twice(tmp_path: Path) -> None:
    _write(tmp_path, ["a/cat/1.jpg", "b/cat/2.jpg"])
    assert _open(tmp_path, "--split-map", "train=a", "--split-map", "train=b").num_rows == {"train": 2}
    assert parse_arguments(["--splits", "train", "--splits", "test"]).splits == ["train", "test"]


def test_a_split_whose_images_are_hidden_holds_none(tmp_path: Path) -> None:
    _write(tmp_path, ["train/cat/1.jpg", "val/.cat/2.jpg"])
    assert f"{tmp_path}/val holds no image" in _refusal(tmp_path)


def test_a_text_without_a_suffix_is_not_an_image(tmp_path: Path) -> None:
    _write(tmp_path, ["train/cat/1.jpg"])
    (tmp_path / "train" / "BMW models").write_text("BMW models, one a line")
    assert _open(tmp_path).num_rows == {"train": 1}
    (tmp_path / "train" / "no suffix").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert "no suffix is not in a class folder: move it into one or away" in _refusal(tmp_path)


def test_pieces_of_a_split_may_share_a_class(tmp_path: Path) -> None:
    _write(tmp_path, ["a/cat/1.jpg", "a/dog/1.jpg", "b/cat/1.jpg", "b/cat/2.jpg"])
    source = _open(tmp_path, "--split-map", "train=a", "train=b")
    assert {path: label for path, (_, label) in _read(source).items()} == {
        "a/cat/1.jpg": "cat",
        "a/dog/1.jpg": "dog",
        "b/cat/1.jpg": "cat",
        "b/cat/2.jpg": "cat",
    }


def test_linked_splits(tmp_path: Path) -> None:
    _write(tmp_path, ["elsewhere/cat/1.jpg", "root/val/cat/2.jpg"])
    root = tmp_path / "root"
    (root / "train").symlink_to(tmp_path / "elsewhere")
    assert _open(root).num_rows == {"train": 1, "validation": 1}
    (root / "valid").symlink_to("val")  # another name of the same split
    (root / "Train").symlink_to("train")
    source = _open(root)
    assert source.num_rows == {"train": 1, "validation": 1}
    assert source.reading("train")["passed_over"] == [
        "valid is the same folder as val",
        "Train is the same folder as train",
    ]
    for name in ("val", "valid"):
        (root / name).rename(tmp_path / name)
    (root / "val").symlink_to("train")  # the training images are not validation images
    line = _refusal(root)
    assert "are the same folder: read it as one split, --split-map train=train" in line
    assert _open(root, "--split-map", "train=train").num_rows == {"train": 1}


@pytest.mark.parametrize("target", [".", "..", "/"])
def test_a_split_that_is_a_link_to_a_folder_above_it_is_refused(target: str, tmp_path: Path) -> None:
    _write(tmp_path, ["cat/1.jpg"])
    (tmp_path / "train").symlink_to(target)
    assert re.search("train is a link to a folder that contains it: remove it", _refusal(tmp_path))


def test_flags_for_tables_are_refused(tmp_path: Path) -> None:
    _write(tmp_path, ["cat/1.jpg"])
    for flag in ("--config", "--image-column", "--label-column"):
        assert f"is an image folder and has no tables: remove {flag} x" in _refusal(tmp_path, flag, "x")
