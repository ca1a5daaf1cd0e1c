"""Damaged data ends in one line that names what to mend, never in a dead process or in wrong images."""

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import run_command

from loaders import EvalTransform, InputError, LoaderConfig, Split, TrainTransform, build_loader
from loaders.blame import DecodeError, explain_decode_error
from loaders.plan import Plan
from loaders.reader import Encoded
from prep.dataset import MANIFEST, SAMPLES

EVAL = EvalTransform(size=24, resize=28)
DAMAGED_ROW = 200  # in the fourth batch of 60, which is begun while earlier ones are being consumed

reading_backend = pytest.mark.parametrize("backend", ["dali", "reference"])

MEET_DAMAGE = """
import sys
from loaders import EvalTransform, InputError, LoaderConfig, Split, build_loader
split, config, met = Split(sys.argv[1], "validation"), LoaderConfig(sys.argv[2]), []
for _ in range(int(sys.argv[3])):
    try:
        list(build_loader(split, EvalTransform(24, 28), 60, config=config))
    except InputError as error:
        met.append(error)
print(len(met), flush=True)
raise met[-1]
"""


@pytest.fixture
def root(digits: Path, tmp_path: Path) -> Path:
    """A copy of the digits' validation split (300 and 60 images in two shards), to damage."""
    shutil.copytree(digits / "validation", tmp_path / "validation")
    return tmp_path


def _blank(split: Split, rows: list[int]) -> None:
    """Overwrite images with zeros where they lie, so that no size changes."""
    for row in rows:
        shard, offset, size = (int(split.column(name)[row]) for name in ("shard", "offset", "size"))
        with split.shard_paths[shard].open("r+b") as file:
            file.seek(offset)
            file.write(bytes(size))


def _consume(split: Split, backend: str, transform: TrainTransform | EvalTransform = EVAL) -> None:
    for _ in build_loader(split, transform, 60, config=LoaderConfig(backend)):
        pass


def _assert_one_line(error: BaseException) -> None:
    assert len(str(error).splitlines()) == 1


@reading_backend
def test_a_shard_that_shrinks_after_it_was_opened_is_named(root: Path, backend: str) -> None:
    split = Split(root, "validation")
    path = split.shard_paths[0]
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(InputError, match=f"{path} ends before its image 00000") as caught:
        _consume(split, backend)
    _assert_one_line(caught.value)


def test_a_shard_cut_inside_an_image_is_named_with_the_image(root: Path) -> None:
    split = Split(root, "validation")
    last = len(split) - 1
    offset, size = int(split.column("offset")[last]), int(split.column("size")[last])
    os.truncate(split.shard_paths[1], offset + size - 1)
    with pytest.raises(InputError, match=f"{split.shard_paths[1].name} ends before its image {split.keys([last])[0]}:"):
        _consume(split, "reference")


@reading_backend
def test_a_shard_that_vanishes_after_its_split_was_opened_is_named(root: Path, backend: str) -> None:
    split = Split(root, "validation")
    split.shard_paths[1].unlink()
    with pytest.raises(InputError, match=f"{split.shard_paths[1]} cannot be opened"):
        _consume(split, backend)
    open_files = [str(Path("/proc/self/fd", name).resolve()) for name in os.listdir("/proc/self/fd")]
    assert str(split.shard_paths[0]) not in open_files


def test_a_missing_shard_is_found_when_the_split_is_opened(root: Path) -> None:
    (root / "validation/validation-000001.tar").unlink()
    with pytest.raises(InputError, match=r"validation-000001\.tar is missing: `python prep/verify\.py"):
        Split(root, "validation")


def test_a_truncated_shard_is_found_when_the_split_is_opened(root: Path) -> None:
    os.truncate(root / "validation/validation-000000.tar", 1000)
    with pytest.raises(InputError, match=r"validation-000000\.tar has 1,000 bytes, not [\d,]+: `python prep/verify"):
        Split(root, "validation")


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_flip_a_bit, lambda path: os.truncate(path, 100), Path.unlink])
def test_a_damaged_sample_index_is_refused(root: Path, damage: Callable[[Path], object]) -> None:
    path = root / "validation" / SAMPLES
    damage(path)
    with pytest.raises(InputError, match=f"{path} .*: delete {root / 'validation'} and run") as caught:
        Split(root, "validation")
    _assert_one_line(caught.value)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "\xff\xfe", '{"format_version": 2}', '{"format_version": 2, "shards": 3}']
)
def test_a_damaged_manifest_is_refused(root: Path, content: str) -> None:
    path = root / "validation" / MANIFEST
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=f"{path} is damaged") as caught:
        Split(root, "validation")
    _assert_one_line(caught.value)


def test_a_manifest_of_another_format_is_refused(root: Path) -> None:
    path = root / "validation" / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 1}))
    with pytest.raises(InputError, match="is of format 1, this is Penstock for format 2"):
        Split(root, "validation")


def test_a_folder_without_a_manifest_says_how_to_prepare_one(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"manifest\.json does not exist: prepare the data with `python prep/shard\.py"
    ):
        Split(tmp_path, "train")


@reading_backend
@pytest.mark.parametrize("transform", [EVAL, TrainTransform(size=24)])
def test_an_image_that_cannot_be_decoded_is_named_with_its_shard(
    root: Path, backend: str, transform: TrainTransform | EvalTransform
) -> None:
    split = Split(root, "validation")
    _blank(split, [DAMAGED_ROW])
    with pytest.raises(DecodeError) as caught:
        _consume(split, backend, transform)
    assert caught.value.rows == [DAMAGED_ROW]
    key, shard = split.keys([DAMAGED_ROW])[0], split.shard_paths[0]
    assert str(caught.value).startswith(f"cannot decode {key} in {shard}: damaged on disk")
    _assert_one_line(caught.value)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("penstock")]


@reading_backend
def test_all_undecodable_images_of_a_batch_are_named(root: Path, backend: str) -> None:
    split = Split(root, "validation")
    _blank(split, [301, 303])
    with pytest.raises(DecodeError) as caught:
        _consume(split, backend)
    assert caught.value.rows == [301, 303]
    assert all(key in str(caught.value) for key in split.keys([301, 303]))
    assert str(split.shard_paths[1]) in str(caught.value)


@reading_backend
def test_what_was_consumed_before_the_damage_is_right_and_counted(root: Path, digits: Path, backend: str) -> None:
    split = Split(root, "validation")
    _blank(split, [350])
    loader = build_loader(split, EVAL, 10, config=LoaderConfig(backend, batches_ahead=1))
    whole = build_loader(Split(digits, "validation"), EVAL, 10, config=LoaderConfig(backend))
    num_batches = 0
    with pytest.raises(DecodeError):
        for batch, wanted in zip(loader, whole, strict=True):
            assert bool((batch.images_BCHW == wanted.images_BCHW).all())
            num_batches += 1
    assert num_batches >= 30
    assert loader.position == 10 * num_batches


@pytest.mark.parametrize(("backend", "num_times"), [("dali", 40), ("reference", 2)])
def test_a_process_that_meets_damage_lives_on_and_ends_by_itself(root: Path, backend: str, num_times: int) -> None:
    """No bus error, no crash, no thread that hangs. A header that its decoder fails to parse ended DALI 2.4 with a
    segmentation fault in one of about 16 tries."""
    split = Split(root, "validation")
    _blank(split, [DAMAGED_ROW])
    ended = run_command("-c", MEET_DAMAGE, root, backend, num_times, timeout=120)
    assert ended.returncode == 1, ended.stderr
    assert ended.stdout.split() == [str(num_times)]
    assert f"DecodeError: cannot decode {split.keys([DAMAGED_ROW])[0]} in " in ended.stderr.splitlines()[-1]


@reading_backend
def test_an_image_that_several_batches_hold_is_named_once(root: Path, backend: str) -> None:
    split = Split(root, "validation")
    _blank(split, [DAMAGED_ROW])
    with pytest.raises(DecodeError) as caught:
        next(iter(build_loader(split, TrainTransform(size=24), 1080, config=LoaderConfig(backend))))
    assert caught.value.rows == [DAMAGED_ROW]


def test_a_decoder_that_fails_on_sound_images_is_quoted_in_one_line() -> None:
    nothing = np.empty(0, np.int64)
    plan = Plan(0, 8, nothing, nothing, nothing, nothing, nothing, nothing)
    error = explain_decode_error([(plan, Encoded([], np.empty(0, np.uint8)))], RuntimeError("out of\nmemory" * 200))
    assert error.rows == []
    assert str(error).startswith("decoding failed, though Pillow decodes each image of the batch: out of memoryout of")
    assert len(str(error)) < 600
    _assert_one_line(error)
