"""Random tables, cards, splits and flags: a simple oracle predicts what is read, or one line refuses it.

Each image says which column, split and row it is, so no wrong reading can look right. PENSTOCK_SOAK_LAYOUTS sets how
many datasets are tried.
"""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from prep.errors import InputError
from prep.resolve import open_source
from prep.source import Reading, Source

NUM_EXAMPLES = int(os.environ.get("PENSTOCK_SOAK_LAYOUTS", "250"))
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
ROWS_IN_FILE = 2
CLASS_NAMES = ["a", "b", "c"]
GROUPS = {
    "train": ["train", "training"],
    "validation": ["validation", "val", "dev"],
    "test": ["test"],
    "extra": ["extra"],
}
NAMES = ["image", "img", "photo", "mask", "Image", "label", "labels", "fine_label", "coarse_label", "species", "width"]
STRAYS = ["stats.json", "classes.txt", "a.csv", "README.txt", ".hidden.parquet", "cache/x.bin"]


@dataclass(frozen=True)
class Column:
    name: str
    kind: str  # image (declared), struct, binary, path, class (declared), integer, text


@dataclass(frozen=True)
class Data:
    """A dataset and the flags to read it with."""

    columns: tuple[Column, ...]
    splits: dict[str, int]  # name -> files that it should have
    absent: tuple[str, ...]  # splits without their last file
    layout: str  # sharded, file, folder, saved
    declared_in: str  # file, card
    counts: str  # what the card says of rows: none, right, wrong
    strays: tuple[str, ...]
    wanted: Reading

    @property
    def kinds(self) -> dict[str, str]:
        return {column.name: column.kind for column in self.columns}


names = st.sampled_from(NAMES)
columns = st.lists(
    st.one_of(
        st.builds(
            Column, st.sampled_from(["image", "img", "photo", "mask"]), st.sampled_from(["image", "struct", "binary"])
        ),
        st.builds(Column, st.sampled_from(["label", "labels", "species"]), st.sampled_from(["class", "integer"])),
        st.builds(Column, names, st.sampled_from(["image", "struct", "binary", "path", "class", "integer", "text"])),
    ),
    min_size=2,
    max_size=5,
    unique_by=lambda column: column.name,
)
split_names = st.sampled_from([name for group in GROUPS.values() for name in group])
readings = st.builds(
    Reading,
    config=st.none(),
    image_column=st.none() | names,
    label_column=st.none() | names,
    split_map=st.just(()) | st.tuples(st.tuples(split_names, st.sampled_from(["train", "validation", "mine"]))),
    allow_missing=st.booleans(),
)
plain = st.builds(Reading, allow_missing=st.booleans())


@st.composite
def datasets(draw: st.DrawFn) -> Data:
    splits = draw(st.dictionaries(split_names, st.integers(1, 3), min_size=1, max_size=3))
    layout = draw(st.sampled_from(["sharded", "file", "folder", "saved"]))
    has_counts = layout == "sharded" or (layout != "saved" and "extra" not in splits)  # its files are called train
    absent = draw(st.lists(st.sampled_from(sorted(splits)), max_size=1)) if layout in ("sharded", "saved") else []
    if sum(splits.values()) == len(absent):
        absent = []  # without a table it is another kind of source
    return Data(
        tuple(draw(columns)),
        splits,
        tuple(absent),
        layout,
        draw(st.sampled_from(["file", "card"])),
        draw(st.sampled_from(["none", "none", "right", "wrong"])) if has_counts else "none",
        tuple(draw(st.lists(st.sampled_from(STRAYS), max_size=2, unique=True))),
        draw(st.one_of(plain, plain, readings)),
    )


def _rows(data: Data, split: str, file: int, column: Column) -> list[Any]:
    """Return the values of a column in one file; they name the place that they are from."""
    rows = [file * ROWS_IN_FILE + row for row in range(ROWS_IN_FILE)]
    texts = [f"{column.name}|{split}|{row}" for row in rows]
    if column.kind in ("image", "struct"):
        return [{"bytes": text.encode(), "path": None} for text in texts]
    if column.kind == "binary":
        return [text.encode() for text in texts]
    if column.kind in ("path", "text"):
        return texts
    return [_label(column.name, row) for row in rows]


def _label(column: str, row: int) -> int:
    return (len(column) + NAMES.index(column) + row) % len(CLASS_NAMES)


def _features(data: Data) -> dict[str, Any]:
    """Return the declarations of the columns, in the JSON of `datasets`."""
    declared = {"image": {"_type": "Image"}, "class": {"_type": "ClassLabel", "names": CLASS_NAMES}}
    return {column.name: declared[column.kind] for column in data.columns if column.kind in declared}


def _table(data: Data, split: str, file: int) -> pa.Table:
    kinds = {"image": STRUCT, "struct": STRUCT, "binary": pa.binary(), "class": pa.int64(), "integer": pa.int64()}
    arrays = {
        column.name: pa.array(_rows(data, split, file, column), kinds.get(column.kind, pa.string()))
        for column in data.columns
    }
    metadata = (
        {"huggingface": json.dumps({"info": {"features": _features(data)}})} if data.declared_in == "file" else {}
    )
    return pa.table(arrays).replace_schema_metadata(metadata)


def _write(data: Data, folder: Path) -> None:
    for split, num_files in data.splits.items():
        for file in range(num_files):
            if split in data.absent and file == num_files - 1:
                continue
            path = folder / _file_name(data, split, file)
            path.parent.mkdir(parents=True, exist_ok=True)
            if data.layout == "saved":
                table = _table(data, split, file)
                with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
                    writer.write_table(table)
            else:
                pq.write_table(_table(data, split, file), path)
        if data.layout == "saved":
            files = [{"filename": Path(_file_name(data, split, file)).name} for file in range(num_files)]
            (folder / split).mkdir(exist_ok=True)
            (folder / split / "state.json").write_text(json.dumps({"_data_files": files, "_split": split}))
            info = {"features": _features(data)} if data.declared_in == "card" else {}
            (folder / split / "dataset_info.json").write_text(json.dumps(info))
    if data.layout == "saved":
        (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(data.splits)}))
    else:
        _write_card(data, folder)
    for name in data.strays:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"{}")


def _file_name(data: Data, split: str, file: int) -> str:
    of = f"{file:05d}-of-{data.splits[split]:05d}"
    return {
        "sharded": f"data/{split}-{of}.parquet",
        "file": f"{split}-{file}.parquet",
        "folder": f"{split}/{file}.parquet",
        "saved": f"{split}/data-{of}.arrow",
    }[data.layout]


def _write_card(data: Data, folder: Path) -> None:
    info: dict[str, Any] = {}
    if data.declared_in == "card":
        info["features"] = _features(data)
    if data.counts != "none":
        wrong = 1 if data.counts == "wrong" else 0
        rows = {split: _num_files(data, split) * ROWS_IN_FILE + wrong for split in data.splits}
        info["splits"] = {split: {"name": split, "num_examples": count} for split, count in rows.items() if count}
    if info:
        (folder / "dataset_infos.json").write_text(json.dumps({"default": info}))


def _num_files(data: Data, split: str) -> int:
    return data.splits[split] - (split in data.absent)


def _expected_column(
    data: Data, wanted: str | None, documented: list[str], declared: list[str], usable: list[str]
) -> str:
    """Apply the rules in short; empty if the dataset cannot be read."""
    if wanted is None:
        present = [name for name in documented if name in data.kinds]
        certain = [name for name, kind in data.kinds.items() if kind in declared]
        wanted = present[0] if present else certain[0] if len(certain) == 1 else ""
    return wanted if data.kinds.get(wanted) in usable else ""


def _expected_splits(data: Data) -> dict[str, str] | None:
    """Return {name: split}, without splits that the user must choose; None if nothing can be read."""
    present = [name for name in data.splits if _num_files(data, name)]
    mapped = dict(data.wanted.split_map)
    if data.layout in ("file", "folder"):
        found = {name: next(split for split, group in GROUPS.items() if name in group) for name in present}
        if len(set(found.values())) < len(found):
            return None  # two names of one split would be merged
        if set(found.values()) == {"extra"}:
            found = {"extra": "train"}
        found.pop("extra", None) if len(found) > 1 else None
        present = list(found.values())  # what the source's splits are called: as `datasets` calls them
        names = {split: name for name, split in found.items()}
    else:
        names = {name: name for name in present}
    if not set(mapped) <= set(present):
        return None
    prepared = {}
    for name in present:
        group = next(group for group in GROUPS.values() if name in group)
        rivals = [other for other in present if other in group and other not in mapped]
        if name in mapped:
            prepared[names[name]] = mapped[name]
        elif name in mapped.values():
            continue  # its name was given to another
        elif group[0] in rivals or group[0] in mapped.values() or len(rivals) == 1:
            is_free = len(rivals) == 1 and group[0] not in mapped.values()
            prepared[names[name]] = group[0] if is_free else name
    return prepared


def _is_incomplete(data: Data, name: str) -> bool:
    return (name in data.absent or data.counts == "wrong") and not data.wanted.allow_missing


def _read(source: Source, split: str) -> list[tuple[str, int]] | None:
    """Return the rows of a split, None if one line refuses it."""
    try:
        source.check_split(split)
    except InputError as error:
        assert "\n" not in str(error)
        return None
    return [(bytes(item.data).decode(), item.label) for item in source.rows(split, 0, source.num_rows[split])]


@settings(deadline=None, max_examples=NUM_EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
@given(datasets())
def test_what_is_read_is_what_the_rules_say_or_refused(data: Data) -> None:
    image = _expected_column(
        data, data.wanted.image_column, ["image", "img"], ["image", "struct"], ["image", "struct", "binary"]
    )
    documented = ["label", "labels", "fine_label"]
    label = _expected_column(data, data.wanted.label_column, documented, ["class"], ["class", "integer"])
    splits = _expected_splits(data)
    with tempfile.TemporaryDirectory() as folder:
        _write(data, Path(folder))
        try:
            source = open_source(folder, data.wanted)
        except InputError as error:
            assert "\n" not in str(error)
            assert "repair" not in str(error)
            is_readable = image and label and splits and not all(_is_incomplete(data, name) for name in splits)
            is_whole = not any(_num_files(data, name) == 0 for name in data.splits)
            assert not (is_readable and is_whole), error
            event("refused")
            return
        event("read")
        assert image and label and splits is not None
        for split in source.num_rows:
            rows = _read(source, split)
            name = next((name for name, prepared in splits.items() if prepared == split), None)
            if rows is None:
                assert (
                    name is None
                    or _is_incomplete(data, name)
                    or not all(_num_files(data, each) for each in data.splits)
                )
                continue
            assert name is not None, f"{split} is open to choice"
            assert not _is_incomplete(data, name)
            assert rows == [
                (f"{image}|{name}|{row}", _label(label, row)) for row in range(_num_files(data, name) * ROWS_IN_FILE)
            ]
            reading = source.reading(split)
            assert (reading["image_column"], reading["label_column"]) == (image, label)
            again = open_source(folder, Reading.from_manifest(reading))
            assert again.reading(split) == reading
            assert _read(again, split) == rows
        if data.kinds[label] == "class":
            assert source.class_names == tuple(CLASS_NAMES)
