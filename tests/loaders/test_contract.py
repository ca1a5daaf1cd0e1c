"""The contract of every backend: the same batches in the same form, for any number of threads and processes."""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from loaders import Batch, EvalTransform, Loader, LoaderConfig, Sampling, Split, TrainTransform, World, build_loader
from loaders.backends import BACKENDS
from loaders.config import default_num_threads
from loaders.order import epoch_order
from prep.errors import InputError

TRAIN, EVAL = TrainTransform(size=24), EvalTransform(size=24, resize=28)
DECODING = sorted(set(BACKENDS) - {"synthetic"})  # those whose images are the split's

every_backend = pytest.mark.parametrize("backend", BACKENDS)
decoding_backend = pytest.mark.parametrize("backend", DECODING)


@pytest.fixture(scope="module")
def train(digits: Path) -> Split:
    return Split(digits, "train")


@pytest.fixture(scope="module")
def validation(digits: Path) -> Split:
    return Split(digits, "validation")


def _images(batches: Iterator[Batch] | Loader, num_batches: int | None = None) -> torch.Tensor:
    return torch.cat([batch.images_BCHW for batch in islice(batches, num_batches)])


@every_backend
@pytest.mark.parametrize("transform", [TRAIN, EVAL])
def test_a_batch_is_uint8_channels_last_with_a_label_for_each_image(
    train: Split, backend: str, transform: TrainTransform | EvalTransform
) -> None:
    for batch in islice(build_loader(train, transform, 10, config=LoaderConfig(backend)), 3):
        assert batch.images_BCHW.shape == (10, 3, 24, 24)
        assert batch.images_BCHW.dtype == torch.uint8
        assert batch.images_BCHW.is_contiguous(memory_format=torch.channels_last)
        assert not batch.images_BCHW.is_contiguous()
        assert (batch.labels_B.dtype, batch.valid_B.dtype) == (torch.int64, torch.bool)
        assert batch.labels_B.tolist() == train.column("label")[batch.rows_B].tolist()
        assert {t.device.type for t in (batch.images_BCHW, batch.labels_B, batch.valid_B)} == {"cpu"}


@every_backend
def test_training_batches_follow_the_plan(train: Split, backend: str) -> None:
    batches = list(islice(build_loader(train, TRAIN, 200, sampling=Sampling(3), config=LoaderConfig(backend)), 9))
    orders = [epoch_order(Sampling(3), epoch, len(train)) for epoch in (0, 1)]
    rows = np.concatenate([batch.rows_B for batch in batches])
    assert [batch.position for batch in batches] == list(range(0, 1800, 200))
    assert rows.tolist() == np.concatenate(orders)[:1800].tolist()  # the eighth batch straddles two epochs
    assert all(batch.valid_B.all() for batch in batches)


@every_backend
def test_evaluation_is_one_padded_pass_in_the_order_of_the_index(validation: Split, backend: str) -> None:
    loader = build_loader(validation, EVAL, 100, config=LoaderConfig(backend))
    batches = list(loader)
    assert len(batches) == len(loader) == 4
    assert [batch.position for batch in batches] == [0, 100, 200, 300]
    assert [int(batch.valid_B.sum()) for batch in batches] == [100, 100, 100, 60]
    assert batches[-1].valid_B.tolist() == [True] * 60 + [False] * 40
    rows = np.concatenate([batch.rows_B[batch.valid_B.numpy()] for batch in batches])
    assert rows.tolist() == list(range(len(validation)))


@every_backend
def test_two_evaluation_passes_are_the_same(validation: Split, backend: str) -> None:
    loader = build_loader(validation, EVAL, 64, config=LoaderConfig(backend))
    first, second = list(loader), list(loader)
    assert len(first) == len(second) == 6
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.images_BCHW, other.images_BCHW)
        assert torch.equal(one.labels_B, other.labels_B)
        assert one.position == other.position


@decoding_backend
@pytest.mark.parametrize("transform", [TRAIN, EVAL])
def test_threads_and_batches_ahead_change_nothing(
    train: Split, backend: str, transform: TrainTransform | EvalTransform
) -> None:
    configs = [LoaderConfig(backend, 1, 1), LoaderConfig(backend, 4, 1), LoaderConfig(backend, 3, 5)]
    images = [_images(build_loader(train, transform, 16, config=config), 6) for config in configs]
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])


@decoding_backend
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("transform", [TRAIN, EVAL])
def test_the_ranks_of_a_world_share_out_the_global_batch(
    validation: Split, backend: str, world_size: int, transform: TrainTransform | EvalTransform
) -> None:
    def batches(world: World) -> list[Batch]:
        return list(islice(build_loader(validation, transform, 150, world, config=LoaderConfig(backend)), 3))

    ranks = [batches(World(rank, world_size)) for rank in range(world_size)]
    for whole, *parts in zip(batches(World()), *ranks, strict=True):  # the third batch is padded, or straddles
        assert {part.position for part in parts} == {whole.position}
        shown, valid_B = _valid(whole), torch.cat([part.valid_B for part in parts])
        assert len(valid_B) == len(whole.valid_B) and valid_B.sum() == whole.valid_B.sum()
        counts = [int(part.valid_B.sum()) for part in parts]
        assert max(counts) - min(counts) <= 1
        for everyones, alone in zip(zip(*map(_valid, parts), strict=True), shown, strict=True):
            assert torch.equal(torch.cat(everyones), alone)


def _valid(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the images, labels and rows of a batch, without padding."""
    valid_B = batch.valid_B
    return batch.images_BCHW[valid_B], batch.labels_B[valid_B], torch.from_numpy(batch.rows_B)[valid_B]


@decoding_backend
def test_seeds_and_epochs_show_other_images(validation: Split, backend: str) -> None:
    num_images = len(validation)
    epochs = list(islice(build_loader(validation, TRAIN, num_images, config=LoaderConfig(backend)), 2))
    other = next(iter(build_loader(validation, TRAIN, num_images, sampling=Sampling(1), config=LoaderConfig(backend))))
    assert epochs[0].rows_B.tolist() != epochs[1].rows_B.tolist()
    assert epochs[0].rows_B.tolist() != other.rows_B.tolist()
    by_row = [batch.images_BCHW[np.argsort(batch.rows_B)] for batch in (*epochs, other)]
    assert (by_row[0] != by_row[1]).flatten(1).any(dim=1).float().mean() > 0.9  # other windows of the same images
    assert (by_row[0] != by_row[2]).flatten(1).any(dim=1).float().mean() > 0.9


@decoding_backend
def test_hflip_mirrors_the_same_window(validation: Split, backend: str) -> None:
    images = [
        _images(build_loader(validation, TrainTransform(size=24, hflip=hflip), 30, config=LoaderConfig(backend)), 1)
        for hflip in (0.0, 1.0)
    ]
    # A mirrored resize may round its sums the other way, by 1 of 255.
    assert (images[0].flip(3).int() - images[1].int()).abs().max() <= 1
    assert (images[0].int() - images[1].int()).abs().max() > 50


@decoding_backend
def test_a_dataset_smaller_than_a_batch_fills_it_from_several_epochs(validation: Split, backend: str) -> None:
    batch = next(iter(build_loader(validation, TRAIN, 800, config=LoaderConfig(backend))))
    assert batch.images_BCHW.shape[0] == 800
    assert np.bincount(batch.rows_B, minlength=360).tolist() != [2] * 360
    assert set(np.bincount(batch.rows_B[:720], minlength=360).tolist()) == {2}
    assert int(batch.valid_B.sum()) == 800


@every_backend
def test_stats_count_what_was_handed_over(validation: Split, backend: str) -> None:
    loader = build_loader(validation, EVAL, 60, config=LoaderConfig(backend))
    list(loader)
    assert loader.stats().num_batches == 6
    assert loader.stats().read_bytes == (int(validation.column("size").sum()) if backend in DECODING else 0)


@pytest.mark.parametrize(
    ("batch_size", "world_size", "nearest"),
    [(10, 3, "9 or 12"), (2, 4, "4 or 8"), (0, 2, "2 or 4"), (-3, 1, "1 or 2")],
)
def test_a_batch_that_does_not_divide_names_the_nearest_that_do(
    train: Split, batch_size: int, world_size: int, nearest: str
) -> None:
    with pytest.raises(InputError, match=f"processes, {world_size}, got {batch_size}: use {nearest}$"):
        build_loader(train, TRAIN, batch_size, World(0, world_size))


def test_an_unknown_backend_is_answered_with_those_there_are(train: Split) -> None:
    with pytest.raises(InputError, match=re.escape(f"backend dolly: choose from {', '.join(BACKENDS)}")):
        next(iter(build_loader(train, TRAIN, 8, config=LoaderConfig("dolly"))))


def test_a_crop_larger_than_the_resized_image_is_refused(train: Split) -> None:
    with pytest.raises(InputError, match="resize must be at least the crop's size, 32 pixels, got 31"):
        build_loader(train, EvalTransform(size=32, resize=31), 8)
    assert build_loader(train, EvalTransform(size=32, resize=32), 8)


def test_a_negative_seed_is_refused(train: Split) -> None:
    with pytest.raises(InputError, match="seed must be at least 0, got -1"):
        build_loader(train, TRAIN, 8, sampling=Sampling(-1))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LoaderConfig(num_threads=-1), "num_threads must be at least 1, or 0 for a share of the cores, got -1"),
        (LoaderConfig(batches_ahead=0), "batches_ahead must be at least 1, got 0"),
    ],
)
def test_thread_and_queue_counts_out_of_range_are_refused(train: Split, config: LoaderConfig, message: str) -> None:
    """Zero batches ahead would make the queue endless, not short."""
    with pytest.raises(InputError, match=message):
        build_loader(train, TRAIN, 8, config=config)


def test_processes_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(24)))
    assert [default_num_threads(World(local_size=size)) for size in (1, 2, 8, 100)] == [16, 12, 3, 1]
