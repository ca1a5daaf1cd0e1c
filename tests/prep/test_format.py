"""The prepared folder, file by file: tars, sample index, manifest, and `Split`, which opens them."""

import hashlib
import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.tars import composite_sha256
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from prep.dataset import Split
from prep.direct_file import DirectFile
from prep.errors import InputError
from prep.tar import TarWriter, member_header

SPLITS = {"train": 1437, "validation": 360}


def _source_rows(source: Path, split: str) -> list[tuple[str, bytes, int]]:
    """(name, JPEG, label) of each row, by pyarrow alone."""
    table = pq.read_table(source / "data" / f"{split}-00000-of-00001.parquet")
    return [(row["image"]["path"], row["image"]["bytes"], row["label"]) for row in table.to_pylist()]


def _tar_members(folder: Path) -> list[tuple[str, bytes]]:
    members = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                members.append((member.name, file.read()))
    return members


@pytest.mark.parametrize("split", SPLITS)
def test_every_source_image_is_in_the_tars_once_with_its_own_label(
    split: str, digits: Path, digits_source: Path
) -> None:
    expected = []
    for row, (name, jpeg, label) in enumerate(_source_rows(digits_source, split)):
        key = f"{row:08d}-{Path(name).stem}"
        expected += [(f"{key}.jpg", jpeg), (f"{key}.cls", str(label).encode())]
    assert len(expected) == 2 * SPLITS[split]
    assert _tar_members(digits / split) == expected


def test_a_tar_holds_members_of_any_size_and_is_hashed_while_written(tmp_path: Path) -> None:
    members = {f"{size}.jpg": bytes([size % 251]) * size for size in (0, 1, 511, 512, 513, 1024, 9999)}
    file = DirectFile(tmp_path / "a.tar")
    writer = TarWriter(file)
    offsets = [writer.add(name, data, hashlib.sha256(data).digest()) for name, data in members.items()]
    writer.finish()
    whole = (tmp_path / "a.tar").read_bytes()
    assert dict(_tar_members(tmp_path)) == members
    assert [whole[o : o + len(d)] for o, d in zip(offsets, members.values(), strict=True)] == list(members.values())
    assert writer.composite_sha256 == composite_sha256(whole)
    assert file.size_bytes == len(whole)
    assert len(whole) % 10240 == 0  # a tar record, as GNU tar pads it


@pytest.mark.parametrize("split", SPLITS)
def test_the_sample_index_points_at_the_jpegs_in_the_tars(split: str, digits: Path, digits_source: Path) -> None:
    prepared = Split(digits, split)
    tars = [path.read_bytes() for path in prepared.shard_paths]
    rows = _source_rows(digits_source, split)
    for sample, (_, jpeg, label) in zip(prepared.samples.to_pylist(), rows, strict=True):
        found = tars[sample["shard"]][sample["offset"] : sample["offset"] + sample["size"]]
        assert found == jpeg
        assert hashlib.sha256(found).digest() == sample["sha256"]
        assert sample["label"] == label


def test_the_sample_index_holds_the_sizes_that_pillow_finds(imagenet_samples: Path) -> None:
    prepared = Split(imagenet_samples, "validation")
    tars = [path.read_bytes() for path in prepared.shard_paths]
    for sample in prepared.samples.to_pylist():
        jpeg = tars[sample["shard"]][sample["offset"] : sample["offset"] + sample["size"]]
        with Image.open(io.BytesIO(jpeg)) as image:
            assert image.size == (sample["width"], sample["height"])
    assert len({(s["width"], s["height"]) for s in prepared.samples.to_pylist()}) > 10  # not digits' one size


def test_the_sample_index_has_its_documented_schema(digits: Path) -> None:
    with pa.memory_map(str(digits / "train" / "samples.arrow")) as mapped:
        file = pa.ipc.open_file(mapped)
        assert file.num_record_batches == 1  # else its columns could not be mapped as one array each
        assert {field.name: str(field.type) for field in file.schema} == {
            "key": "string",
            "shard": "int32",
            "offset": "int64",
            "size": "int64",
            "label": "int32",
            "width": "int32",
            "height": "int32",
            "sha256": "fixed_size_binary[32]",
        }


def test_keys_are_unique_and_are_those_of_the_tars(digits: Path) -> None:
    keys = Split(digits, "train").samples.column("key").to_pylist()
    assert len(set(keys)) == len(keys) == SPLITS["train"]
    assert keys == [name.removesuffix(".jpg") for name, _ in _tar_members(digits / "train")[::2]]


@pytest.mark.parametrize("split", SPLITS)
def test_the_manifest_tells_the_truth(split: str, digits: Path, digits_source: Path) -> None:
    manifest = json.loads((digits / split / "manifest.json").read_text())
    jpegs = [jpeg for _, jpeg, _ in _source_rows(digits_source, split)]
    assert (manifest["split"], manifest["num_images"], manifest["findings"]) == (split, len(jpegs), {})
    assert manifest["size_bytes"] == manifest["source_size_bytes"] == sum(map(len, jpegs))
    assert manifest["ledger_sha256"] == _sha256(digits / split / "ledger.jsonl")
    assert manifest["samples_sha256"] == _sha256(digits / split / "samples.arrow")
    assert [shard["name"] for shard in manifest["shards"]] == [p.name for p in sorted((digits / split).glob("*.tar"))]
    for shard in manifest["shards"]:
        path = digits / split / shard["name"]
        assert (shard["size_bytes"], shard["composite_sha256"]) == (
            path.stat().st_size,
            composite_sha256(path.read_bytes()),
        )
        assert shard["num_images"] == int(path.with_suffix(".idx").read_text().split()[1])


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_manifest_holds_only_what_decides_the_bytes(digits: Path, digits_source: Path) -> None:
    text = (digits / "train" / "manifest.json").read_text()
    manifest = json.loads(text)
    sizes = {"max_side": None, "short_side": None, "quality": None}
    assert manifest["options"] == {"images_per_shard": 300, "limit": None, "decode_check": True, **sizes}
    assert manifest["source"]["name"] == digits_source.name
    assert set(manifest["source"]) == {"name", "revision"}
    assert "/" not in text  # no path
    assert "worker" not in text
    assert not re.search(r"\d{4}-\d\d-\d\d|\d\d:\d\d", text)  # no date, no time


def test_split_opens_what_was_prepared(digits: Path, digits_source: Path) -> None:
    split = Split(digits, "train")
    rows = _source_rows(digits_source, "train")
    assert len(split) == len(rows)
    assert split.class_names == ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    assert split.column("label").tolist() == [label for _, _, label in rows]
    assert split.column("size").tolist() == [len(jpeg) for _, jpeg, _ in rows]
    assert split.column("shard").tolist() == [row // 300 for row in range(len(rows))]
    assert set(split.column("width")) == set(split.column("height")) == {32}
    assert split.keys(np.array([1436, 0])) == [f"00001436-{_stem(rows[1436])}", f"00000000-{_stem(rows[0])}"]
    assert [path.name for path in split.shard_paths] == [f"train-{number:06d}.tar" for number in range(5)]


def _stem(row: tuple[str, bytes, int]) -> str:
    return Path(row[0]).stem


def test_the_digest_of_a_split_changes_with_its_manifest(digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits / "validation", tmp_path / "validation")
    assert Split(tmp_path, "validation").digest == Split(digits, "validation").digest
    manifest = tmp_path / "validation" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"nine"', '"neun"'))
    assert Split(tmp_path, "validation").digest != Split(digits, "validation").digest


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def _flip_last_byte(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def _age(path: Path) -> None:
    path.write_text(path.read_text().replace('"format_version": 2', '"format_version": 99'))


@pytest.mark.parametrize(
    ("name", "harm", "words"),
    [
        ("validation-000001.tar", Path.unlink, "is missing: `python prep/verify.py"),
        ("validation-000001.tar", _truncate, "bytes, not 163,840: `python prep/verify.py"),
        ("samples.arrow", Path.unlink, "is missing: delete"),
        ("samples.arrow", _flip_last_byte, "does not match its manifest: delete"),
        ("manifest.json", Path.unlink, "does not exist: delete"),
        ("manifest.json", _truncate, "is damaged"),
        ("manifest.json", _age, "has format 99"),
    ],
)
def test_split_names_the_damaged_file_and_the_way_out(
    name: str, harm: Callable[[Path], None], words: str, digits: Path, tmp_path: Path
) -> None:
    shutil.copytree(digits / "validation", tmp_path / "validation")
    path = tmp_path / "validation" / name
    harm(path)
    with pytest.raises(InputError) as refusal:
        Split(tmp_path, "validation")
    assert str(refusal.value).startswith(str(path))
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


@given(
    name=st.from_regex(r"[0-9]{8}(-[A-Za-z0-9_-]{1,64})?\.(jpg|cls)", fullmatch=True), size=st.integers(0, 8**11 - 1)
)
def test_a_tar_header_is_what_tarfile_writes(name: str, size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size = size
    assert member_header(name.encode(), size) == member.tobuf(tarfile.USTAR_FORMAT)
