"""The plan: a stream of permuted epochs in which everything is a function of (seed, epoch, row) and of nothing else."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loaders.augment import AugmentConfig, Op
from loaders.order import Sampling, epoch_order, locate
from loaders.philox import philox4x32, uniform
from loaders.plan import EvalTransform, Images, Plan, TrainTransform, eval_plan, train_plan
from loaders.world import World

TRANSFORM = TrainTransform(size=32, augment=AugmentConfig("rand"))
reproducible = settings(deadline=None, derandomize=True)
seeds = st.integers(0, 2**63 - 1)
repeat_counts = st.sampled_from([1, 2, 3, 7])


def _images(num_images: int) -> Images:
    """Widths and heights, no two images alike."""
    rows = np.arange(num_images, dtype=np.int32)
    return Images(200 + 3 * rows, 400 + rows)


def _plan(seed: int, position: int, slots: range, num_images: int, repeats: int = 1) -> Plan:
    return train_plan(Sampling(seed, repeats=repeats), position, slots, _images(num_images), TRANSFORM)


def _decisions(plan: Plan) -> list[tuple[object, ...]]:
    """Return the plan's values for each image, the row first."""
    columns = (plan.rows_B, plan.windows_B4, plan.resized_B2, plan.crops_B2, plan.flips_B, plan.valid_B)
    columns += (plan.ops_BL, plan.arguments_BL)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, 0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, 0xFFFFFFFF_FFFFFFFF, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            0x299F31D0_A4093822,
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter: list[int], key: int, words: list[int]) -> None:
    assert philox4x32(key, np.array(counter)).tolist() == words


def test_philox_of_many_counters_is_philox_of_each() -> None:
    counters_4N = np.arange(4 * 6).reshape(4, 2, 3)
    words_4N = philox4x32(7, counters_4N)
    assert words_4N.shape == (4, 2, 3)
    for i, j in np.ndindex(2, 3):
        assert philox4x32(7, counters_4N[:, i, j]).tolist() == words_4N[:, i, j].tolist()


def test_uniform_is_at_least_zero_and_below_one() -> None:
    assert uniform(np.array([0, 2**31, 2**32 - 1], np.uint64)).tolist() == [0.0, 0.5, 1 - 2**-32]


@reproducible
@given(seeds, st.integers(0, 10_000), st.integers(1, 500))
def test_an_epoch_is_a_permutation_of_all_rows(seed: int, epoch: int, num_images: int) -> None:
    assert sorted(epoch_order(Sampling(seed), epoch, num_images).tolist()) == list(range(num_images))


def test_epochs_and_seeds_differ_in_order() -> None:
    orders = [tuple(epoch_order(Sampling(seed), epoch, 100).tolist()) for seed in range(4) for epoch in range(4)]
    assert len({*orders, tuple(range(100))}) == 17


def test_neighbours_in_the_index_are_no_neighbours_in_an_epoch() -> None:
    """Two random rows of N are N / 3 apart on average; where blocks of rows stay together, neighbours are not."""
    order_N = epoch_order(Sampling(0), 0, 3000)
    assert np.abs(np.diff(order_N)).mean() == pytest.approx(1000, abs=100)  # over five standard deviations


def test_a_shuffled_row_comes_from_anywhere() -> None:
    """No shuffle buffer: over many epochs the first place sees rows of the whole range."""
    first = np.array([epoch_order(Sampling(0), epoch, 1000)[0] for epoch in range(400)])
    assert (np.bincount(first // 100, minlength=10) > 15).all()  # 40 expected, 6 sigma deviation is 36


def test_the_stream_is_frozen() -> None:
    """Golden: another order or other windows would make saved positions mean other images."""
    plan = _plan(5, 6, range(4), 8)
    assert epoch_order(Sampling(5), 0, 8).tolist() == [2, 4, 3, 1, 5, 0, 6, 7]
    assert plan.rows_B.tolist() == [6, 7, 6, 5]
    assert plan.windows_B4.tolist() == [[170, 11, 172, 202], [130, 12, 153, 203], [32, 34, 235, 178], [5, 2, 193, 204]]
    assert plan.flips_B.tolist() == [False, True, True, False]
    assert plan.ops_BL.tolist() == [[15, 0], [7, 9], [8, 9], [12, 1]]
    assert plan.arguments_BL.round(3).tolist() == [[-11.886, 0.0], [93.0, 1.801], [1.644, 1.722], [-0.27, 0.0]]


@reproducible
@given(seeds, st.integers(1, 40), st.integers(1, 6), st.integers(1, 6), st.integers(0, 500), repeat_counts)
def test_ranks_concatenated_are_the_batch_of_one_process(
    seed: int, num_images: int, world_size: int, each: int, position: int, repeats: int
) -> None:
    batch_size = each * world_size
    whole = _decisions(_plan(seed, position, World().share(batch_size), num_images, repeats))
    shares = [World(rank, world_size).share(batch_size) for rank in range(world_size)]
    parts = [_decisions(_plan(seed, position, slots, num_images, repeats)) for slots in shares]
    assert all(len(part) == each for part in parts)
    assert [decision for part in parts for decision in part] == whole


@reproducible
@given(seeds, st.integers(1, 60), st.integers(1, 25), repeat_counts)
def test_any_cut_into_batches_is_the_same_stream(seed: int, num_images: int, batch_size: int, repeats: int) -> None:
    """So a position reached by iterating and one computed alone are the same, across the seams of epochs too."""
    total = 3 * num_images + batch_size
    whole = _decisions(_plan(seed, 0, range(total), num_images, repeats))
    for position in range(0, total - batch_size, batch_size):
        batch = _plan(seed, position, range(batch_size), num_images, repeats)
        assert batch.position == position
        assert _decisions(batch) == whole[position : position + batch_size]


@reproducible
@given(seeds, st.integers(1, 30), st.integers(1, 80), repeat_counts)
def test_every_epoch_of_the_stream_holds_every_row_once_or_as_often_as_it_is_repeated(
    seed: int, num_images: int, batch_size: int, repeats: int
) -> None:
    """Also where a batch straddles two epochs, or holds several."""
    num_batches = -(-3 * num_images // batch_size)
    batches = [_plan(seed, i * batch_size, range(batch_size), num_images, repeats) for i in range(num_batches)]
    rows = np.concatenate([batch.rows_B for batch in batches])
    for epoch in range(3):
        part = rows[epoch * num_images : (epoch + 1) * num_images].tolist()
        order_N = epoch_order(Sampling(seed), epoch, num_images)
        assert part == np.repeat(order_N, repeats)[:num_images].tolist()
        assert repeats > 1 or sorted(part) == list(range(num_images))
    assert all(batch.valid_B.all() for batch in batches)


def test_locate_counts_epochs_at_their_seams() -> None:
    epochs_B, rows_B = locate(Sampling(3), np.array([0, 9, 10, 19, 20]), 10)
    assert epochs_B.tolist() == [0, 0, 1, 1, 2]
    orders = [epoch_order(Sampling(3), epoch, 10) for epoch in range(3)]
    assert rows_B.tolist() == [orders[0][0], orders[0][9], orders[1][0], orders[1][9], orders[2][0]]


def test_a_row_gets_the_same_window_and_flip_wherever_it_comes_in_its_epoch() -> None:
    """A split of half the images puts the rows that stay into other places."""
    by_row = {decision[0]: decision for decision in _decisions(_plan(1, 0, range(50), 50))}
    half = train_plan(Sampling(1), 0, range(25), _images(25), TRANSFORM)
    assert half.rows_B.tolist() != list(by_row)[:25]
    assert _decisions(half) == [by_row[row] for row in half.rows_B.tolist()]


def test_windows_and_flips_differ_between_epochs_seeds_and_rows() -> None:
    images = Images(np.full(64, 500), np.full(64, 400))  # alike, so that only the randomness differs

    def draws(seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        plan = train_plan(Sampling(seed), epoch * 64, range(64), images, TRANSFORM)
        order = np.argsort(plan.rows_B)
        return plan.windows_B4[order], plan.flips_B[order]

    drawn = [draws(seed, epoch) for seed in (0, 1, 2**32, 2**40) for epoch in (0, 1, 2)]
    for windows, _ in drawn:
        assert len({tuple(window) for window in windows.tolist()}) == 64
    for (windows, flips), (others, other_flips) in pairwise(drawn):
        assert (windows != others).any(axis=1).mean() > 0.95
        assert 0.2 < (flips != other_flips).mean() < 0.8


def test_hflip_is_a_probability() -> None:
    images = Images(np.full(20_000, 500), np.full(20_000, 400))
    shares = {
        hflip: train_plan(Sampling(), 0, range(20_000), images, TrainTransform(hflip=hflip)).flips_B.mean()
        for hflip in (0.0, 0.25, 0.5, 1.0)
    }
    assert shares[0.0] == 0
    assert shares[0.25] == pytest.approx(0.25, abs=0.015)  # five standard deviations
    assert shares[0.5] == pytest.approx(0.5, abs=0.018)
    assert shares[1.0] == 1


def test_repeats_of_an_image_differ_and_the_first_is_the_one_without_repeats() -> None:
    images = Images(np.full(400, 500), np.full(400, 400))  # alike, so that only the randomness differs
    once, repeated = (train_plan(Sampling(2, repeats=r), 0, range(400), images, TRANSFORM) for r in (1, 4))
    first = slice(0, 400, 4)
    for name in ("rows_B", "windows_B4", "flips_B", "ops_BL", "arguments_BL"):
        assert (getattr(repeated, name)[first] == getattr(once, name)[:100]).all()
    assert (repeated.rows_B.reshape(100, 4) == repeated.rows_B[first, None]).all()
    assert all(len({tuple(w) for w in windows}) == 4 for windows in repeated.windows_B4.reshape(100, 4, 4).tolist())
    flips, ops = repeated.flips_B.reshape(100, 4), repeated.ops_BL.reshape(100, 4, 2)
    for a, b in ((0, 1), (1, 2), (0, 3)):
        assert 0.25 < (flips[:, a] != flips[:, b]).mean() < 0.75
        assert (ops[:, a] != ops[:, b]).any(axis=1).mean() > 0.7  # 0.93 expected


def test_operations_differ_between_epochs_seeds_rows_and_layers() -> None:
    images = Images(np.full(2000, 500), np.full(2000, 400))
    transform = TrainTransform(size=32, augment=AugmentConfig("rand", probability=1))
    drawn = [
        plan.ops_BL[np.argsort(plan.rows_B)]
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
        for plan in [train_plan(Sampling(seed), epoch * 2000, range(2000), images, transform)]
    ]
    for ops, others in [*pairwise(drawn), (drawn[0][:, :1], drawn[0][:, 1:]), (drawn[0][1:], drawn[0][:-1])]:
        assert (ops == others).mean() == pytest.approx(1 / 15, abs=0.03)  # five standard deviations


def test_augmentation_changes_no_window_and_evaluation_has_none() -> None:
    plain, augmented = (
        train_plan(Sampling(), 0, range(50), _images(50), TrainTransform(size=32, augment=AugmentConfig(kind)))
        for kind in ("none", "trivial")
    )
    assert (plain.windows_B4 == augmented.windows_B4).all() and (plain.flips_B == augmented.flips_B).all()
    assert (plain.ops_BL.shape, augmented.ops_BL.shape) == ((50, 0), (50, 1))
    assert len(np.unique(augmented.ops_BL)) > 8 and Op.INVERT not in augmented.ops_BL
    assert eval_plan(0, range(5), _images(5), EvalTransform()).ops_BL.shape == (5, 0)


@reproducible
@given(st.integers(1, 200), st.integers(1, 8), st.integers(1, 12))
def test_evaluation_holds_every_row_once_and_masks_the_padding(num_images: int, world_size: int, each: int) -> None:
    batch_size = each * world_size
    plans = [
        eval_plan(position, World(rank, world_size).share(batch_size), _images(num_images), EvalTransform(32, 40))
        for position in range(0, num_images, batch_size)
        for rank in range(world_size)
    ]
    rows, valid = (np.concatenate([getattr(plan, name) for plan in plans]) for name in ("rows_B", "valid_B"))
    assert len(rows) == -(-num_images // batch_size) * batch_size
    assert rows[valid].tolist() == list(range(num_images))
    assert (rows[~valid] == num_images - 1).all()  # an image to decode, though it is not counted


def test_plans_have_the_types_that_backends_and_readers_count_on() -> None:
    plans = (_plan(0, 0, range(5), 9), eval_plan(0, range(5), _images(9), EvalTransform(32, 40)))
    wanted: dict[str, type] = dict.fromkeys(("rows_B", "windows_B4", "resized_B2", "crops_B2", "ops_BL"), np.int64)
    wanted |= dict.fromkeys(("flips_B", "valid_B", "damaged_B"), np.bool_)
    wanted["arguments_BL"] = np.float64
    for plan in plans:
        assert {name: getattr(plan, name).dtype for name in wanted} == wanted


@pytest.mark.parametrize("sides", [(1, 1), (1, 2), (2, 1), (1, 30), (3, 2)])
def test_windows_of_the_smallest_images_are_not_empty(sides: tuple[int, int]) -> None:
    heights_N, widths_N = (np.full(2000, side) for side in sides)
    plan = train_plan(Sampling(), 0, range(2000), Images(widths_N, heights_N), TrainTransform())
    top_B, left_B, height_B, width_B = plan.windows_B4.T
    assert height_B.min() >= 1 and width_B.min() >= 1
    assert (top_B + height_B).max() <= sides[0] and (left_B + width_B).max() <= sides[1]
