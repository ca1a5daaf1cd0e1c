"""Ranges of parquet rows, and keys: pure functions, held against all that hypothesis can think of."""

import pickle
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prep.hugging_face import open_dataset
from prep.shards import sample_key
from prep.source import Item, Source

ROWS_IN_FILE = (20, 1, 0, 150, 7)
NUM_ROWS = sum(ROWS_IN_FILE)
USTAR_NAME_BYTES = 100

row_numbers = st.integers(0, 2**31)


def _write_files(folder: Path) -> list[Item]:
    """Parquet files with seven rows a group, for `train` and one for `validation`; the rows of `train`."""
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
    return open_dataset(str(folder)), items


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
    rows = list(open_dataset(str(tmp_path)).rows("train", 0, 2))
    assert rows == [Item("", b"one", 1), Item("", b"", 0)]


def test_an_image_without_bytes_or_name_comes_empty_for_the_ledger(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": None, "path": "elsewhere.jpg"}, None, {"bytes": b"x", "path": None}], kind)
    pq.write_table(pa.table({"image": images, "label": [0, 1, 2]}), tmp_path / "train.parquet")
    rows = list(open_dataset(str(tmp_path)).rows("train", 0, 3))
    assert rows == [Item("elsewhere.jpg", b"", 0), Item("", b"", 1), Item("", b"x", 2)]


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
