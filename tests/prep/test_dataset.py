"""The format's own functions: manifests that come back as they were, indexes in one batch, files that appear whole."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from loaders import Split
from prep.dataset import SAMPLE_SCHEMA, Manifest, Options, Origin, Shard, encode_samples
from prep.errors import InputError
from prep.files import sha256_of, sync_folder, write_whole

MANIFEST = Manifest(
    split="train",
    source=Origin("café", "abc"),
    options=Options(images_per_shard=3),
    class_names=("b", "a"),
    num_images=2,
    size_bytes=30,
    source_size_bytes=40,
    findings={"rejected": 1},
    ledger_sha256="l",
    samples_sha256="s",
    shards=(Shard("train-000000.tar", 2, 4096, "c"),),
)
GOLDEN = "80563d087acd4c63e53cfd06c39837af4baa80197f2112b9210b25acef4689d8"  # equal inputs give equal bytes
ROWS = {
    "key": ["a", "b", "c"],
    "shard": [0, 0, 1],
    "offset": [512, 2048, 512],
    "size": [10, 20, 30],
    "label": [1, 0, 1],
    "width": [5, 6, 7],
    "height": [8, 9, 10],
    "sha256": [bytes([i]) * 32 for i in range(3)],
}


@pytest.mark.parametrize("options", [None, Options(), Options(max_side=500, quality=90)])
def test_a_manifest_comes_back_as_it_was(options: Options | None) -> None:
    manifest = replace(MANIFEST, options=options)
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_a_manifest_is_sorted_json_with_the_digest_of_all_else_in_it() -> None:
    text = MANIFEST.to_json()
    fields = json.loads(text)
    digest = fields.pop("manifest_sha256")
    assert digest == hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    assert text == json.dumps({**fields, "manifest_sha256": digest}, indent=1, sort_keys=True) + "\n"
    assert sha256_of(text.encode()) == GOLDEN


def test_a_manifest_may_lack_its_digest_which_is_verifys_business() -> None:
    fields = json.loads(MANIFEST.to_json())
    del fields["manifest_sha256"]
    assert Manifest.from_json(json.dumps(fields)) == MANIFEST


def test_rejected_images_are_a_finding() -> None:
    assert MANIFEST.num_rejected == 1
    assert replace(MANIFEST, findings={"suspect": 4}).num_rejected == 0


@pytest.mark.parametrize("num_rows", [0, 1, 3])
def test_an_index_is_one_batch_of_the_schema(num_rows: int) -> None:
    content = encode_samples({name: values[:num_rows] for name, values in ROWS.items()})
    reader = pa.ipc.open_file(pa.py_buffer(content))
    assert reader.schema.equals(SAMPLE_SCHEMA)
    assert reader.num_record_batches == (1 if num_rows else 0)
    assert reader.read_all().to_pylist() == [{name: ROWS[name][i] for name in ROWS} for i in range(num_rows)]


def test_columns_are_the_indexs_values_in_its_types(digits: Path) -> None:
    split = Split(digits, "train")
    for name in ("shard", "offset", "size", "label", "width", "height"):
        column = split.column(name)
        assert column.tolist() == split.samples.column(name).to_pylist()
        assert column.dtype == np.dtype(str(SAMPLE_SCHEMA.field(name).type))


def test_rows_are_found_by_key_in_the_order_asked(digits: Path) -> None:
    split = Split(digits, "train")
    assert split.rows_of(split.keys([700, 3, 1436])) == [700, 3, 1436]
    assert split.rows_of([]) == split.keys([]) == []
    with pytest.raises(InputError, match=f"^{split.folder} has no image absent$"):
        split.rows_of([*split.keys([5]), "absent", "absent-too"])


def test_a_miscounting_manifest_is_named(digits_copy: Path) -> None:
    path = digits_copy / "validation" / "manifest.json"
    path.write_text(path.read_text().replace('"num_images": 360', '"num_images": 361'))
    with pytest.raises(
        InputError, match=f"^{path} is damaged, it counts 361 images: delete {digits_copy}/validation and run"
    ):
        Split(digits_copy, "validation")


def test_a_file_appears_whole_and_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Synced before it gets its name; and its folder after, without which the name may not last."""
    path, partial, events = tmp_path / "x.json", tmp_path / ".x.json.partial", []
    fsync, replace_file = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        events.append(("fsync", str(Path(f"/proc/self/fd/{descriptor}").readlink()), path.exists()))
        fsync(descriptor)

    def noted_replace(old: Path, new: Path) -> None:
        events.append(("replace", Path(old).read_bytes(), str(new)))
        replace_file(old, new)

    monkeypatch.setattr("os.fsync", noted_fsync)
    monkeypatch.setattr("os.replace", noted_replace)
    num_open = len(os.listdir("/proc/self/fd"))
    write_whole(path, b"content")
    assert events == [
        ("fsync", str(partial), False),
        ("replace", b"content", str(path)),
        ("fsync", str(tmp_path), True),
    ]
    assert path.read_bytes() == b"content" and not partial.exists()
    assert len(os.listdir("/proc/self/fd")) == num_open


def test_a_write_that_fails_names_the_file_and_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_whole(path, b"new")
    assert (caught.value.errno, caught.value.filename) == (28, str(path))
    assert path.read_bytes() == b"old"
    with pytest.raises(OSError, match="No space"):
        sync_folder(tmp_path)
