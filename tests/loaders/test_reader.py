"""The reader gives each planned image its own bytes, in buffers that are used again."""

import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from loaders import EvalTransform, Loader, Split, TrainTransform, build_loader
from loaders.plan import Plan
from loaders.reader import Encoded, Reader
from loaders.stats import Counters
from prep.errors import InputError

BATCH_SIZE = 32


@pytest.fixture(scope="module")
def split(digits: Path) -> Split:
    return Split(digits, "train")


def _plans(loader: Loader, num_batches: int) -> Iterator[Plan]:
    return map(loader.plan, range(0, num_batches * BATCH_SIZE, BATCH_SIZE))


def _digests(split: Split, rows: np.ndarray) -> list[bytes]:
    return split.samples.column("sha256").take(rows).to_pylist()


@pytest.mark.parametrize("num_threads", [1, 3, 50])  # 50 are more than there are images in a batch
@pytest.mark.parametrize("transform", [TrainTransform(), EvalTransform()])
def test_every_image_has_the_bytes_of_its_row(
    split: Split, transform: TrainTransform | EvalTransform, num_threads: int
) -> None:
    loader, stats, seen = build_loader(split, transform, BATCH_SIZE), Counters(), []
    with Reader(split, num_threads, 2, stats) as reader:
        for plan, encoded in reader.read(_plans(loader, len(loader))):
            digests = [hashlib.sha256(image.tobytes()).digest() for image in encoded.images]
            assert digests == _digests(split, plan.rows_B)
            seen.append((plan.position, sum(len(image) for image in encoded.images)))
            reader.release(encoded)
    assert [position for position, _ in seen] == list(range(0, len(loader) * BATCH_SIZE, BATCH_SIZE))
    assert stats.read_bytes == sum(size_bytes for _, size_bytes in seen)


def test_a_batch_stays_as_it_is_until_it_is_released(split: Split) -> None:
    loader = build_loader(split, TrainTransform(), BATCH_SIZE)
    kept: list[tuple[Plan, Encoded]] = []
    with Reader(split, 2, 2, Counters()) as reader:
        for number, (plan, encoded) in enumerate(reader.read(_plans(loader, 20))):
            if number % 2:
                reader.release(encoded)
            else:
                kept.append((plan, encoded))
    for plan, encoded in kept:
        assert [hashlib.sha256(image.tobytes()).digest() for image in encoded.images] == _digests(split, plan.rows_B)


@pytest.mark.parametrize("batches_ahead", [1, 4])
def test_released_buffers_are_used_again(split: Split, batches_ahead: int) -> None:
    loader = build_loader(split, TrainTransform(), BATCH_SIZE)
    buffers: dict[int, np.ndarray] = {}
    with Reader(split, 2, batches_ahead, Counters()) as reader:
        for _, encoded in reader.read(_plans(loader, 200)):
            buffers[id(encoded.buffer)] = encoded.buffer  # kept alive, so that no other gets its id
            reader.release(encoded)
    assert len(buffers) <= batches_ahead + 2


@pytest.mark.parametrize("growth", [1.1, 1.5, 10])  # a buffer has room for 1.25 times what it was made for
def test_batches_that_grow_and_shrink_again_are_read_whole(split: Split, growth: float) -> None:
    small, large = (build_loader(split, EvalTransform(), batch_size) for batch_size in (20, int(20 * growth)))
    plans = map(Loader.plan, [small] * 4 + [large] * 4 + [small] * 4, range(0, 1200, 100))
    buffers: dict[int, np.ndarray] = {}
    with Reader(split, 1, 1, Counters()) as reader:
        for plan, encoded in reader.read(plans):
            digests = [hashlib.sha256(image.tobytes()).digest() for image in encoded.images]
            assert digests == _digests(split, plan.rows_B)
            buffers[id(encoded.buffer)] = encoded.buffer
            reader.release(encoded)
    assert len(buffers) <= 6


def test_buffers_that_have_become_too_small_are_let_go(split: Split) -> None:
    growing = [build_loader(split, EvalTransform(), 2**i) for i in range(11)]
    with Reader(split, 1, 1, Counters()) as reader:
        for _, encoded in reader.read(loader.plan(0) for loader in growing):
            reader.release(encoded)
        assert len(reader.free) <= 3


def test_the_reader_runs_only_so_far_ahead(split: Split) -> None:
    loader, planned = build_loader(split, TrainTransform(), BATCH_SIZE), 0

    def plans() -> Iterator[Plan]:
        nonlocal planned
        for plan in _plans(loader, 100):
            planned += 1
            yield plan

    with Reader(split, 2, 3, Counters()) as reader:
        for number, _ in enumerate(islice(reader.read(plans()), 10)):
            assert planned == number + 4


def test_more_shards_than_open_files_allowed_is_said_before_reading(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (64, 128))
    with pytest.raises(InputError, match=r"5 shards need 261 open files, the limit is 128: raise `ulimit -Hn`"):
        Reader(split, 1, 1, Counters())


def test_a_low_soft_limit_of_open_files_is_raised(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    raised = []
    monkeypatch.setattr("resource.getrlimit", lambda _: (64, 4096))
    monkeypatch.setattr("resource.setrlimit", lambda _, limits: raised.append(limits))
    with Reader(split, 1, 1, Counters()):
        assert raised == [(261, 4096)]
