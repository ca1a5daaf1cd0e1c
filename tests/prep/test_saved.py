"""Datasets of `save_to_disk`: read in place by range, and refused in one line if they are unusable."""

import json
import pickle
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from helpers.commands import run_command
from hypothesis import given, settings
from hypothesis import strategies as st

from prep.errors import InputError
from prep.resolve import open_source
from prep.saved_dataset import ArrowRows, open_saved_dataset
from prep.source import Item, Reading

NAMES = ["cat", "dog", "eel"]
FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
ITEMS = [Item(f"{row}.jpg", b"image %d" % row, row % 3) for row in range(50)]


def _dataset(items: list[Item], **arguments: Any) -> datasets.Dataset:
    images = [{"bytes": bytes(item.data), "path": item.name} for item in items]
    columns = {"image": images, "label": [item.label for item in items]}
    return datasets.Dataset.from_dict(columns, features=FEATURES, **arguments)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    datasets.disable_progress_bars()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Write a train split in three files, one of them with several batches, and a validation split."""
    folder = tmp_path / "saved"
    splits: Any = {"train": _dataset(ITEMS), "validation": _dataset(ITEMS[:4])}
    datasets.DatasetDict(splits).save_to_disk(folder, num_shards={"train": 3, "validation": 1})
    return folder


def test_a_saved_dict_of_datasets_is_read_split_by_split(saved: Path) -> None:
    source = open_source(str(saved))
    assert source.num_rows == {"train": 50, "validation": 4}
    assert source.class_names == tuple(NAMES)
    assert source.origin.name == "saved"
    assert list(source.rows("train", 0, 50)) == ITEMS
    assert list(source.rows("validation", 1, 3)) == ITEMS[1:3]
    for split in ("train", "validation"):
        source.check_split(split)
        assert source.size_bytes[split] == sum(path.stat().st_size for path in (saved / split).glob("*.arrow"))


@pytest.mark.parametrize(("recorded", "split"), [(None, "train"), ("validation", "validation"), ("a+b[:5%]", "train")])
def test_a_lone_saved_dataset_is_its_own_split(recorded: str | None, split: str, tmp_path: Path) -> None:
    _dataset(ITEMS).save_to_disk(tmp_path)
    state = json.loads((tmp_path / "state.json").read_text())
    (tmp_path / "state.json").write_text(json.dumps(state | {"_split": recorded}))
    source = open_source(str(tmp_path))
    assert source.num_rows == {split: 50}
    assert list(source.rows(split, 40, 50)) == ITEMS[40:]


def test_a_shuffled_dataset_is_read_in_its_saved_order(tmp_path: Path) -> None:
    _dataset(ITEMS).select([7, 3, 41]).save_to_disk(tmp_path)
    assert list(open_source(str(tmp_path)).rows("train", 0, 3)) == [ITEMS[7], ITEMS[3], ITEMS[41]]


def test_the_revision_is_that_of_the_rows(saved: Path, tmp_path: Path) -> None:
    revision = open_source(str(saved)).origin.revision
    assert open_source(str(saved)).origin.revision == revision
    assert open_source(str(saved.rename(tmp_path / "elsewhere"))).origin.revision == revision
    _dataset(list(reversed(ITEMS))).save_to_disk(tmp_path / "elsewhere" / "train", num_shards=3)
    assert open_source(str(tmp_path / "elsewhere")).origin.revision != revision


def _write_stream(path: Path, items: list[Item], batch_sizes: list[int]) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    image = pa.array([{"bytes": bytes(item.data), "path": item.name} for item in items], kind)
    table = pa.table({"image": image, "label": pa.array([item.label for item in items], pa.int64())})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        start = 0
        for size in [*batch_sizes, len(items)]:
            writer.write_table(table.slice(start, size))
            start += size


@settings(deadline=None, max_examples=100)
@given(batch_sizes=st.lists(st.integers(0, 20), max_size=8), start=st.integers(0, 60), stop=st.integers(0, 60))
def test_rows_of_any_stream_are_a_slice_of_all(batch_sizes: list[int], start: int, stop: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.arrow"
        _write_stream(path, ITEMS, batch_sizes)
        rows = pickle.loads(pickle.dumps(ArrowRows(((str(path), start, stop),), "image", "label")))
        found = list(rows)
    assert found == ITEMS[start:stop]  # though the file is gone


def test_a_worker_reads_without_importing_datasets_or_taking_memory(tmp_path: Path) -> None:
    items = [Item(f"{row}.jpg", bytes(1_000_000), 0) for row in range(200)]
    _write_stream(tmp_path / "data.arrow", items, [])
    script = tmp_path / "read.py"
    script.write_text(
        "import sys\n"
        "from prep.saved_dataset import ArrowRows\n"
        "assert 'datasets' not in sys.modules\n"
        "rows = ArrowRows(((sys.argv[1], 0, 200),), 'image', 'label')\n"
        "total = sum(len(item.data) + sum(item.data[::4096]) for item in rows)\n"
        "print(total, *(line.split()[1] for line in open('/proc/self/status') if line.startswith('RssAnon:')))\n"
    )
    done = run_command(script, tmp_path / "data.arrow", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    num_bytes, anonymous_kb = map(int, done.stdout.split())
    assert num_bytes == 200_000_000
    assert anonymous_kb < 100_000


def _train_file(folder: Path) -> Path:
    return folder / "train" / "data-00001-of-00003.arrow"


def _cut(folder: Path) -> Path:
    path = _train_file(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def _cut_after_a_batch(folder: Path) -> Path:
    path = _train_file(folder)
    path.write_bytes(path.read_bytes()[:-8])
    return path


def _empty(folder: Path) -> Path:
    _train_file(folder).write_bytes(b"")
    return _train_file(folder)


def _write_text(folder: Path) -> Path:
    _train_file(folder).write_text("version https://git-lfs.github.com/spec/v1\n")
    return _train_file(folder)


def _remove(folder: Path) -> Path:
    _train_file(folder).unlink()
    return _train_file(folder)


def _remove_state(folder: Path) -> Path:
    (folder / "train" / "state.json").unlink()
    return folder / "train" / "state.json"


def _damage_state(folder: Path) -> Path:
    (folder / "train" / "state.json").write_text('{"_data_files": [')
    return folder / "train" / "state.json"


def _name_a_path(folder: Path) -> Path:
    (folder / "dataset_dict.json").write_text('{"splits": ["../x"]}')
    return folder / "dataset_dict.json"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_cut, "is not a complete Arrow stream ("),
        (_cut_after_a_batch, "is not a complete Arrow stream (its end is missing): copy or save the dataset again"),
        (_empty, "is not a complete Arrow stream ("),
        (_write_text, "is a Git LFS pointer, not the file: run `git lfs pull` there"),
        (_remove_state, "is missing: copy or save the dataset again"),
        (_damage_state, "cannot be read ("),
        (_name_a_path, "has a split named '../x': rename it, with letters and digits only"),
    ],
)
def test_a_damaged_dataset_is_refused_in_one_line(spoil: Callable[[Path], Path], words: str, saved: Path) -> None:
    culprit = spoil(saved)
    with pytest.raises(InputError) as refusal:
        open_saved_dataset(saved, Reading())
    assert str(refusal.value).startswith(f"{culprit} {words}")
    assert "\n" not in str(refusal.value)


def test_a_file_cut_off_since_it_was_opened_is_named(saved: Path) -> None:
    source = open_saved_dataset(saved, Reading())
    path = _cut(saved)
    with pytest.raises(InputError, match=f"^{path} is not a complete Arrow stream"):
        list(source.rows("train", 0, 50))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"label": [0, 1]}, "needs a column of images named image or img; its columns: label (int64)"),
        ({"image": [b"a", b"b"]}, "needs a column of labels named label or labels or fine_label"),
        (
            {"image": [b"a", b"b"], "label": [0, None]},
            "has 1 rows without a label (null) in column label: leave this split out",
        ),
        ({"image": [b"a", b"b"], "label": ["x", "y"]}, "column label (string) holds text, expected ClassLabel"),
        ({"image": [[0, 1], [2]], "label": [0, 1]}, "does not hold encoded images"),
    ],
)
def test_columns_that_cannot_be_used_are_refused(columns: dict[str, Any], words: str, tmp_path: Path) -> None:
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path)
    with pytest.raises(InputError) as refusal:
        open_source(str(tmp_path))
    assert words in str(refusal.value)
    assert str(refusal.value).startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("label", "words"),
    [(-1, "has the label -1, which means none, in column label: leave this split out"), (3, "outside the classes")],
)
def test_a_label_outside_the_classes_is_refused(label: int, words: str, tmp_path: Path) -> None:
    table = pa.table({"image": [{"bytes": b"x", "path": "x"}], "label": [label]}, schema=FEATURES.arrow_schema)
    datasets.Dataset(table).save_to_disk(tmp_path)
    with pytest.raises(InputError, match=words):
        open_source(str(tmp_path)).check_split("train")


def test_files_that_name_other_classes_are_refused(saved: Path) -> None:
    _dataset(ITEMS).rename_column("label", "kind").save_to_disk(saved / "validation")
    with pytest.raises(InputError, match=r"has its labels in column kind, .* in column label: choose one that both"):
        open_source(str(saved)).check_split("validation")
    other = datasets.Features(FEATURES | {"label": datasets.ClassLabel(names=["a", "b", "c"])})
    _dataset(ITEMS).cast(other).save_to_disk(saved / "validation")
    source = open_source(str(saved))
    source.check_split("train")
    with pytest.raises(InputError, match="names other classes than"):
        source.check_split("validation")


def test_missing_files_of_a_saved_dataset_stop_the_run_unless_allowed(saved: Path) -> None:
    (saved / "train" / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(InputError) as refusal:
        open_source(str(saved)).check_split("train")
    lack = "the split train lacks 1 of 3 files: train/data-00001-of-00003.arrow"
    assert str(refusal.value) == (
        f"{saved} is not complete: {lack}; get what is missing, or continue without it with --allow-missing"
    )
    open_source(str(saved)).check_split("validation")
    source = open_source(str(saved), Reading(allow_missing=True))
    assert [item.name for item in source.rows("train", 0, 50)] == [f"{row}.jpg" for row in (*range(17), *range(34, 50))]
    assert source.reading("train")["missing"] == [lack]
    assert "missing" not in source.reading("validation")


@pytest.mark.parametrize("names", [["rows.arrow"], ["data-00000-of-00001.arrow"]])
def test_a_split_without_any_of_its_files_is_missing(names: list[str], saved: Path) -> None:
    state = json.loads((saved / "validation" / "state.json").read_text())
    (saved / "validation" / "data-00000-of-00001.arrow").unlink()
    state |= {"_data_files": [{"filename": name} for name in names]}
    (saved / "validation" / "state.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match="is not complete: all files of the split validation"):
        open_source(str(saved)).check_split("train")
    source = open_source(str(saved), Reading(allow_missing=True))
    assert list(source.rows("train", 0, 50)) == ITEMS


def test_a_split_whose_folder_is_missing_stops_the_run_unless_allowed(saved: Path) -> None:
    shutil.rmtree(saved / "validation")
    with pytest.raises(
        InputError, match=r"not complete: the split validation, declared in dataset_dict\.json; get what"
    ):
        open_source(str(saved)).check_split("train")
    source = open_source(str(saved), Reading(allow_missing=True))
    assert source.num_rows == {"train": 50}
    shutil.rmtree(saved / "train")
    with pytest.raises(InputError, match="train is missing: copy or save the dataset again"):
        open_source(str(saved), Reading(allow_missing=True))


def test_a_folder_that_the_dict_does_not_name_is_reported(saved: Path) -> None:
    (saved / "dataset_dict.json").write_text('{"splits": ["train"]}')
    source = open_source(str(saved))
    assert source.num_rows == {"train": 50}
    assert source.reading("train")["passed_over"] == ["folder validation, not named in dataset_dict.json"]


def test_splits_that_were_saved_one_by_one_are_read_together(tmp_path: Path) -> None:
    for split, items in (("training", ITEMS), ("val", ITEMS[:4]), ("extra", ITEMS[4:6])):
        _dataset(items).save_to_disk(tmp_path / split)
    source = open_source(str(tmp_path))
    assert source.num_rows == {"extra": 2, "train": 50, "validation": 4}
    assert source.reading("train")["split_map"] == {"training": "train"}
    assert list(source.rows("validation", 0, 4)) == ITEMS[:4]
    mapped = open_source(str(tmp_path), Reading(split_map=(("extra", "validation"), ("val", "old"))))
    assert mapped.num_rows == {"train": 50, "validation": 2, "old": 4}


def test_fewer_rows_than_were_loaded_once_are_told(tmp_path: Path) -> None:
    _dataset(ITEMS).to_parquet(tmp_path / "d" / "train.parquet")
    loaded = datasets.load_dataset(str(tmp_path / "d"), cache_dir=str(tmp_path / "cache"))
    loaded["train"].select([4, 1, 2]).save_to_disk(tmp_path / "saved")
    source = open_source(str(tmp_path / "saved"))
    assert list(source.rows("train", 0, 3)) == [ITEMS[4], ITEMS[1], ITEMS[2]]
    assert source.reading("train")["notes"] == [
        "the split train: 3 rows are there, 50 are declared in dataset_info.json, which a selection explains"
    ]


def test_several_columns_of_a_saved_dataset_are_chosen_as_of_parquet(tmp_path: Path) -> None:
    images = [{"bytes": b"mask %d" % row, "path": None} for row in range(3)]
    columns = {"mask": images, "photo": [{"bytes": b"photo", "path": None}] * 3, "kind": [0, 1, 2], "width": [9] * 3}
    features = datasets.Features({"mask": datasets.Image(), "photo": datasets.Image(), "kind": FEATURES["label"]})
    features["width"] = datasets.Value("int64")
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path)
    with pytest.raises(
        InputError, match=r"several columns of images, mask \(Image\), photo \(Image\): choose with --image-"
    ):
        open_source(str(tmp_path))
    source = open_source(str(tmp_path), Reading(image_column="mask"))
    assert [(bytes(item.data), item.label) for item in source.rows("train", 0, 3)] == [
        (b"mask %d" % row, row) for row in range(3)
    ]
    with pytest.raises(InputError, match="has one configuration: leave out --config"):
        open_source(str(tmp_path), Reading(config="default"))


def test_class_names_that_only_dataset_info_holds_are_heard(tmp_path: Path) -> None:
    _dataset(ITEMS).save_to_disk(tmp_path)
    _write_stream(tmp_path / "data-00000-of-00001.arrow", ITEMS, [])  # without metadata
    assert open_source(str(tmp_path)).class_names == tuple(NAMES)


def test_the_module_that_workers_import_leaves_datasets_out() -> None:
    done = run_command("-c", "import sys, prep.resolve, prep.parquet; sys.exit('datasets' in sys.modules)")
    assert done.returncode == 0, done.stderr
