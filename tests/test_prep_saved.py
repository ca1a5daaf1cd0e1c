"""Datasets of `save_to_disk`: read in place by range, and refused in one line where they are unusable."""

import json
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from conftest import run_command
from hypothesis import given, settings
from hypothesis import strategies as st

from prep.dataset import InputError
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
    """A train split in three files, one of them with several batches, and a validation split."""
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
        source.check(split)
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
        (_cut, "is no whole Arrow stream ("),
        (_cut_after_a_batch, "is no whole Arrow stream (its end is missing): copy or save the dataset again"),
        (_empty, "is no whole Arrow stream ("),
        (_write_text, "is no whole Arrow stream ("),
        (_remove, "is missing: copy or save the dataset again"),
        (_remove_state, "is missing: copy or save the dataset again"),
        (_damage_state, "cannot be read ("),
        (_name_a_path, "names a split '../x': rename it in letters and digits"),
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
    with pytest.raises(InputError, match=f"^{path} is no whole Arrow stream"):
        list(source.rows("train", 0, 50))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"label": [0, 1]}, "has columns label: an image and a label column are needed"),
        ({"image": [b"a", b"b"]}, "has columns image: an image and a label column are needed"),
        ({"image": [b"a", b"b"], "label": [0, None]}, "has 1 rows without a label: remove them"),
        ({"image": [b"a", b"b"], "label": ["x", "y"]}, "has labels of type string: cast column label to ClassLabel"),
        ({"image": [[0, 1], [2]], "label": [0, 1]}, "has images of type list<item: int64>: cast column image to"),
    ],
)
def test_columns_that_cannot_be_used_are_refused(columns: dict[str, Any], words: str, tmp_path: Path) -> None:
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path)
    with pytest.raises(InputError) as refusal:
        open_source(str(tmp_path))
    assert words in str(refusal.value)
    assert str(refusal.value).startswith(str(tmp_path))


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_outside_the_classes_is_refused(label: int, tmp_path: Path) -> None:
    table = pa.table({"image": [{"bytes": b"x", "path": "x"}], "label": [label]}, schema=FEATURES.arrow_schema)
    datasets.Dataset(table).save_to_disk(tmp_path)
    source = open_source(str(tmp_path))
    with pytest.raises(InputError, match=rf"\.arrow holds label {label}, outside the classes 0 to 2: mend it"):
        source.check("train")


def test_files_that_name_other_classes_are_refused(saved: Path) -> None:
    _dataset(ITEMS).rename_column("label", "kind").save_to_disk(saved / "validation")
    with pytest.raises(InputError, match="has columns image, kind, not image and label: mend it"):
        open_source(str(saved))
    other = datasets.Features(FEATURES | {"label": datasets.ClassLabel(names=["a", "b", "c"])})
    _dataset(ITEMS).cast(other).save_to_disk(saved / "validation")
    with pytest.raises(InputError, match="names other classes than"):
        open_source(str(saved))


def test_the_module_that_workers_import_leaves_datasets_out() -> None:
    done = run_command("-c", "import sys, prep.resolve, prep.parquet; sys.exit('datasets' in sys.modules)")
    assert done.returncode == 0, done.stderr
