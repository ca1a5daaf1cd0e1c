"""The choice of columns: documented names, then types, else one line with a flag; then the advice is followed."""

import re
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.commands import run_command

from prep.errors import InputError
from prep.resolve import open_source
from prep.source import Reading, Source

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
IMAGE, CLASSES = datasets.Image(), datasets.ClassLabel(names=["a", "b", "c"])
LABELS = [0, 1, 2, 1]
ROWS = len(LABELS)


def _images(name: str, kind: pa.DataType = STRUCT) -> pa.Array:
    """Return images with the column and the row as their bytes."""
    data = [f"{name} {row}".encode() for row in range(ROWS)]
    return pa.array([{"bytes": each, "path": None} for each in data] if kind == STRUCT else data, kind)


def _write(path: Path, columns: dict[str, Any], **declared: Any) -> Path:
    """Write a parquet file; the columns in `declared` are declared in its metadata, as `datasets` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if declared:
        features = datasets.Features.from_arrow_schema(table.schema) | declared
        table = table.replace_schema_metadata(datasets.Features(features).arrow_schema.metadata)
    pq.write_table(table, path)
    return path.parent


def _rows(source: Source, split: str = "train") -> list[tuple[bytes, int]]:
    source.check_split(split)
    return [(bytes(item.data), item.label) for item in source.rows(split, 0, 1000)]


def _of(name: str, labels: list[int] = LABELS) -> list[tuple[bytes, int]]:
    return [(f"{name} {row}".encode(), label) for row, label in enumerate(labels)]


def _refusal(folder: Path, wanted: Reading | None = None, split: str = "train") -> str:
    with pytest.raises(InputError) as refusal:
        open_source(str(folder), wanted).check_split(split)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def _flags(line: str) -> Reading:
    """Return the flags that an error's line advises."""
    found = dict(re.findall(r"--(image|label)-column (\w+)", line))
    return Reading(image_column=found.get("image"), label_column=found.get("label"))


def _follow(line: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the Python command that an error's line advises; return the folder where it saved."""
    command = re.search(r'`python -c "(.*?)"`, then --source DIR', line)
    assert command, line
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", out.parent / "cache")
    datasets.disable_progress_bars()
    exec(command[1].replace("'DIR'", repr(str(out))), {})
    return str(out)


def test_documented_names_win_and_the_others_are_reported(tmp_path: Path) -> None:
    columns = {"mask": _images("mask"), "camera": [2] * ROWS, "width": [7] * ROWS}
    columns |= {"image": _images("image"), "label": LABELS}
    folder = _write(tmp_path / "d" / "train.parquet", columns, mask=IMAGE, image=IMAGE, camera=CLASSES)
    source = open_source(str(folder))
    assert _rows(source) == _of("image")
    assert source.reading("train") == {
        "image_column": "image",
        "label_column": "label",
        "passed_over": ["image column mask", "label column camera"],
    }
    wanted = Reading(image_column="mask", label_column="camera")
    source = open_source(str(folder), wanted)
    assert _rows(source) == _of("mask", [2] * ROWS)
    assert source.class_names == ("a", "b", "c")
    again = open_source(str(folder), Reading.from_manifest(source.reading("train")))
    assert again.reading("train") == source.reading("train")


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("images", [["image", "img"], ["img", "mask"]])
@pytest.mark.parametrize("labels", [["label", "labels"], ["labels", "fine_label"], ["fine_label", "coarse_label"]])
def test_documented_names_have_an_order(images: list[str], labels: list[str], order: int, tmp_path: Path) -> None:
    columns = {name: _images(name) for name in images}
    columns |= {name: LABELS if name == labels[0] else [0] * ROWS for name in labels}
    columns = dict(list(columns.items())[::order])
    folder = _write(tmp_path / "d" / "train.parquet", columns, **dict.fromkeys(labels, CLASSES))
    source = open_source(str(folder))
    assert _rows(source) == _of(images[0])
    assert source.reading("train")["passed_over"] == [f"image column {images[1]}", f"label column {labels[1]}"]


def test_the_only_declared_column_of_another_name_is_taken(tmp_path: Path) -> None:
    columns = {"width": [9] * ROWS, "photo": _images("photo"), "species": LABELS, "sound": _images("sound")}
    declared = {"photo": IMAGE, "species": CLASSES, "sound": datasets.Audio()}
    source = open_source(str(_write(tmp_path / "d" / "train.parquet", columns, **declared)))
    assert _rows(source) == _of("photo")
    assert source.reading("train") == {"image_column": "photo", "label_column": "species"}


JPG = {"jpg": _images("jpg", pa.binary()), "label": LABELS}
CLS = {"image": _images("image"), "cls": LABELS, "width": [640] * ROWS}


@pytest.mark.parametrize(
    ("columns", "declared", "words", "expected"),
    [
        (JPG, {}, "needs a column of images named image or img; its columns: jpg (binary), label", _of("jpg")),
        (CLS, {}, "needs a column of labels named label or labels or fine_label; its columns: image (", _of("image")),
        (
            {"left": _images("left"), "right": _images("right"), "label": LABELS},
            {},
            "has several columns of images, left (struct<bytes: binary, path: string>), right (struct<",
            _of("left"),
        ),
        (
            {"image": _images("image"), "breed": LABELS, "colour": [0] * ROWS},
            {"breed": CLASSES, "colour": CLASSES},
            "has several columns of labels, breed (ClassLabel), colour (ClassLabel): choose with --label-column breed",
            _of("image"),
        ),
        (
            {"image": ["a.jpg"] * ROWS, "thumbnail": _images("thumbnail"), "label": LABELS},
            {},
            "has image (string), which is not a column of images, and thumbnail (struct<",
            _of("thumbnail"),
        ),
        (
            {"image": _images("image"), "label": ["x"] * ROWS, "fine_label": LABELS},
            {},
            "has label (string), which is not a column of labels, and fine_label (int64): choose with --label-column",
            _of("image"),
        ),
        (
            {"Image": _images("Image"), "Label": LABELS},
            {},
            "needs a column of labels named label or labels or fine_label; its columns: Image (",
            _of("Image"),
        ),
    ],
)
def test_columns_that_are_open_to_choice_are_refused_with_the_flag_that_chooses(
    columns: dict[str, Any], declared: dict[str, Any], words: str, expected: list[tuple[bytes, int]], tmp_path: Path
) -> None:
    folder = _write(tmp_path / "d" / "train.parquet", columns, **declared)
    line = _refusal(folder)
    assert words in line
    source = open_source(str(folder), _flags(line))
    assert _rows(source) == expected
    again = open_source(str(folder), Reading.from_manifest(source.reading("train")))
    assert again.reading("train") == source.reading("train")


@pytest.mark.parametrize(
    ("labels", "wanted", "words"),
    [
        (LABELS, "category", "has no column category: choose another --label-column of image (struct<"),
        (LABELS, "objects.category", "has no column objects.category (objects.category is inside the column objects"),
        (LABELS, "objects", "expected ClassLabel or integers: choose another --label-column"),
        ([[0, 1], [2], [0], [1]], "label", "holds several labels per row, expected ClassLabel or integers"),
        ([["a"], ["b"], [], []], "label", "holds several labels per row, expected ClassLabel or integers"),
        (LABELS, "image", "expected ClassLabel or integers"),
    ],
)
def test_a_label_flag_for_a_column_without_integers_is_refused_in_one_line(
    labels: list[Any], wanted: str, words: str, tmp_path: Path
) -> None:
    columns = {"image": _images("image"), "label": labels, "objects": [{"category": 1}] * ROWS}
    folder = _write(tmp_path / "d" / "train.parquet", columns)
    assert words in _refusal(folder, Reading(label_column=wanted))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (_images("x").cast(STRUCT), ""),
        (pa.array([[each] for each in _images("x").to_pylist()]), "holds several images per row, expected one"),
        (pa.array([["a.jpg"]] * ROWS), "holds several images per row, expected one"),
        (pa.array([[[1, 2], [3, 4]]] * ROWS), "does not hold encoded images"),
        (pa.array([1.5] * ROWS), "does not hold encoded images"),
    ],
)
def test_a_column_without_encoded_images_is_refused_in_one_line(images: pa.Array, words: str, tmp_path: Path) -> None:
    folder = _write(tmp_path / "d" / "train.parquet", {"image": images, "label": LABELS})
    for wanted in (None, Reading(image_column="image")):
        if words:
            assert words in _refusal(folder, wanted)
        else:
            assert _rows(open_source(str(folder), wanted)) == _of("x")


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([_images("x"), pa.array(LABELS), pa.array(LABELS)], ["image", "label", "label"])
    pq.write_table(table, tmp_path / "train.parquet")
    assert "has two columns named label: rename one of them" in _refusal(tmp_path)


TEXT = ["cat", "ant", "bee", "ant"]


@pytest.mark.parametrize(
    ("labels", "words", "expected"),
    [
        (pa.array(TEXT), "column label (string) holds text", [2, 0, 1, 0]),
        (pa.array(TEXT).dictionary_encode(), "holds text", [2, 0, 1, 0]),  # pandas' category: its codes are not labels
        (pa.array([0.0, 1.0, 2.0, 1.0]), "column label (double) holds double", [0, 1, 2, 1]),
        (pa.array([False, True, True, True]), "column label (bool) holds bool", [0, 1, 1, 1]),
    ],
    ids=["text", "category", "float", "bool"],
)
@pytest.mark.parametrize("is_saved", [False, True], ids=["parquet", "saved"])
def test_labels_that_are_not_integers_are_refused_with_a_command_that_helps(
    labels: pa.Array, words: str, expected: list[int], is_saved: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _write(tmp_path / "d" / "train.parquet", {"image": _images("image"), "label": labels}, image=IMAGE)
    _write(tmp_path / "d" / "validation.parquet", {"image": _images("v"), "label": labels}, image=IMAGE)
    if is_saved and not pa.types.is_dictionary(labels.type):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        folder = tmp_path / "saved"
        datasets.load_dataset(str(tmp_path / "d")).save_to_disk(folder)
    line = _refusal(folder)
    assert words in line
    source = open_source(_follow(line, tmp_path / "made", monkeypatch))
    assert _rows(source) == _of("image", expected)
    assert _rows(source, "validation") == _of("v", expected)


def test_integers_that_are_stored_as_a_dictionary_are_their_values(tmp_path: Path) -> None:
    labels = pa.array([5, 6, 5, 6]).dictionary_encode()
    folder = _write(tmp_path / "d" / "train.parquet", {"image": _images("image"), "label": labels})
    assert _rows(open_source(str(folder))) == _of("image", [5, 6, 5, 6])


@pytest.mark.parametrize("kind", ["strings", "structs", "declared"])
def test_paths_without_bytes_are_refused_with_a_command_that_embeds_them(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"{row}.jpg" for row in range(ROWS)]
    for row, path in enumerate(paths):
        path.write_bytes(f"image {row}".encode())
    values: list[Any] = [str(path) for path in paths]
    values = values if kind == "strings" else [{"bytes": None, "path": path} for path in values]
    columns = {"image": pa.array(values, None if kind == "strings" else STRUCT), "label": LABELS}
    declared = {"image": IMAGE} if kind == "declared" else {}
    line = _refusal(_write(tmp_path / "d" / "train.parquet", columns, **declared))
    assert "expected the images' bytes" in line or "but not their bytes" in line
    assert _rows(open_source(_follow(line, tmp_path / "made", monkeypatch))) == _of("image")


def test_a_row_without_bytes_among_others_is_rejected_with_its_reason(tmp_path: Path) -> None:
    values = _images("image").to_pylist()
    values[1]["bytes"], values[2] = None, None
    values[1]["path"] = "elsewhere.jpg"
    folder = _write(tmp_path / "d" / "train.parquet", {"image": pa.array(values, STRUCT), "label": LABELS})
    faults = [item.fault for item in open_source(str(folder)).rows("train", 0, ROWS)]
    assert faults == ["", "no bytes in the source, only a path", "no bytes in the source", ""]


def test_files_that_would_be_read_by_other_columns_are_refused(tmp_path: Path) -> None:
    folder = _write(tmp_path / "d" / "train.parquet", {"img": _images("img"), "label": LABELS})
    both = {"image": _images("image"), "img": _images("other"), "label": LABELS}
    _write(tmp_path / "d" / "validation.parquet", both)
    line = _refusal(folder, split="validation")
    assert "validation.parquet has its images in column image" in line
    assert "train.parquet in column img: choose one that both have with --image-column" in line
    source = open_source(str(folder), Reading(image_column="img"))
    assert (_rows(source), _rows(source, "validation")) == (_of("img"), _of("other"))


def test_a_split_without_labels_stops_nobody_who_does_not_ask_for_it(tmp_path: Path) -> None:
    folder = _write(tmp_path / "d" / "train.parquet", {"image": _images("image"), "label": LABELS}, label=CLASSES)
    _write(tmp_path / "d" / "test.parquet", {"image": _images("test"), "label": [-1] * ROWS}, label=CLASSES)
    _write(tmp_path / "d" / "extra" / "unlabelled-validation.parquet", {"image": _images("v")})
    source = open_source(str(folder))
    assert _rows(source) == _of("image")
    assert source.num_rows == {"train": ROWS, "validation": ROWS, "test": ROWS}
    line = _refusal(folder, split="test")
    assert "test.parquet has the label -1, which means none, in column label: leave this split out with --spl" in line
    assert "needs a column of labels" in _refusal(folder, split="validation")


@pytest.mark.parametrize("absent", [-1, None])
def test_rows_without_a_label_are_refused_with_a_command_that_leaves_them_out(
    absent: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {"image": _images("image"), "label": [0, absent, 2, absent]}
    line = _refusal(_write(tmp_path / "d" / "train.parquet", columns, image=IMAGE, label=CLASSES))
    source = open_source(_follow(line, tmp_path / "made", monkeypatch))
    assert _rows(source) == [(b"image 0", 0), (b"image 2", 2)]


def test_ids_are_not_labels_and_labels_that_never_occur_are_reported(tmp_path: Path) -> None:
    folder = _write(tmp_path / "ids" / "train.parquet", {"image": _images("x"), "label": [10**9, 3, 4, 5]})
    assert "holds label 1000000000 in column label and no class names: expected 0 to 99,999" in _refusal(folder)
    folder = _write(tmp_path / "gaps" / "train.parquet", {"image": _images("x"), "label": [1, 4, 4, 1]})
    source = open_source(str(folder))
    assert source.class_names == ("0", "1", "2", "3", "4")
    assert source.reading("train")["notes"] == ["no image has the labels 0, 2, 3 of 0 to 4"]


CARD = """---
dataset_info:
  features:
  - name: image
    dtype: image
  - name: species
    dtype:
      class_label:
        names:
          '0': ant
          '1': bee
          '2': cat
---
# About
"""


def test_what_only_the_card_says_of_the_columns_is_heard(tmp_path: Path) -> None:
    columns = {"image": _images("image", pa.binary()), "width": [9] * ROWS, "species": LABELS}
    folder = _write(tmp_path / "d" / "train.parquet", columns)
    assert "needs a column of labels" in _refusal(folder)
    before = open_source(str(folder), Reading(label_column="species")).origin
    (folder / "README.md").write_text(CARD)
    source = open_source(str(folder))
    assert _rows(source) == _of("image")
    assert source.class_names == ("ant", "bee", "cat")
    assert source.origin.revision != before.revision  # the class names are part of what is prepared


def test_a_card_that_contradicts_the_files_is_refused(tmp_path: Path) -> None:
    folder = _write(tmp_path / "d" / "train.parquet", {"image": _images("x"), "species": LABELS}, species=CLASSES)
    (folder / "README.md").write_text(CARD)
    line = _refusal(folder)
    assert "train.parquet names the classes of species a, b, c, the card names them ant, bee, cat: correct one" in line
    (folder / "README.md").write_text(CARD.replace("ant", "a").replace("bee", "b").replace("cat", "c"))
    assert _rows(open_source(str(folder))) == _of("x")


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ("---\na: [\n---\n", "README.md: its YAML header cannot be parsed"),
        (CARD.replace("'1'", "'7'"), "README.md names the classes [0, 2, 7]: number them 0 to 2"),
        (CARD.replace("'1'", "'one'"), "README.md is not a dataset card (ValueError"),
        ("---\nconfigs:\n- config_name: a\n  data_files: [7, [8]]\n---\n", "no parquet file is where README.md says"),
        ("---\nconfigs:\n- {default: 1}\n- {config_name: b, default: 1}\n---\n", "marks several configurations as"),
        ("---\ndataset_info: 7\nconfigs: x\n- y\n---\n", "README.md: its YAML header cannot be parsed"),
    ],
)
def test_a_card_that_cannot_be_parsed_is_one_line(card: str, words: str, tmp_path: Path) -> None:
    folder = _write(tmp_path / "d" / "train.parquet", {"image": _images("x"), "species": LABELS})
    (folder / "README.md").write_text(card)
    assert words in _refusal(folder)


def test_the_choice_is_told_in_the_summary(digits_source: Path, tmp_path: Path) -> None:
    table = pq.read_table(digits_source / "data" / "validation-00000-of-00001.parquet")
    table = table.append_column("mask", table["image"]).rename_columns({"label": "digit"})
    (tmp_path / "d").mkdir()
    pq.write_table(table.replace_schema_metadata(None), tmp_path / "d" / "val.parquet")
    command = ("prep/shard.py", "--source", tmp_path / "d", "--out", tmp_path / "out")
    refused = run_command(*command)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert not (tmp_path / "out").exists()
    flag = re.search(r"--label-column digit", refused.stderr)
    assert flag, refused.stderr
    done = run_command(*command, *flag[0].split())
    assert done.returncode == 0, done.stderr
    assert "read: image column image, label column digit (also there: image column mask)" in done.stdout
    verified = run_command("prep/verify.py", tmp_path / "out", "--repair", "--source", tmp_path / "d")
    assert verified.returncode == 0, verified.stderr
