"""Execute the code in docs/format.md, unchanged, on what `prep/` writes."""

import hashlib
import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import CHECKOUT
from helpers.tars import adopt, encode_image, images, one_by_one, write_tar

from prep.checks import check_dataset, find_layout
from prep.dataset import Manifest, Split

BLOCKS = re.findall(r"```python\n(.*?)```", (CHECKOUT / "docs" / "format.md").read_text(), re.DOTALL)


def block_of(words: str) -> str:
    """The one block of the document with some words."""
    (block,) = [block for block in BLOCKS if words in block]
    return block


def execute(block: str, **names: Any) -> dict[str, Any]:
    found = {"hashlib": hashlib, "json": json, "tarfile": tarfile, "Path": Path, **names}
    exec(block, found)
    return found


def find_faults(dataset: Path) -> list[str]:
    return [fault.line for fault in check_dataset(find_layout(str(dataset)), 0, one_by_one).faults]


@pytest.fixture
def dataset(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Prepared digits, as the current folder."""
    shutil.copytree(digits, tmp_path / "digits")
    monkeypatch.chdir(tmp_path / "digits")
    return tmp_path / "digits"


def test_a_manifests_digest_is_that_of_the_document(dataset: Path) -> None:
    assert execute(block_of("manifest_sha256"))["text"] == (dataset / "train" / "manifest.json").read_text()


def test_a_manifest_of_adopted_tars_with_a_reading_is_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar = write_tar(tmp_path / "ä.tar", [*images(0), ("x.jpg", encode_image()), ("x.cls", b"1"), ("x.a.cls", b"2")])
    split = adopt(tmp_path, tar)
    assert split.manifest.reading["passed_over"]
    monkeypatch.chdir(tmp_path)
    assert execute(block_of("manifest_sha256"))["text"] == (split.folder / "manifest.json").read_text()


def test_a_manifest_that_is_written_by_the_document_is_whole(dataset: Path) -> None:
    """Write a manifest as other software would: other facts, then digest and form from the document alone."""
    path = dataset / "train" / "manifest.json"
    changed = {**json.loads(path.read_text()), "class_names": [*"abcdefghi", "zehn ✓"]}
    path.write_text(json.dumps(changed))
    assert any("does not match its own digest" in line for line in find_faults(dataset))
    block = block_of("manifest_sha256").replace("assert computed == stated\n", "")
    path.write_text(execute(block)["text"])
    assert find_faults(dataset) == []


def test_a_manifest_from_before_the_key_reading_is_whole(dataset: Path) -> None:
    path = dataset / "train" / "manifest.json"
    fields = json.loads(path.read_text())
    fields.pop("reading", None)
    path.write_text(json.dumps(fields))
    block = block_of("manifest_sha256").replace("assert computed == stated\n", "")
    path.write_text(execute(block)["text"])
    assert find_faults(dataset) == []
    assert Manifest.from_json(path.read_text()).reading == {}


def test_a_tars_digest_is_that_of_the_document(dataset: Path) -> None:
    split = Split(dataset, "train")
    for path, shard in zip(split.shard_paths, split.manifest.shards, strict=True):
        assert execute(block_of("tarfile"), path=path)["digest"].hexdigest() == shard.composite_sha256


def test_an_image_is_read_as_the_document_says(dataset: Path) -> None:
    found = execute(block_of("memory_map"))
    assert hashlib.sha256(found["jpeg"]).digest() == found["row"]["sha256"]
