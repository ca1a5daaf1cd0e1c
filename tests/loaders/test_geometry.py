"""Windows, resized sizes and centre crops against torchvision's own functions."""

import os
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as torchvision

from loaders.order import Sampling
from loaders.plan import (
    EvalTransform,
    Images,
    TrainTransform,
    eval_plan,
    random_resized_crops,
    resized_sizes,
    train_plan,
)

NUM_DRAWS = 100_000
# torchvision draws one window per Python call, about 20,000 per second. Against 100,000 of our windows, 10,000 of its
# windows show a difference of 0.020 between two distribution functions (Kolmogorov and Smirnov at p = 0.001, which is
# 1.95 * sqrt(1/n + 1/m)); 100,000 show 0.009.
NUM_TORCHVISION_DRAWS = int(os.environ.get("PENSTOCK_SOAK_WINDOWS", "10000"))
# Height and width: ImageNet's median, upright, tiny (rounding shows), and so wide that tries fail and some fall back.
SHAPES = [(375, 500), (500, 333), (9, 7), (40, 200)]
TRANSFORM = TrainTransform(size=32)
QUANTITIES = ("area share", "aspect ratio", "top", "left")

reproducible = settings(deadline=None, derandomize=True)
sides = st.one_of(st.integers(1, 12), st.integers(1, 3000), st.sampled_from([1, 1000, 30_000]))


def _windows(height: int, width: int, num_draws: int, transform: TrainTransform = TRANSFORM) -> np.ndarray:
    """Windows that the plan draws for images of one size, int64 [num_draws, 4]: top, left, height, width."""
    images = Images(np.full(num_draws, width), np.full(num_draws, height))
    return train_plan(Sampling(), 0, range(num_draws), images, transform).windows_B4


@cache
def _torchvision_windows(height: int, width: int, num_draws: int, transform: TrainTransform = TRANSFORM) -> np.ndarray:
    """The same from torchvision."""
    image = torch.empty(1, height, width, device="meta")
    scale, ratio = list(transform.scale), list(transform.ratio)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return np.array([RandomResizedCrop.get_params(image, scale, ratio) for _ in range(num_draws)])


def _quantities(windows: np.ndarray, height: int, width: int) -> dict[str, np.ndarray]:
    top, left, window_height, window_width = windows.T
    shares = window_height * window_width / (height * width)
    return dict(zip(QUANTITIES, (shares, window_width / window_height, top, left), strict=True))


def _likelihood(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the p-value that two samples have one distribution (Kolmogorov and Smirnov)."""
    _, p_value = np.asarray(ks_2samp(ours, theirs, method="asymp"))
    return float(p_value)


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_windows_are_distributed_as_torchvisions(height: int, width: int, quantity: str) -> None:
    ours = _quantities(_windows(height, width, NUM_DRAWS), height, width)[quantity]
    theirs = _quantities(_torchvision_windows(height, width, NUM_TORCHVISION_DRAWS), height, width)[quantity]
    assert _likelihood(ours, theirs) > 0.001


def test_other_scales_and_ratios_are_distributed_as_torchvisions() -> None:
    transform = TrainTransform(size=32, scale=(0.35, 0.8), ratio=(0.5, 1.1))
    ours = _quantities(_windows(375, 500, 5000, transform), 375, 500)
    theirs = _quantities(_torchvision_windows(375, 500, 5000, transform), 375, 500)
    for quantity in QUANTITIES:
        assert _likelihood(ours[quantity], theirs[quantity]) > 0.001, quantity


def test_as_often_as_in_torchvision_no_try_fits_and_the_centre_is_taken() -> None:
    height, width = 40, 200
    fallback = (0, (width - 53) // 2, 40, 53)  # 40 x 4/3 = 53
    ours = (_windows(height, width, NUM_DRAWS) == fallback).all(axis=1).mean()
    theirs = (_torchvision_windows(height, width, NUM_TORCHVISION_DRAWS) == fallback).all(axis=1).mean()
    assert theirs > 0.01  # else this image shows nothing
    standard_error = np.sqrt(ours * (1 - ours) * (1 / NUM_DRAWS + 1 / NUM_TORCHVISION_DRAWS))
    assert ours == pytest.approx(theirs, abs=4 * standard_error)


@reproducible
@given(st.integers(3, 60), st.integers(40, 300), st.booleans())
def test_where_every_try_fails_the_window_is_torchvisions(short: int, times: int, upright: bool) -> None:
    """From 17:1 on, no window of 8% of the area and a ratio of 3:4 or more fits: torchvision falls back each time."""
    height, width = (short * times, short) if upright else (short, short * times)
    image = torch.empty(1, height, width, device="meta")
    expected = RandomResizedCrop.get_params(image, list(TRANSFORM.scale), list(TRANSFORM.ratio))
    assert _windows(height, width, 3).tolist() == [list(expected)] * 3


@reproducible
@given(st.lists(st.tuples(sides, sides), min_size=1, max_size=50), st.integers(0, 2**40))
def test_windows_lie_inside_their_images(sizes: list[tuple[int, int]], seed: int) -> None:
    heights, widths = np.array(sizes, np.int32).T
    plan = train_plan(Sampling(seed), 0, range(len(sizes)), Images(widths, heights), TRANSFORM)
    top, left, height, width = plan.windows_B4.T
    assert (top >= 0).all() and (left >= 0).all() and (height > 0).all() and (width > 0).all()
    assert (top + height <= heights[plan.rows_B]).all()
    assert (left + width <= widths[plan.rows_B]).all()
    assert (plan.resized_B2 == 32).all() and (plan.crops_B2 == 0).all()


def test_windows_reach_every_edge_of_the_image() -> None:
    top, left, height, width = _windows(37, 53, NUM_DRAWS).T
    assert top.min() == 0 and (top + height).max() == 37
    assert left.min() == 0 and (left + width).max() == 53


def _crop_as_torchvision(height: int, width: int, draws_4T: np.ndarray) -> list[int]:
    """RandomResizedCrop.get_params, line by line, with these uniform numbers instead of its generator's."""
    low, high = np.log(TRANSFORM.ratio)
    for area_draw, ratio_draw, top_draw, left_draw in draws_4T.T:
        area = height * width * (TRANSFORM.scale[0] + (TRANSFORM.scale[1] - TRANSFORM.scale[0]) * area_draw)
        ratio = np.exp(low + (high - low) * ratio_draw)
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return [int(top_draw * (height - h + 1)), int(left_draw * (width - w + 1)), h, w]
    if width / height < min(TRANSFORM.ratio):
        w, h = width, round(width / min(TRANSFORM.ratio))
    elif width / height > max(TRANSFORM.ratio):
        w, h = round(height * max(TRANSFORM.ratio)), height
    else:
        w, h = width, height
    return [(height - h) // 2, (width - w) // 2, h, w]


@reproducible
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=40), st.integers(0, 2**32))
def test_of_the_same_numbers_torchvision_makes_the_same_windows(sizes: list[tuple[int, int]], seed: int) -> None:
    """On the smallest images: one pixel high or wide, tries that fail, areas that round to nothing."""
    draws_4TB = np.random.default_rng(seed).random((4, 10, len(sizes)))
    heights, widths = np.array(sizes).T
    windows = random_resized_crops(draws_4TB, heights, widths, TRANSFORM).tolist()
    assert windows == [_crop_as_torchvision(h, w, draws_4TB[..., i]) for i, (h, w) in enumerate(sizes)]


def test_sizes_of_a_batch_are_those_of_each_alone() -> None:
    heights, widths = np.array([100, 30, 7]), np.array([50, 90, 7])
    alone = [resized_sizes(heights[i : i + 1], widths[i : i + 1], 60)[0].tolist() for i in range(3)]
    assert resized_sizes(heights, widths, 60).tolist() == alone == [[120, 60], [60, 180], [60, 60]]


@reproducible
@given(sides, sides, st.integers(1, 512))
def test_resized_sizes_are_torchvisions(height: int, width: int, resize: int) -> None:
    expected = torchvision._compute_resized_output_size((height, width), [resize])
    assert resized_sizes(np.array([height]), np.array([width]), resize).tolist() == [expected]


@reproducible
@given(st.integers(1, 80), st.integers(1, 80), st.integers(1, 40), st.integers(0, 9))
def test_centre_crops_are_torchvisions(height: int, width: int, size: int, margin: int) -> None:
    transform = EvalTransform(size=size, resize=size + margin)
    plan = eval_plan(0, range(1), Images(np.array([width]), np.array([height])), transform)
    (resized_height, resized_width), (top, left) = plan.resized_B2[0].tolist(), plan.crops_B2[0].tolist()
    numbered_HW = torch.arange(resized_height * resized_width).reshape(1, resized_height, resized_width)
    expected = torchvision.center_crop(numbered_HW, [size, size])
    assert torch.equal(numbered_HW[:, top : top + size, left : left + size], expected)


def test_evaluation_takes_the_whole_image_and_never_flips() -> None:
    plan = eval_plan(0, range(3), Images(np.array([30, 50, 1]), np.array([40, 20, 9])), EvalTransform(8, 10))
    assert plan.windows_B4.tolist() == [[0, 0, 40, 30], [0, 0, 20, 50], [0, 0, 9, 1]]
    assert not plan.flips_B.any()
