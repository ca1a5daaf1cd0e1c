"""Ranges of parquet rows, and keys: pure functions, tested with cases from hypothesis."""

import pickle
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.commands import run_command
from hypothesis import given, settings
from hypothesis import strategies as st

from prep.errors import InputError
from prep.parquet import ParquetRows, open_parquet_dataset
from prep.prepare import sample_key
from prep.source import Item, Reading, Source
from prep.tables import read_items

ROWS_IN_FILE = (20, 1, 0, 150, 7)
NUM_ROWS = sum(ROWS_IN_FILE)
USTAR_NAME_BYTES = 100
NO_BYTES = "no bytes in the source"

row_numbers = st.integers(0, 2**31)


def _write_files(folder: Path) -> list[Item]:
    """Parquet files with seven rows per group, for `train` and one for `validation`; the rows of `train`."""
    items = [Item(f"{row}.jpg", f"image {row}".encode(), row % 10) for row in range(NUM_ROWS)]
    start = 0
    for number, num_rows in enumerate(ROWS_IN_FILE):
        _write_rows(folder / f"train-{number:05d}-of-00005.parquet", items[start : start + num_rows])
        start += num_rows
    _write_rows(folder / "validation-00000-of-00001.parquet", [Item("v.jpg", b"other", 3)])
    return items


def _write_rows(path: Path, items: list[Item]) -> None:
    image = pa.array(
        [{"bytes": item.data, "path": item.name} for item in items],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    table = pa.table({"image": image, "label": pa.array([item.label for item in items], pa.int64())})
    pq.write_table(table, path, row_group_size=7)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, list[Item]]:
    folder = tmp_path_factory.mktemp("ranges")
    items = _write_files(folder)
    return open_parquet_dataset(str(folder), Reading()), items


@settings(deadline=None, max_examples=150)
@given(start=st.integers(0, NUM_ROWS), stop=st.integers(0, NUM_ROWS))
def test_a_range_of_rows_is_that_slice_of_all_rows(written: tuple[Source, list[Item]], start: int, stop: int) -> None:
    source, items = written
    rows = pickle.loads(pickle.dumps(source.rows("train", start, stop)))  # as a worker gets it
    assert list(rows) == items[start:stop]


def test_rows_are_counted_split_by_split(written: tuple[Source, list[Item]]) -> None:
    source, _ = written
    assert source.num_rows == {"train": NUM_ROWS, "validation": 1}
    assert list(source.rows("validation", 0, 1)) == [Item("v.jpg", b"other", 3)]


def test_bare_integer_labels_are_named_by_their_numbers(written: tuple[Source, list[Item]]) -> None:
    source, _ = written
    assert source.class_names == tuple("0123456789")


def test_images_as_bare_bytes_under_other_column_names_are_read(tmp_path: Path) -> None:
    table = pa.table({"fine_label": [1, 0], "img": pa.array([b"one", None], pa.binary())})
    pq.write_table(table, tmp_path / "train.parquet")
    rows = list(open_parquet_dataset(str(tmp_path), Reading()).rows("train", 0, 2))
    assert rows == [Item("", b"one", 1), Item("", b"", 0, NO_BYTES)]


def test_an_image_without_bytes_or_name_comes_empty_for_the_ledger(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": None, "path": "elsewhere.jpg"}, None, {"bytes": b"x", "path": None}], kind)
    pq.write_table(pa.table({"image": images, "label": [0, 1, 2]}), tmp_path / "train.parquet")
    rows = list(open_parquet_dataset(str(tmp_path), Reading()).rows("train", 0, 3))
    only_a_path = Item("elsewhere.jpg", b"", 0, f"{NO_BYTES}, only a path")
    assert rows == [only_a_path, Item("", b"", 1, NO_BYTES), Item("", b"x", 2)]


@dataclass(frozen=True)
class Column:
    """One way to store an image column."""

    kind: pa.DataType
    is_struct: bool
    num_rows_in_group: int
    compression: str
    use_dictionary: bool


columns = st.builds(
    Column,
    st.sampled_from([pa.binary(), pa.large_binary()]),
    st.booleans(),
    st.integers(1, 90),
    st.sampled_from(["none", "snappy", "zstd"]),
    st.booleans(),
)
images = st.lists(st.none() | st.binary(max_size=9), max_size=80)


def _image_array(data: list[bytes | None], column: Column) -> tuple[pa.Array, list[Item]]:
    """The images as an array, and the items they are to come back as."""
    found = [Item("", value or b"", row, NO_BYTES if value is None else "") for row, value in enumerate(data)]
    if not column.is_struct:
        return pa.array(data, column.kind), found
    kind = pa.struct([("path", pa.string()), ("bytes", column.kind)])
    values = [None if row % 5 == 4 else {"path": f"é{row}", "bytes": value} for row, value in enumerate(data)]
    for row, item in enumerate(found):
        only_a_path = f"{NO_BYTES}, only a path" if item.fault else ""
        found[row] = Item(f"é{row}", item.data, row, only_a_path) if row % 5 != 4 else Item("", b"", row, NO_BYTES)
    return pa.array(values, kind), found


@settings(deadline=None, max_examples=100)
@given(data=images, column=columns, ends=st.tuples(st.integers(0, 90), st.integers(0, 90)))
def test_rows_of_any_parquet_are_a_slice_of_all(
    data: list[bytes | None], column: Column, ends: tuple[int, int]
) -> None:
    start, stop = ends
    array, items = _image_array(data, column)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/rows.parquet"
        table = pa.table({"x": pa.nulls(len(data)), "image": array, "label": range(len(data))})
        pq.write_table(
            table,
            path,
            row_group_size=column.num_rows_in_group,
            compression=column.compression,
            use_dictionary=column.use_dictionary,
            data_page_size=1,
            write_batch_size=3,
        )
        for url in (path, f"file://{path}"):  # mapped, and through a buffer
            assert list(ParquetRows(((url, start, stop),), "image", "label")) == items[start:stop]


@settings(deadline=None, max_examples=100)
@given(data=images, column=columns, ends=st.tuples(st.integers(0, 90), st.integers(0, 90)))
def test_items_of_a_slice_of_a_batch_are_a_slice_of_its_items(
    data: list[bytes | None], column: Column, ends: tuple[int, int]
) -> None:
    start, stop = ends
    array, items = _image_array(data, column)
    batch = pa.record_batch({"image": array, "label": pa.array(range(len(data)), pa.int64())})
    part = batch.slice(start, max(0, stop - start))
    assert list(read_items(part, "image", "label")) == items[start:stop]


@pytest.mark.parametrize("kind", [pa.binary_view(), pa.binary(2)], ids=str)
def test_images_of_rarer_binary_types_are_read(kind: pa.DataType) -> None:
    batch = pa.record_batch({"image": pa.array([b"ab", None, b"cd"], kind), "label": pa.array([2, 1, 0])})
    assert list(read_items(batch.slice(1), "image", "label")) == [Item("", b"", 1, NO_BYTES), Item("", b"cd", 0)]


def test_items_stay_valid_after_their_file_is_closed(written: tuple[Source, list[Item]]) -> None:
    source, items = written
    kept = list(source.rows("train", 0, NUM_ROWS))
    pa.default_memory_pool().release_unused()
    assert all(isinstance(item.data, memoryview) for item in kept)
    assert [bytes(item.data) for item in kept] == [item.data for item in items]


def test_sizes_are_those_of_the_files(written: tuple[Source, list[Item]], tmp_path: Path) -> None:
    source, _ = written
    items = _write_files(tmp_path)
    assert len(items) == NUM_ROWS
    sizes = {split: sum(p.stat().st_size for p in tmp_path.glob(f"{split}-*")) for split in ("train", "validation")}
    assert source.size_bytes == sizes


def test_an_image_over_the_bound_is_a_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("prep.source.MAX_IMAGE_BYTES", 3)
    _write_rows(tmp_path / "train.parquet", [Item("a.jpg", b"four", 0), Item("b.jpg", b"abc", 1)])
    rows = list(open_parquet_dataset(str(tmp_path), Reading()).rows("train", 0, 2))
    assert rows == [Item("a.jpg", b"", 0, "4 bytes is over the bound of 3"), Item("b.jpg", b"abc", 1)]


def test_files_that_name_other_classes_are_refused(tmp_path: Path) -> None:
    for split, names in (("train", ["a", "b"]), ("validation", ["b", "a"])):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        table = pa.table({"image": [{"bytes": b"x", "path": "x"}], "label": [0]}, schema=features.arrow_schema)
        pq.write_table(table, tmp_path / f"{split}.parquet")
    source = open_parquet_dataset(str(tmp_path), Reading())
    source.check_split("train")
    with pytest.raises(InputError, match=r"validation\.parquet names other classes than .*train\.parquet: cast both"):
        source.check_split("validation")


def test_images_that_are_not_encoded_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [[[0, 1]]], "label": [0]}), tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"train\.parquet: column image \(list.*does not hold encoded images"):
        open_parquet_dataset(str(tmp_path), Reading())


# A worker's own memory: what Python and Arrow take, and two pages of 1,024 images.
PEAK_MB = """
import sys
from prep.parquet import ParquetRows
peak_kb = num_bytes = 0
for row, item in enumerate(ParquetRows(((sys.argv[1], 0, 10**6),), "image", "label")):
    num_bytes += len(item.data)
    if row % 100 == 0:
        with open("/proc/self/status") as status:
            peak_kb = max(peak_kb, *(int(line.split()[1]) for line in status if line.startswith("RssAnon:")))
print(peak_kb // 1000, num_bytes)
"""


@pytest.mark.parametrize("scheme", ["", "file://"], ids=["mapped", "buffered"])
def test_memory_stays_far_below_a_row_group_as_large_as_the_file(
    scheme: str, large_row_group: Path, tmp_path: Path
) -> None:
    script = tmp_path / "peak.py"
    script.write_text(PEAK_MB)
    done = run_command(script, f"{scheme}{large_row_group}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    peak_mb, num_bytes = map(int, done.stdout.split())
    assert num_bytes == 400_000_000
    assert peak_mb < 220


@pytest.fixture(scope="module")
def large_row_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A parquet file of 400 MB in one row group."""
    num_rows, image_bytes = 20_000, 20_000
    data = pa.py_buffer(np.random.default_rng(0).bytes(num_rows * image_bytes))
    ends = pa.py_buffer(np.arange(num_rows + 1, dtype=np.int32) * np.int32(image_bytes))
    encoded = pa.Array.from_buffers(pa.binary(), num_rows, [None, ends, data])
    image = pa.StructArray.from_arrays([encoded, pa.array([""] * num_rows)], ["bytes", "path"])
    path = tmp_path_factory.mktemp("large") / "train.parquet"
    pq.write_table(pa.table({"image": image, "label": np.zeros(num_rows, int)}), path, row_group_size=num_rows)
    assert pq.ParquetFile(path).num_row_groups == 1
    yield path
    path.unlink()


names = st.one_of(
    st.text(max_size=300),
    st.sampled_from(["", ".", "..", "../../etc/passwd", "a/b\\c.jpg", ".hidden", "n0144 0764.x.JPEG", "é.jpg", "\0\n"]),
    st.lists(st.sampled_from(["..", ".", "/", "a", " ", "é", ".jpg"]), max_size=20).map("".join),
)


@given(row=row_numbers, name=names)
def test_a_key_is_safe_in_any_tar(row: int, name: str) -> None:
    key = sample_key(row, name)
    assert re.fullmatch(r"[0-9]{8,10}(-[A-Za-z0-9_-]+)?", key)
    assert int(key.split("-")[0]) == row
    assert len(f"{key}.jpg") <= USTAR_NAME_BYTES


@given(rows=st.tuples(row_numbers, row_numbers), pair=st.tuples(names, names))
def test_keys_of_different_rows_differ_whatever_the_names(rows: tuple[int, int], pair: tuple[str, str]) -> None:
    keys = {sample_key(row, name) for row, name in zip(rows, pair, strict=True)}
    assert len(keys) == 2 or rows[0] == rows[1]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("n01440764_10026.JPEG", "00000042-n01440764_10026"),
        ("train/n01440764/n01440764_18.JPEG", "00000042-n01440764_18"),
        ("a b.c.jpg", "00000042-a_b_c"),
        ("", "00000042"),
        ("x" * 300 + ".jpg", "00000042-" + "x" * 64),
    ],
)
def test_a_key_keeps_the_sources_name_where_it_can(name: str, key: str) -> None:
    assert sample_key(42, name) == key
