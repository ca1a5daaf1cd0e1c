"""Damaged data ends in one line that names what to repair, never in a dead process or in wrong images."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from loaders import EvalTransform, LoaderConfig, Split, build_loader
from prep.dataset import MANIFEST, SAMPLES
from prep.errors import InputError

EVAL = EvalTransform(size=24, resize=28)

reading_backend = pytest.mark.parametrize("backend", ["dali", "reference"])


def _consume(split: Split, backend: str) -> None:
    for _ in build_loader(split, EVAL, 60, config=LoaderConfig(backend)):
        pass


def _assert_one_line(error: BaseException) -> None:
    assert len(str(error).splitlines()) == 1


@reading_backend
def test_a_shard_that_shrinks_after_it_was_opened_is_named(digits_copy: Path, backend: str) -> None:
    split = Split(digits_copy, "validation")
    path = split.shard_paths[0]
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(InputError, match=f"{path} ends before its image 00000") as caught:
        _consume(split, backend)
    _assert_one_line(caught.value)


def test_a_shard_cut_inside_an_image_is_named_with_the_image(digits_copy: Path) -> None:
    split = Split(digits_copy, "validation")
    last = len(split) - 1
    offset, size = int(split.column("offset")[last]), int(split.column("size")[last])
    os.truncate(split.shard_paths[1], offset + size - 1)
    with pytest.raises(InputError, match=f"{split.shard_paths[1].name} ends before its image {split.keys([last])[0]}:"):
        _consume(split, "reference")


@reading_backend
def test_a_shard_that_vanishes_after_its_split_was_opened_is_named(digits_copy: Path, backend: str) -> None:
    split = Split(digits_copy, "validation")
    split.shard_paths[1].unlink()
    with pytest.raises(InputError, match=f"{split.shard_paths[1]} cannot be opened"):
        _consume(split, backend)
    open_files = [str(Path("/proc/self/fd", name).resolve()) for name in os.listdir("/proc/self/fd")]
    assert str(split.shard_paths[0]) not in open_files


def test_a_missing_shard_is_found_when_the_split_is_opened(digits_copy: Path) -> None:
    (digits_copy / "validation/validation-000001.tar").unlink()
    with pytest.raises(InputError, match=r"validation-000001\.tar is missing: `python prep/verify\.py"):
        Split(digits_copy, "validation")


def test_a_truncated_shard_is_found_when_the_split_is_opened(digits_copy: Path) -> None:
    os.truncate(digits_copy / "validation/validation-000000.tar", 1000)
    with pytest.raises(InputError, match=r"validation-000000\.tar has 1,000 bytes, not [\d,]+: `python prep/verify"):
        Split(digits_copy, "validation")


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_flip_a_bit, lambda path: os.truncate(path, 100), Path.unlink])
def test_a_damaged_sample_index_is_refused(digits_copy: Path, damage: Callable[[Path], object]) -> None:
    path = digits_copy / "validation" / SAMPLES
    damage(path)
    with pytest.raises(InputError, match=f"{path} .*: delete {digits_copy / 'validation'} and run") as caught:
        Split(digits_copy, "validation")
    _assert_one_line(caught.value)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "\xff\xfe", '{"format_version": 2}', '{"format_version": 2, "shards": 3}']
)
def test_a_damaged_manifest_is_refused(digits_copy: Path, content: str) -> None:
    path = digits_copy / "validation" / MANIFEST
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=f"{path} is damaged") as caught:
        Split(digits_copy, "validation")
    _assert_one_line(caught.value)


def test_a_manifest_of_another_format_is_refused(digits_copy: Path) -> None:
    path = digits_copy / "validation" / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 1}))
    with pytest.raises(InputError, match="has format 1, this version of Penstock reads formats 2 and 3"):
        Split(digits_copy, "validation")


def test_a_folder_without_a_manifest_says_how_to_prepare_one(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"manifest\.json does not exist: prepare the data with `python prep/shard\.py"
    ):
        Split(tmp_path, "train")
