"""Each layout of labelled pictures is read whole, each picture with the class that the model calls it by."""

import io
import json
from pathlib import Path

import pytest
from helpers.tars import adopt, encode_image, images, write_tar
from PIL import Image

from prep.dataset import Split
from prep.errors import InputError
from serve.image_sources import open_images
from serve.pictures import Source

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WNIDS = ("n01443537", "n01629819", "n01641577")


def jpeg(grey: int) -> bytes:
    content = io.BytesIO()
    Image.new("L", (9, 7), grey).save(content, "JPEG")
    return content.getvalue()


def write_images(folder: Path, count: int, grey: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{folder.name}_{number}.JPEG").write_bytes(jpeg(grey))


def listed(source: Source) -> list[tuple[int, str]]:
    """Row and class name of each picture."""
    return [(each.row, source.class_names[each.label]) for each in source.read(range(source.num_images))]


def test_a_split_is_read_as_its_index_says(digits: Path) -> None:
    source = open_images(digits / "validation", 10, NAMES)
    split = Split(digits, "validation")
    read = list(source.read(range(source.num_images)))
    assert [each.label for each in read] == split.column("label").tolist()
    assert [each.row for each in read] == list(range(360))
    assert [len(each.content) for each in read] == split.column("size").tolist()
    assert [each.row for each in source.read({3, 299, 300, 359})] == [3, 299, 300, 359]


def test_classes_are_matched_by_name(digits: Path) -> None:
    own = open_images(digits / "validation", 10, None)
    backwards = open_images(digits / "validation", 10, NAMES[::-1])
    assert listed(backwards) == listed(own)
    few = open_images(digits / "validation", 2, ("nine", "three"))
    assert listed(few) == [(row, name) for row, name in listed(own) if name in ("nine", "three")] != []


def test_other_classes_are_refused(digits: Path) -> None:
    with pytest.raises(InputError, match="has 10 classes and the model 7: give images of the model's classes"):
        open_images(digits / "validation", 7, None)


def test_a_whole_dataset_is_answered_with_its_splits(digits: Path) -> None:
    with pytest.raises(InputError, match="is a prepared dataset: give one of its splits, train, validation"):
        open_images(digits, 10, NAMES)


def test_a_truncated_shard_is_refused_by_name(digits_copy: Path) -> None:
    path = sorted((digits_copy / "validation").glob("*.tar"))[1]
    path.write_bytes(path.read_bytes()[:30_720])
    source = open_images(digits_copy / "validation", 10, NAMES)
    with pytest.raises(InputError, match=rf"{path.name} (holds \d+ of 60 images|cannot be read)"):
        listed(source)


def test_an_adopted_split_is_read_as_its_index_says(tmp_path: Path) -> None:
    jpeg = encode_image()
    others = [("a/7.img.jpg", jpeg), ("a/7.json", b'{"label": 1}'), ("a/8.jpg", jpeg), ("a/9.txt", b"1")]
    tars = [write_tar(tmp_path / "a.tar", images(2, 0)), write_tar(tmp_path / "b.tar", [*others, *images(1, start=5)])]
    split = adopt(tmp_path / "out", *tars)
    source = open_images(tmp_path / "out" / "train", 3, None)
    read = list(source.read(range(10)))
    assert [(each.label, each.content) for each in read] == [(2, jpeg), (0, jpeg), (1, jpeg), (1, jpeg)]
    assert [each.label for each in read] == split.column("label").tolist()
    assert [each.row for each in source.read({2, 3})] == [2, 3]


def test_a_label_without_a_name_is_refused(digits_copy: Path) -> None:
    path = digits_copy / "validation" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["class_names"] = manifest["class_names"][:9]
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"has label 9, which .*manifest\.json does not name: "):
        listed(open_images(digits_copy / "validation", 9, None))


@pytest.mark.parametrize("name", ["pipe:touch ran", "../validation/x.tar", "/etc/passwd"])
def test_a_shard_is_a_file_of_its_folder(digits_copy: Path, name: str) -> None:
    path = digits_copy / "validation" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["shards"][0]["name"] = name
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"manifest\.json is damaged|cannot be read"):
        listed(open_images(digits_copy / "validation", 10, NAMES))
    assert not Path("ran").exists()


def test_one_folder_per_class(tmp_path: Path) -> None:
    for number, name in enumerate(("two", "one")):
        write_images(tmp_path / "val" / name, 2, 50 * number)
    (tmp_path / "val" / "one" / "notes.txt").write_text("no image")
    expected = [(0, "one"), (1, "one"), (2, "two"), (3, "two")]
    assert listed(open_images(tmp_path / "val", 2, None)) == expected
    assert listed(open_images(tmp_path / "val", 2, ("two", "one"))) == expected
    assert open_images(tmp_path / "val", 2, ("a", "b")).class_names == ("a", "b"), "by position"


@pytest.mark.parametrize("validation", ["val", "valid"])
@pytest.mark.parametrize("layout", ["archive", "sorted", "sorted, with images/"])
def test_tiny_imagenet(tmp_path: Path, validation: str, layout: str) -> None:
    root, folder = tmp_path / "tiny-imagenet-200", tmp_path / "tiny-imagenet-200" / validation
    (root / "train").mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(WNIDS[::-1]) + "\n")
    (root / "words.txt").write_text("n01443537\tgoldfish\nn01629819\tsalamander\nn01641577\tbullfrog, frog\n")
    order = [2, 0, 1, 0]
    if layout == "archive":
        write_images(folder / "images", 4, 0)
        lines = [f"images_{n}.JPEG\t{WNIDS[label]}\t0\t0\t9\t7\n" for n, label in enumerate(order)]
        (folder / "val_annotations.txt").write_text("".join(lines))
        expected = [(0, "bullfrog, frog"), (1, "goldfish"), (2, "salamander"), (3, "goldfish")]
    else:
        for wnid in WNIDS:
            write_images(folder / wnid / ("images" if "images" in layout else ""), 1, 0)
        expected = [(0, "goldfish"), (1, "salamander"), (2, "bullfrog, frog")]
    assert listed(open_images(folder, 3, None)) == expected
    assert listed(open_images(root, 3, None)) == expected


def test_an_image_without_a_label_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 2, 0)
    (tmp_path / "val_annotations.txt").write_text(f"images_0.JPEG\t{WNIDS[0]}\n")
    with pytest.raises(InputError, match=r"has no known label for images_1\.JPEG"):
        open_images(tmp_path, 1, None)


def test_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no images"):
        open_images(tmp_path, 1, None)
    with pytest.raises(InputError, match="is not a folder"):
        open_images(tmp_path / "missing", 1, None)
