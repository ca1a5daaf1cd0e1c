"""Images that cannot be decoded do not end a run: training shows others, evaluation counts them as wrong."""

import io
import logging
import threading
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import run_command
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from loaders import Batch, EvalTransform, Loader, LoaderConfig, Split, TrainTransform, build_loader
from loaders.order import Sampling, epoch_order, find_substitute
from loaders.plan import Images, eval_plan, train_plan
from loaders.quarantine import DecodeError, explain_shortage, find_bad_images
from prep.errors import InputError

TRAIN, EVAL = TrainTransform(size=24), EvalTransform(size=24, resize=28)
DAMAGED = [17, 200, 201, 359]  # of 360; batches are begun while earlier ones are being consumed

reading_backend = pytest.mark.parametrize("backend", ["dali", "reference"])
both_transforms = pytest.mark.parametrize("transform", [TRAIN, EVAL])

MEET_DAMAGE = """
import sys
from loaders import EvalTransform, InputError, LoaderConfig, Split, build_loader
split, config, met = Split(sys.argv[1], "validation"), LoaderConfig(sys.argv[2], most_damaged=0), []
for _ in range(int(sys.argv[3])):
    try:
        list(build_loader(split, EvalTransform(24, 28), 60, config=config))
    except InputError as error:
        met.append(error)
print(len(met), flush=True)
raise met[-1]
"""


def _overwrite(split: Split, rows: list[int], content: bytes = b"") -> None:
    """Put `content` and zeros where images lie, so that no size changes."""
    for row in rows:
        shard, offset, size = (int(split.column(name)[row]) for name in ("shard", "offset", "size"))
        with split.shard_paths[shard].open("r+b") as file:
            file.seek(offset)
            file.write(content[:size].ljust(size, b"\0"))


def _loader(split: Split, backend: str, transform: TrainTransform | EvalTransform, most_damaged: int = 100) -> Loader:
    return build_loader(split, transform, 60, config=LoaderConfig(backend, most_damaged=most_damaged))


def _epochs(loader: Loader, num_batches: int = 12) -> list[Batch]:
    return list(islice(loader, num_batches))


def _image_of(batch: Batch, i: int) -> list[int]:
    return batch.images_BCHW[i].flatten().tolist()


@reading_backend
def test_training_continues_with_the_next_sound_image_and_changes_no_other(
    digits_copy: Path, digits: Path, backend: str
) -> None:
    split = Split(digits_copy, "validation")
    _overwrite(split, DAMAGED)
    loader = _loader(split, backend, TRAIN)
    ours, whole = _epochs(loader), _epochs(_loader(Split(digits, "validation"), backend, TRAIN))
    damaged, num_replaced = np.array(DAMAGED), 0
    for batch, wanted in zip(ours, whole, strict=True):
        assert batch.labels_B.tolist() == split.column("label")[batch.rows_B].tolist()
        for i, (row, planned) in enumerate(zip(batch.rows_B.tolist(), wanted.rows_B.tolist(), strict=True)):
            if planned in DAMAGED:
                assert row == find_substitute(Sampling(), wanted.position + i, len(split), damaged)
                num_replaced += 1
            else:
                assert row == planned and _image_of(batch, i) == _image_of(wanted, i)
    assert num_replaced == 2 * len(DAMAGED)
    assert loader.quarantine.rows.tolist() == DAMAGED
    assert loader.stats().num_damaged == len(DAMAGED)


@reading_backend
def test_evaluation_shows_black_and_flags_it_and_changes_no_other(
    digits_copy: Path, digits: Path, backend: str
) -> None:
    split = Split(digits_copy, "validation")
    _overwrite(split, DAMAGED)
    ours, whole = list(_loader(split, backend, EVAL)), list(_loader(Split(digits, "validation"), backend, EVAL))
    flagged = []
    for batch, wanted in zip(ours, whole, strict=True):
        assert batch.rows_B.tolist() == wanted.rows_B.tolist()
        assert batch.labels_B.tolist() == wanted.labels_B.tolist()
        flagged += batch.rows_B[batch.damaged_B.numpy()].tolist()
        for i, is_damaged in enumerate(batch.damaged_B.tolist()):
            assert _image_of(batch, i) == ([0] * (3 * 24 * 24) if is_damaged else _image_of(wanted, i))
    assert flagged == DAMAGED
    assert not any(batch.damaged_B.any() for batch in whole)


@reading_backend
def test_an_image_smaller_than_its_index_says_is_quarantined(digits_copy: Path, backend: str) -> None:
    split, tiny = Split(digits_copy, "validation"), io.BytesIO()
    Image.new("RGB", (4, 4)).save(tiny, "JPEG", quality=10, optimize=True)
    assert len(tiny.getvalue()) <= split.column("size")[17]
    _overwrite(split, [17], tiny.getvalue())
    loader = _loader(split, backend, EVAL)
    list(loader)
    assert loader.quarantine.rows.tolist() == [17]


@reading_backend
def test_what_is_quarantined_is_said_once_with_its_shard(
    digits_copy: Path, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    split = Split(digits_copy, "validation")
    _overwrite(split, [200])
    with caplog.at_level(logging.WARNING, "penstock"):
        _epochs(_loader(split, backend, TRAIN))
    (line,) = [record.getMessage() for record in caplog.records]
    key, shard = split.keys([200])[0], split.shard_paths[0]
    assert line.startswith(f"{key} in {shard} cannot be decoded: another image takes its place from now on (")
    assert len(line.splitlines()) == 1


@reading_backend
def test_a_saved_state_brings_the_quarantine_along(
    digits_copy: Path, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    split = Split(digits_copy, "validation")
    _overwrite(split, DAMAGED)
    first = _loader(split, backend, TRAIN)
    undisturbed = _epochs(first)
    state = first.state_dict()
    assert state["damaged"] == split.keys(DAMAGED)
    second = _loader(split, backend, TRAIN)
    second.load_state_dict({**state, "position": 0})
    caplog.clear()
    assert [b.rows_B.tolist() for b in _epochs(second)] == [b.rows_B.tolist() for b in undisturbed]
    assert not caplog.records


def test_a_state_that_names_an_unknown_image_is_refused(digits: Path) -> None:
    loader = _loader(Split(digits, "validation"), "dali", TRAIN)
    with pytest.raises(InputError, match="validation has no image 0000nobody"):
        loader.load_state_dict({**loader.state_dict(), "damaged": ["0000nobody"]})


@reading_backend
@both_transforms
def test_more_damaged_images_than_allowed_end_the_run_with_their_list(
    digits_copy: Path, backend: str, transform: TrainTransform | EvalTransform
) -> None:
    split = Split(digits_copy, "validation")
    _overwrite(split, DAMAGED)
    assert _epochs(_loader(split, backend, transform, most_damaged=4))
    with pytest.raises(DecodeError) as caught:
        _epochs(_loader(split, backend, transform, most_damaged=3))
    shards = split.column("shard")
    for row, key in zip(DAMAGED, split.keys(DAMAGED), strict=True):
        assert f"{key} in {split.shard_paths[shards[row]]}" in str(caught.value)
    assert "more than the 3 damaged images with which a run may continue (loader.most_damaged)" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("penstock")]


@reading_backend
def test_a_long_list_is_cut_short(digits_copy: Path, backend: str) -> None:
    split = Split(digits_copy, "validation")
    _overwrite(split, list(range(60)))
    with pytest.raises(DecodeError, match=r" and 40 more: more than the 0") as caught:
        _epochs(_loader(split, backend, EVAL, most_damaged=0))
    assert caught.value.rows == list(range(60))


@pytest.mark.parametrize(("backend", "num_times"), [("dali", 40), ("reference", 2)])
def test_a_process_that_meets_damage_lives_on_and_ends_by_itself(
    digits_copy: Path, backend: str, num_times: int
) -> None:
    """No bus error, no crash, no thread that hangs. A header that its decoder fails to parse ended DALI 2.4 with a
    segmentation fault in one of about 16 tries."""
    split = Split(digits_copy, "validation")
    _overwrite(split, [200])
    ended = run_command("-c", MEET_DAMAGE, digits_copy, backend, num_times, timeout=120)
    assert ended.returncode == 1, ended.stderr
    assert ended.stdout.split() == [str(num_times)]
    assert f"DecodeError: cannot decode {split.keys([200])[0]} in " in ended.stderr.splitlines()[-1]


def test_a_decoder_that_fails_on_sound_images_is_quoted_in_one_line() -> None:
    error = find_bad_images([], lambda plan, encoded: [], RuntimeError("worn out"), "worn\nout " * 200)
    assert isinstance(error, DecodeError) and error.rows == []
    assert str(error).startswith("decoding failed, though each image of the batch can be decoded alone: worn out worn")
    assert len(str(error).splitlines()) == 1 and len(str(error)) < 600


def _never_allocates(*_: object, **__: object) -> Any:
    raise RuntimeError(
        "Critical error in pipeline:\nError in CPU operator encountered:\n"
        "CUDA runtime API error cudaErrorMemoryAllocation (2):\nout of memory"
    )


def _allocate_too_much(*_: object, **__: object) -> Any:
    return torch.empty(1 << 50, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("backend", "place", "allocate"),
    [
        ("dali", "nvidia.dali.Pipeline.run", _never_allocates),
        ("dali", "loaders.resize.RESIZE_BATCH", _allocate_too_much),
        ("reference", "loaders.reference.render", _allocate_too_much),
    ],
)
def test_a_shortage_of_memory_takes_no_image_for_damaged(
    digits: Path, backend: str, place: str, allocate: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = _loader(Split(digits, "validation"), backend, TRAIN)
    monkeypatch.setattr(place, allocate)
    with pytest.raises((InputError, RuntimeError)) as ended:
        _epochs(loader)
    assert len(loader.quarantine) == 0
    shortage = ended.value if isinstance(ended.value, InputError) else explain_shortage(ended.value)
    assert str(shortage).startswith("too little memory (")
    assert len(str(shortage).splitlines()) == 1 and "alloc" in str(shortage).lower()


def test_only_a_failed_allocation_is_a_shortage_of_memory() -> None:
    assert explain_shortage(MemoryError())
    assert explain_shortage(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."))
    assert not explain_shortage(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not explain_shortage(InputError("out of memory is what the user's file is called"))


@settings(deadline=None, derandomize=True)
@given(
    st.integers(1, 40),
    st.integers(0, 200),
    st.sets(st.integers(0, 39), max_size=39),
    st.integers(0, 2**40),
    st.sampled_from([1, 2, 5]),
)
def test_a_substitute_is_the_next_sound_row_of_the_epoch(
    num_images: int, position: int, damaged: set[int], seed: int, repeats: int
) -> None:
    damaged = {row for row in damaged if row < num_images - 1}  # at least one is sound
    sampling = Sampling(seed, repeats=repeats)
    found = find_substitute(sampling, position, num_images, np.array(sorted(damaged), np.int64))
    epoch, place = position // num_images, position % num_images // repeats
    order = epoch_order(Sampling(seed), epoch, num_images).tolist()
    assert found == next(row for row in order[place:] + order[:place] if row not in damaged)


def test_a_plan_without_its_damaged_rows_keeps_all_else() -> None:
    sizes = np.full(50, 300), np.full(50, 200)
    whole = train_plan(Sampling(), 0, range(100), Images(*sizes), TRAIN)
    ours = train_plan(Sampling(), 0, range(100), Images(*sizes, damaged_D=np.array([3, 30])), TRAIN)
    kept = ~np.isin(whole.rows_B, [3, 30])
    assert kept.sum() == 96
    assert (ours.rows_B[kept] == whole.rows_B[kept]).all() and not np.isin(ours.rows_B, [3, 30]).any()
    assert (ours.windows_B4 == whole.windows_B4).all()  # all images are of one size: the randomness is the place's
    assert not ours.damaged_B.any()


def test_an_evaluation_plan_keeps_the_row_and_takes_the_black_image() -> None:
    images = Images(np.full(9, 300), np.full(9, 200), np.array([4]))
    plan = eval_plan(0, range(9), images, EVAL)
    assert plan.rows_B.tolist() == list(range(9))
    assert plan.damaged_B.tolist() == [row == 4 for row in range(9)]
    assert plan.windows_B4[4].tolist() == [0, 0, 64, 64] and plan.resized_B2[4].tolist() == [28, 28]
