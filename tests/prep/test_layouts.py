"""ImageNet as its archives unpack: Kaggle's ILSVRC and tiny-imagenet-200."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from prep.errors import InputError
from prep.resolve import open_source
from prep.source import Item, Reading, Source

TENCH, SHARK, CRANE = "n01440764", "n01491361", "n02012849"
WORDS = {TENCH: "tench, Tinca tinca", SHARK: "tiger shark, Galeocerdo cuvieri"}  # CRANE is not in it


def _write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _items(source: Source, split: str) -> dict[str, Item]:
    return {item.name: item for item in source.rows(split, 0, source.num_rows[split])}


def _labels(source: Source, split: str) -> dict[str, str]:
    """Return {image: its class name}."""
    return {name: source.class_names[item.label] for name, item in _items(source, split).items()}


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    root, cls_loc = tmp_path / "root", tmp_path / "root" / "ILSVRC" / "Data" / "CLS-LOC"
    for wnid in (CRANE, TENCH, SHARK):
        for number in range(2):
            _write(cls_loc / "train" / wnid / f"{wnid}_{number}.JPEG", f"{wnid}{number}")
    for number in range(1, 4):
        _write(cls_loc / "val" / f"ILSVRC2012_val_0000000{number}.JPEG", f"val{number}")
    _write(cls_loc / "test" / "ILSVRC2012_test_00000001.JPEG", "test")
    _write(root / "ILSVRC" / "Annotations" / "CLS-LOC" / "val" / "x.xml", "<x/>")
    _write(root / "LOC_synset_mapping.txt", "".join(f"{wnid} {name}\n" for wnid, name in WORDS.items()))
    _write(
        root / "LOC_val_solution.csv",
        "ImageId,PredictionString\n"
        f"ILSVRC2012_val_00000003,{SHARK} 85 1 499 272 \n"
        f"ILSVRC2012_val_00000001,{CRANE} 131 0 499 254 {CRANE} 1 2 3 4 \n"
        f"ILSVRC2012_val_00000002,{TENCH} 1 2 3 4\n",
    )
    return root


@pytest.mark.parametrize("given", ["", "ILSVRC", "ILSVRC/Data/CLS-LOC"])
def test_kaggles_archive_is_read_from_wherever_it_is_pointed_at(given: str, kaggle: Path) -> None:
    source = open_source(str(kaggle / given))
    assert source.class_names == (*WORDS.values(), CRANE)
    assert source.num_rows == {"train": 6, "validation": 3}
    assert source.size_bytes == {"train": 6 * 10, "validation": 3 * 4}
    assert _labels(source, "validation") == {
        "val/ILSVRC2012_val_00000001.JPEG": CRANE,
        "val/ILSVRC2012_val_00000002.JPEG": WORDS[TENCH],
        "val/ILSVRC2012_val_00000003.JPEG": WORDS[SHARK],
    }
    assert _items(source, "train")[f"train/{SHARK}/{SHARK}_1.JPEG"] == Item(
        f"train/{SHARK}/{SHARK}_1.JPEG", f"{SHARK}1".encode(), 1
    )
    assert source.origin == open_source(str(kaggle)).origin


def test_the_images_alone_are_named_by_their_wnids(kaggle: Path, tmp_path: Path) -> None:
    """Move Data/CLS-LOC to another name, with the solution in it."""
    moved = (kaggle / "ILSVRC" / "Data" / "CLS-LOC").rename(tmp_path / "imagenet")
    (kaggle / "LOC_val_solution.csv").rename(moved / "LOC_val_solution.csv")
    source = open_source(str(moved))
    assert source.class_names == (TENCH, SHARK, CRANE)
    assert _labels(source, "validation")["val/ILSVRC2012_val_00000003.JPEG"] == SHARK


def test_a_linked_archive_finds_its_labels(kaggle: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(kaggle / "ILSVRC" / "Data" / "CLS-LOC")
    assert open_source(str(tmp_path / "link")).origin == open_source(str(kaggle)).origin


def test_validation_images_sorted_into_class_folders_need_no_solution(kaggle: Path) -> None:
    (kaggle / "LOC_val_solution.csv").unlink()
    val = kaggle / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    (val / SHARK).mkdir()
    for path in val.glob("*.JPEG"):
        path.rename(val / SHARK / path.name)
    source = open_source(str(kaggle))
    assert set(_labels(source, "validation").values()) == {WORDS[SHARK]}
    assert source.class_names == (*WORDS.values(), CRANE)


def test_plain_class_folders_are_not_an_archive(kaggle: Path, tmp_path: Path) -> None:
    train = (kaggle / "ILSVRC" / "Data" / "CLS-LOC" / "train").rename(tmp_path / "train")
    _write(tmp_path / "plain" / "val" / TENCH / "a.JPEG", "a")
    train.rename(tmp_path / "plain" / "train")
    source = open_source(str(tmp_path / "plain"))
    assert source.num_rows == {"train": 6, "validation": 1}
    assert source.class_names == (TENCH, SHARK, CRANE)


def test_each_split_can_be_had_alone(kaggle: Path, tmp_path: Path) -> None:
    cls_loc = kaggle / "ILSVRC" / "Data" / "CLS-LOC"
    (cls_loc / "val").rename(tmp_path / "val")
    assert open_source(str(kaggle)).num_rows == {"train": 6}
    (cls_loc / "train").rename(tmp_path / "train")
    (tmp_path / "val").rename(cls_loc / "val")
    source = open_source(str(kaggle))
    assert source.num_rows == {"validation": 3}
    assert source.class_names == (*WORDS.values(), CRANE)


def test_a_labelled_image_that_is_missing_is_offered_as_a_fault(kaggle: Path) -> None:
    val = kaggle / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    (val / "ILSVRC2012_val_00000003.JPEG").unlink()
    (val / "ILSVRC2012_val_00000002.JPEG").unlink()
    (val / "ILSVRC2012_val_00000002.JPEG").symlink_to("nowhere")
    items = _items(open_source(str(kaggle)), "validation")
    assert items["val/ILSVRC2012_val_00000003.JPEG"] == Item("val/ILSVRC2012_val_00000003.JPEG", b"", 1, "no such file")
    assert items["val/ILSVRC2012_val_00000002.JPEG"].fault == "a link to nothing"
    assert len(items) == 3


def test_a_missing_solution_is_named_with_where_to_get_it(kaggle: Path) -> None:
    (kaggle / "LOC_val_solution.csv").unlink()
    with pytest.raises(InputError) as refusal:
        open_source(str(kaggle / "ILSVRC"))
    line = str(refusal.value)
    assert line.startswith("LOC_val_solution.csv, with the labels of ")
    assert all(f" {folder}" in line for folder in (kaggle / "ILSVRC/Data/CLS-LOC", kaggle / "ILSVRC", kaggle))
    assert line.endswith(": get it at https://www.kaggle.com/c/imagenet-object-localization-challenge/data")
    assert "\n" not in line


def _add_image(root: Path) -> None:
    _write(root / "ILSVRC" / "Data" / "CLS-LOC" / "val" / "other.JPEG")


def _add_folder(root: Path) -> None:
    _write(root / "ILSVRC" / "Data" / "CLS-LOC" / "val" / TENCH / "other.JPEG")


def _name_other_class(root: Path) -> None:
    _write(root / "LOC_val_solution.csv", "ImageId,PredictionString\nILSVRC2012_val_00000001,n99 1 2 3 4\n")


def _label_twice(root: Path) -> None:
    with (root / "LOC_val_solution.csv").open("a") as file:
        file.write(f"ILSVRC2012_val_00000001,{TENCH} 1 2 3 4\n")


def _label_with_nothing(root: Path) -> None:
    with (root / "LOC_val_solution.csv").open("a") as file:
        file.write("ILSVRC2012_val_00000004,\n")


def _write_bytes(root: Path) -> None:
    (root / "LOC_val_solution.csv").write_bytes(b"\xff\xfe\x00")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_add_image, "val/other.JPEG has no label in .*LOC_val_solution.csv: add its line or move the image away"),
        (_add_folder, "val/ILSVRC2012_val_0000000..JPEG is not in a class folder: move it into one or away"),
        (_name_other_class, "LOC_val_solution.csv gives ILSVRC2012_val_00000001 the class n99, which train lacks"),
        (_label_twice, "LOC_val_solution.csv gives ILSVRC2012_val_00000001 two labels: download it again"),
        (_label_with_nothing, "LOC_val_solution.csv gives ILSVRC2012_val_00000004 no label: download it again"),
        (_write_bytes, "LOC_val_solution.csv is not a text file"),
    ],
)
def test_kaggles_archive_out_of_order_is_refused(spoil: Callable[[Path], None], words: str, kaggle: Path) -> None:
    spoil(kaggle)
    with pytest.raises(InputError) as refusal:
        open_source(str(kaggle))
    assert re.search(words, str(refusal.value)), str(refusal.value)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    root = tmp_path / "tiny-imagenet-200"
    _write(root / "wnids.txt", f"{SHARK}\n{CRANE}\n{TENCH}")
    _write(root / "words.txt", "".join(f"{w}\t{n}\n" for w, n in {"n00001740": "entity", **WORDS}.items()))
    for wnid in (CRANE, TENCH, SHARK):
        _write(root / "train" / wnid / f"{wnid}_boxes.txt", f"{wnid}_0.JPEG\t0\t0\t62\t63\n")
        for number in range(2):
            _write(root / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", f"{wnid}{number}")
    annotations = "".join(f"val_{i}.JPEG\t{wnid}\t0\t32\t44\t62\n" for i, wnid in enumerate((CRANE, TENCH, TENCH)))
    _write(root / "val" / "val_annotations.txt", annotations)
    for number in range(3):
        _write(root / "val" / "images" / f"val_{number}.JPEG", f"val{number}")
    _write(root / "test" / "images" / "test_0.JPEG", "test")
    return root


def test_tiny_imagenet_is_read_as_it_unpacks(tiny: Path) -> None:
    source = open_source(str(tiny))
    assert source.class_names == (*WORDS.values(), CRANE)
    assert source.num_rows == {"train": 6, "validation": 3}
    assert source.size_bytes == {"train": 60, "validation": 12}
    assert source.origin.name == "tiny-imagenet-200"
    assert _labels(source, "train") == {
        f"train/{wnid}/images/{wnid}_{number}.JPEG": WORDS.get(wnid, wnid)
        for wnid in (CRANE, TENCH, SHARK)
        for number in range(2)
    }
    assert _labels(source, "validation") == {
        "val/images/val_0.JPEG": CRANE,
        "val/images/val_1.JPEG": WORDS[TENCH],
        "val/images/val_2.JPEG": WORDS[TENCH],
    }
    assert _items(source, "validation")["val/images/val_1.JPEG"].data == b"val1"


def test_tiny_imagenets_other_files_are_offered(tiny: Path) -> None:
    _write(tiny / "train" / TENCH / "notes.txt")
    assert f"train/{TENCH}/notes.txt" in _items(open_source(str(tiny)), "train")


def test_tiny_imagenet_sorted_into_class_folders_is_read(tiny: Path) -> None:
    (tiny / "val" / TENCH).mkdir()
    (tiny / "val" / "images").rename(tiny / "val" / TENCH / "images")
    assert _labels(open_source(str(tiny)), "validation") == {
        f"val/{TENCH}/images/val_{number}.JPEG": WORDS[TENCH] for number in range(3)
    }


def test_tiny_imagenet_without_words_is_named_by_its_wnids(tiny: Path) -> None:
    before = open_source(str(tiny)).origin.revision
    (tiny / "words.txt").unlink()
    source = open_source(str(tiny))
    assert source.class_names == (TENCH, SHARK, CRANE)
    assert source.origin.revision != before


def test_tiny_imagenet_in_part_is_refused(tiny: Path) -> None:
    (tiny / "val" / "val_annotations.txt").unlink()
    with pytest.raises(InputError, match=r"val_annotations\.txt is missing: unpack the archive again"):
        open_source(str(tiny))
    (tiny / "train" / CRANE).rename(tiny / "train" / "n99")
    with pytest.raises(InputError, match=r"train/n99 is not a class"):
        open_source(str(tiny))
    (tiny / "train" / "n99").rename(tiny / "n99")
    with pytest.raises(InputError, match=rf"train/{CRANE} is missing, though .*wnids\.txt names it"):
        open_source(str(tiny))


def _lose_a_class(root: Path) -> str:
    shutil.rmtree(root / "ILSVRC" / "Data" / "CLS-LOC" / "train" / SHARK)
    (root / "LOC_val_solution.csv").write_text(f"ILSVRC2012_val_00000001,{TENCH} 1 2 3 4\n")
    for number in (2, 3):
        (root / "ILSVRC" / "Data" / "CLS-LOC" / "val" / f"ILSVRC2012_val_0000000{number}.JPEG").unlink()
    return f"train/{SHARK} is missing, though LOC_synset_mapping.txt names it"


def _empty_a_class(root: Path) -> str:
    for path in (root / "ILSVRC" / "Data" / "CLS-LOC" / "train" / SHARK).iterdir():
        path.unlink()
    return f"train/{SHARK} holds no image"


def _list_boxes(root: Path) -> str:
    rows = [f"{TENCH}_{number},{TENCH} 1 2 3 4" for number in range(3)]
    (root / "LOC_train_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows]))
    return f"train lacks 1 images that LOC_train_solution.csv names ({TENCH}_2)"


def _list_images(root: Path) -> str:
    rows = "".join(f"{wnid}/{wnid}_{number} {number}\n" for wnid in (TENCH, SHARK) for number in range(1, 3))
    _write(root / "ILSVRC" / "ImageSets" / "CLS-LOC" / "train_cls.txt", rows)
    return f"train lacks 2 images that train_cls.txt names ({TENCH}_2, {SHARK}_2)"


@pytest.mark.parametrize("spoil", [_lose_a_class, _empty_a_class, _list_boxes, _list_images])
def test_an_archive_that_lacks_what_its_lists_name_is_refused_unless_allowed(
    spoil: Callable[[Path], str], kaggle: Path
) -> None:
    missing = spoil(kaggle)
    with pytest.raises(InputError) as refusal:
        open_source(str(kaggle))
    assert f"/{missing}: put back what is missing, remove it, or continue with --allow-missing" in str(refusal.value)
    source = open_source(str(kaggle), Reading(allow_missing=True))
    assert source.reading("train") == {"missing": [missing], "passed_over": ["test holds images without labels"]}


def test_flat_validation_images_of_other_classes_are_not_imagenets(tmp_path: Path) -> None:
    for name in ("train/cat/1.jpg", "train/dog/2.jpg", "val/3.jpg"):
        _write(tmp_path / name)
    with pytest.raises(InputError) as refusal:
        open_source(str(tmp_path))
    assert "LOC_val_solution" not in str(refusal.value)
    assert "(val: images not in class folders)" in str(refusal.value)


def test_tiny_imagenet_with_images_missing_is_refused_unless_allowed(tiny: Path) -> None:
    (tiny / "train" / TENCH / "images" / f"{TENCH}_0.JPEG").unlink()
    missing = f"train/{TENCH} lacks 1 images that {TENCH}_boxes.txt names ({TENCH}_0.JPEG)"
    with pytest.raises(InputError, match=re.escape(f"{missing}: put back what is missing")):
        open_source(str(tiny))
    assert open_source(str(tiny), Reading(allow_missing=True)).reading("train")["missing"] == [missing]


def test_tiny_imagenet_without_a_class_keeps_the_labels_of_the_others_where_allowed(tiny: Path) -> None:
    shutil.rmtree(tiny / "train" / TENCH)
    source = open_source(str(tiny), Reading(allow_missing=True))
    assert source.class_names == (*WORDS.values(), CRANE)
    assert source.reading("validation")["missing"] == [f"train/{TENCH} is missing, though wnids.txt names it"]
