"""Block order: a permutation that reads in runs; subsets; progressive resolution; and what is read ahead."""

import re
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loaders import LoaderConfig, Sampling, Split, TrainTransform, World, build_loader, select
from loaders.config import MAX_SIZES
from loaders.order import BLOCK_IMAGES, GROUP_BLOCKS, epoch_order
from loaders.plan import size_at, sizes
from loaders.reader import WINDOW_IMAGES, ReadAhead, merge_runs
from loaders.subset import find_classes
from prep.errors import InputError
from train.recipe import RECIPES

BLOCKS = Sampling(order="blocks")
GROUP_IMAGES = BLOCK_IMAGES * GROUP_BLOCKS
reproducible = settings(deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def train(digits: Path) -> Split:
    return Split(digits, "train")


@reproducible
@given(st.integers(0, 2**63 - 1), st.integers(0, 1000), st.integers(1, 20_000))
def test_block_order_is_a_permutation(seed: int, epoch: int, num_images: int) -> None:
    order_N = epoch_order(Sampling(seed, "blocks"), epoch, num_images)
    assert sorted(order_N.tolist()) == list(range(num_images))


def test_a_group_holds_whole_blocks_from_all_over_the_index() -> None:
    num_images = 40 * GROUP_IMAGES
    order_N = epoch_order(BLOCKS, 0, num_images)
    groups = order_N.reshape(40, GROUP_IMAGES)
    for group in groups:
        blocks, counts = np.unique(group // BLOCK_IMAGES, return_counts=True)
        assert len(blocks) == GROUP_BLOCKS and set(counts) == {BLOCK_IMAGES}
        assert np.abs(np.diff(group)).mean() > num_images / 4  # shuffled: two random rows of N are N / 3 apart
    assert len(np.unique(groups[0] // (4 * GROUP_IMAGES))) == 10  # no tenth of the index is left out


def test_block_order_differs_between_epochs_and_seeds_and_from_shuffling() -> None:
    samplings = [Sampling(seed, order) for seed in (0, 1) for order in ("shuffle", "blocks")]
    orders = [tuple(epoch_order(sampling, epoch, 5000).tolist()) for sampling in samplings for epoch in (0, 1)]
    assert len(set(orders)) == 8


def test_block_order_is_frozen() -> None:
    """Golden: another order would make saved positions mean other images."""
    assert epoch_order(Sampling(5, "blocks"), 0, 3 * GROUP_IMAGES)[:6].tolist() == [
        2533,
        9378,
        3770,
        10069,
        10101,
        8292,
    ]


@pytest.mark.parametrize("backend", ["dali", "reference"])
def test_a_loader_follows_block_order_and_reads_ahead(train: Split, backend: str) -> None:
    loader = build_loader(train, TrainTransform(size=24), 100, sampling=BLOCKS, config=LoaderConfig(backend))
    rows = np.concatenate([batch.rows_B for batch in islice(loader, 30)])
    expected = np.concatenate([epoch_order(BLOCKS, epoch, len(train)) for epoch in range(3)])
    assert rows.tolist() == expected[:3000].tolist()


@pytest.mark.parametrize("local_size", [1, 3])
def test_the_processes_of_a_machine_read_every_image_of_a_window_ahead(train: Split, local_size: int) -> None:
    shards, offsets, sizes = (train.column(name) for name in ("shard", "offset", "size"))
    worlds = [World(rank, local_size, rank, local_size) for rank in range(local_size)]
    runs = np.concatenate([ReadAhead(train, BLOCKS, world).find_runs(0) for world in worlds])
    assert len(train) < WINDOW_IMAGES  # so the first window is everything
    for row in range(len(train)):
        of_shard = runs[runs[:, 0] == shards[row]]
        assert ((of_shard[:, 1] <= offsets[row]) & (of_shard[:, 2] >= offsets[row] + sizes[row])).any()


def test_runs_are_as_long_as_the_gaps_allow() -> None:
    shards, offsets = np.array([1, 0, 0, 0]), np.array([0, 5 << 20, 0, 1000])
    runs = merge_runs(shards, offsets, np.array([10, 20, 30, 40]))
    assert runs.tolist() == [[0, 0, 1040], [0, 5 << 20, (5 << 20) + 20], [1, 0, 10]]


def test_a_shard_that_vanished_is_named_in_block_order_too(digits_copy: Path) -> None:
    split = Split(digits_copy, "validation")
    split.shard_paths[1].unlink()
    with pytest.raises(InputError, match=r"validation-000001\.tar cannot be opened"):
        next(iter(build_loader(split, TrainTransform(size=24), 60, sampling=BLOCKS)))


def test_a_fraction_keeps_its_share_of_each_class_and_nests(train: Split) -> None:
    counts = np.bincount(train.column("label"))
    kept: set[str] = set()
    for fraction in (0.001, 0.1, 0.35, 0.999):
        part = select(train, fraction)
        assert np.bincount(part.column("label")).tolist() == np.ceil(counts * fraction).astype(int).tolist()
        keys = set(part.keys(range(len(part))))
        assert kept < keys and len(keys) == len(part)
        kept = keys
    assert select(train, 1.0) is train


def test_classes_are_renumbered_and_keep_their_images(train: Split) -> None:
    part = select(train, classes=["7", "2-3"])
    names = [train.class_names[label] for label in (2, 3, 7)]
    assert list(part.class_names) == names
    wanted = [
        key
        for key, label in zip(train.keys(range(len(train))), train.column("label"), strict=True)
        if label in (2, 3, 7)
    ]
    assert part.keys(range(len(part))) == wanted
    assert [names[label] for label in part.column("label")] == [
        train.class_names[train.column("label")[row]] for row in train.rows_of(wanted)
    ]
    assert part.rows_of(wanted[5:8]) == [5, 6, 7]


def test_a_part_trains_with_a_digest_of_its_own(train: Split) -> None:
    digests = {select(train, *arguments).digest for arguments in ((1.0, ()), (0.5, ()), (0.2, ()), (1.0, ("1",)))}
    assert len(digests) == 4
    part = select(train, 0.1, ["0-4"])
    loader = build_loader(part, TrainTransform(size=24), 32)
    batches = list(islice(loader, 2 * len(part) // 32))
    assert sorted(np.concatenate([b.rows_B for b in batches])[: len(part)].tolist()) == list(range(len(part)))
    assert max(batch.labels_B.max().item() for batch in batches) == 4
    with pytest.raises(InputError, match="the saved position belongs to dataset"):
        build_loader(train, TrainTransform(size=24), 32).load_state_dict(loader.state_dict())


@pytest.mark.parametrize(
    ("fraction", "classes", "message"),
    [
        (0, [], "fraction must be more than 0 and at most 1, got 0"),
        (1.5, [], "fraction must be more than 0 and at most 1, got 1.5"),
        (1, ["10"], "unknown classes 10: .* 0 to 9"),
        (1, ["4-2"], "unknown classes 4-2"),
        (1, ["3-12"], "unknown classes 3-12"),
        (1, ["elephant"], "unknown class 'elephant'"),
    ],
)
def test_what_cannot_be_selected_is_refused(train: Split, fraction: float, classes: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        select(train, fraction, classes)


def test_a_class_is_found_by_name_number_and_range_and_a_near_miss_is_named() -> None:
    names = ["n01440764", "n01443537", "tench, Tinca tinca"]
    assert find_classes("n01443537", names) == range(1, 2)
    assert find_classes("tench, Tinca tinca", names) == range(2, 3)
    assert (find_classes("0-2", names), find_classes("1", names)) == (range(3), range(1, 2))
    with pytest.raises(InputError, match=r"unknown class 'n0144376[^']*'; did you mean 'n0144"):
        find_classes("n0144376x", names)


def test_resolution_grows_linearly_in_steps_between_its_epochs() -> None:
    transform = TrainTransform(size=192, first_size=128, grow=(2, 10))
    sizes = [size_at(transform, epoch) for epoch in range(13)]
    assert sizes == [128] * 5 + [160] * 3 + [192] * 5  # halves round to even, as numpy rounds them
    assert size_at(TrainTransform(size=200, first_size=96, grow=(0, 4)), 4) == 200  # the last is what was asked for
    assert {size_at(TrainTransform(size=100), epoch) for epoch in range(9)} == {100}


def size_by_definition(transform: TrainTransform, epoch: int) -> int:
    """Return the nearest of first_size, first_size + size_step, ... and size; halves as FFCV rounds them, to even."""
    first, last, step = transform.first_size or transform.size, transform.size, transform.size_step
    start, end = transform.grow
    exact = np.interp(epoch, [start, end], [first, last])
    ladder = [*range(first, last, step if last > first else -step), last]
    nearest = min(abs(size - exact) for size in ladder)
    ties = [size for size in ladder if abs(size - exact) == nearest]
    return ties[0] if len(ties) == 1 else next(size for size in ties if size // step % 2 == 0)


growths = st.tuples(st.integers(0, 20), st.integers(1, 20)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@reproducible
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 64), growths, st.integers(0, 45))
def test_a_resolution_is_the_nearest_step(first: int, last: int, step: int, grow: tuple[int, int], epoch: int) -> None:
    transform = TrainTransform(size=last, first_size=first, grow=grow, size_step=step)
    assert size_at(transform, epoch) == size_by_definition(transform, epoch)


@reproducible
@given(st.integers(1, 12), st.integers(1, 12), growths, st.integers(0, 45))
def test_steps_of_32_are_those_of_earlier_versions(first: int, last: int, grow: tuple[int, int], epoch: int) -> None:
    """Saved runs go on: FFCV's formula, the nearest multiple of 32."""
    transform = TrainTransform(size=32 * last, first_size=32 * first, grow=grow)
    start, end = grow
    share = min(1.0, max(0.0, (epoch - start) / (end - start)))
    size = 32 * first + share * (32 * last - 32 * first)
    assert size_at(transform, epoch) == (32 * last if share == 1 else round(size / 32) * 32)


def test_steps_of_16_from_88_to_176_end_with_a_shorter_one() -> None:
    transform = TrainTransform(size=176, first_size=88, grow=(0, 88), size_step=16)
    assert sizes(transform, 90) == [88, 104, 120, 136, 152, 168, 176]
    found = [size_at(transform, epoch) for epoch in range(90)]
    assert (found[7], found[9], found[83], found[85]) == (88, 104, 168, 176)


def test_the_sizes_of_a_run_are_those_of_its_epochs_in_their_order() -> None:
    transform = TrainTransform(size=192, first_size=128, grow=(2, 10))
    assert sizes(transform, 13) == [128, 160, 192]
    assert (sizes(transform, 5), sizes(transform, 5.5), sizes(transform, 0.1)) == ([128], [128, 160], [128])
    assert sizes(TrainTransform(size=100), 9) == [100]
    for recipe in (recipe() for recipe in RECIPES.values()):
        found = [size_at(recipe.transform, epoch) for epoch in range(round(recipe.epochs))]
        assert sizes(recipe.transform, recipe.epochs) == sorted(set(found))


@pytest.mark.parametrize("backend", ["dali", "reference", "synthetic"])
def test_batches_grow_at_an_epochs_first_whole_batch(train: Split, backend: str) -> None:
    transform = TrainTransform(size=64, first_size=32, grow=(0, 1))
    batches = list(islice(build_loader(train, transform, 400, config=LoaderConfig(backend)), 5))
    assert [batch.images_BCHW.shape[-1] for batch in batches] == [32, 32, 32, 32, 64]  # the fourth straddles


@pytest.mark.parametrize("grow", [(0.0, 0.0), (5.0, 3.0), (-1.0, 3.0)])
def test_resolution_that_cannot_grow_is_refused(train: Split, grow: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="grow must be two epochs"):
        build_loader(train, TrainTransform(first_size=32, grow=grow), 10)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (
            TrainTransform(size=288, first_size=64, grow=(0, 40)),
            r"at most 7 sizes in a run, got 8 \(64, .*, 288\): set first_size to 96, or size_step to 38$",
        ),
        (
            TrainTransform(size=64, first_size=288, grow=(0, 40)),
            r"at most 7 sizes in a run, got 8 \(288, .*, 64\): set first_size to 256, or size_step to 38$",
        ),
        (
            TrainTransform(size=176, first_size=88, grow=(0, 90), size_step=4),
            r"at most 7 sizes in a run, got 23 \(88, .*, 176\): set first_size to 152, or size_step to 15$",
        ),
    ],
)
def test_more_sizes_than_can_be_compiled_are_refused_and_each_advice_works(
    train: Split, transform: TrainTransform, message: str
) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        build_loader(train, transform, 10)
    for name, value in re.findall(r"(first_size|size_step) to (\d+)", str(refusal.value)):
        assert build_loader(train, replace(transform, **{name: int(value)}), 10)


@reproducible
@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 64))
def test_a_step_of_a_sixth_never_has_too_many_sizes(first: int, last: int, longer: int) -> None:
    """The advice in the refusal."""
    step = max(1, -(-abs(last - first) // (MAX_SIZES - 1)))
    transform = TrainTransform(size=last, first_size=first, grow=(0, 1000), size_step=step + longer - 1)
    assert len(sizes(transform, 1001)) <= MAX_SIZES


def test_all_sizes_and_that_of_evaluation_can_be_compiled() -> None:
    """One graph for each; beyond its limit torch runs the network uncompiled."""
    assert torch._dynamo.config.recompile_limit > MAX_SIZES


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size_step": 0}, "size_step must be a whole number of at least 1 pixel, got 0"),
        ({"size_step": -16}, "size_step must be a whole number of at least 1 pixel, got -16"),
        ({"size_step": 16.0}, r"size_step must be a whole number of at least 1 pixel, got 16\.0"),
        ({"size_step": None}, "size_step must be a whole number of at least 1 pixel, got None"),
        ({"first_size": 0}, "first_size must be a whole number of at least 1 pixel, got 0"),
        ({"first_size": 88.5}, r"first_size must be a whole number of at least 1 pixel, got 88\.5"),
    ],
)
def test_steps_that_mean_nothing_are_refused(train: Split, changes: dict[str, Any], message: str) -> None:
    transform = TrainTransform(size=176, first_size=88, grow=(0, 40), size_step=16)
    assert build_loader(train, transform, 10)
    with pytest.raises(InputError, match=message):
        build_loader(train, replace(transform, **changes), 10)


def test_sizes_that_no_epoch_meets_do_not_count(train: Split) -> None:
    """From 64 to 288 in two epochs it goes through 160 or 192 alone."""
    assert build_loader(train, TrainTransform(size=288, first_size=64, grow=(0, 2)), 10)


def test_an_unknown_order_is_refused(train: Split) -> None:
    with pytest.raises(InputError, match="order must be one of shuffle, blocks, got 'rows'"):
        build_loader(train, TrainTransform(), 10, sampling=Sampling(0, "rows"))  # pyright: ignore[reportArgumentType]


def test_no_repeats_are_refused(train: Split) -> None:
    with pytest.raises(InputError, match="repeats must be at least 1, got 0"):
        build_loader(train, TrainTransform(), 10, sampling=Sampling(repeats=0))
