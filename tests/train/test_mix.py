"""Mixup, CutMix and random erasing against timm's own on the same draws; and what they are functions of."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import beta, kstest
from timm.data.mixup import Mixup, cutmix_bbox_and_lam
from timm.data.random_erasing import RandomErasing
from torch.nn import functional

from loaders import World
from loaders.batch import Normalize
from train.batch_augment import BatchAugment, Mix, cut_box, draw_boxes, draw_mix, erase, mix_images
from train.config import EraseConfig, MixConfig
from train.loss import mixed_cross_entropy
from train.recipe import demo

BOTH = MixConfig(mixup=0.2, cutmix=1.0)
SIZE, NUM_DRAWS = 32, 2000


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, SIZE, SIZE, generator=generator).contiguous(memory_format=torch.channels_last)
    return images, torch.randint(0, 10, (8,), generator=generator)


def theirs(mix: Mix, images: torch.Tensor, labels: torch.Tensor, monkeypatch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """timm's Mixup made to draw what `mix` says."""
    mixup = Mixup(mixup_alpha=1, cutmix_alpha=1, label_smoothing=0.1, num_classes=10)
    monkeypatch.setattr(mixup, "_params_per_batch", lambda: (mix.share, mix.box is not None))
    if mix.box is not None:
        top, left, bottom, right = mix.box
        box = ((top, bottom, left, right), mix.share)
        monkeypatch.setattr("timm.data.mixup.cutmix_bbox_and_lam", lambda *_, **__: box)
    return mixup(images.clone(), labels)


@pytest.mark.parametrize("position", range(0, 80, 8))
def test_images_and_loss_are_timms(position: int, batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = batch
    mix = draw_mix(BOTH, 0, position, SIZE)
    expected, targets = theirs(mix, images, labels, monkeypatch)
    mixed = mix_images(images, mix)
    torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-6)
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    logits = torch.randn(8, 10, generator=torch.Generator().manual_seed(position))
    ours = mixed_cross_entropy(logits, labels, mix, label_smoothing=0.1)
    torch.testing.assert_close(ours, functional.cross_entropy(logits, targets))


def test_both_kinds_come_and_the_given_batch_stays(batch: Any) -> None:
    images, _ = batch
    before = images.clone()
    mixes = [draw_mix(BOTH, 0, position, SIZE) for position in range(0, 80, 8)]
    assert {mix.box is None for mix in mixes} == {True, False}
    for mix in mixes:
        mix_images(images, mix)
    assert torch.equal(images, before)


@pytest.mark.parametrize("center", [(0, 0), (31, 5), (16, 16), (3, 31)])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.93])
def test_a_box_is_timms(center: tuple[int, int], share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    centers = iter(center)
    monkeypatch.setattr(np.random, "randint", lambda *_, **__: next(centers))
    (top, bottom, left, right), corrected = cutmix_bbox_and_lam((3, SIZE, SIZE), share)
    mix = cut_box(share, *center, SIZE)
    assert mix.box == (top, left, bottom, right)
    assert mix.share == pytest.approx(corrected)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_shares_are_beta_distributed(alpha: float) -> None:
    shares = [draw_mix(MixConfig(mixup=alpha), 5, position, SIZE).share for position in range(NUM_DRAWS)]
    assert kstest(shares, beta(alpha, alpha).cdf).pvalue > 0.001


def test_a_coin_chooses_between_the_two_and_one_alone_needs_none() -> None:
    def num_cuts(config: MixConfig) -> int:
        return sum(draw_mix(config, 1, position, SIZE).box is not None for position in range(NUM_DRAWS))

    assert 0.45 * NUM_DRAWS < num_cuts(BOTH) < 0.55 * NUM_DRAWS
    assert num_cuts(MixConfig(cutmix=1.0)) == NUM_DRAWS
    assert num_cuts(MixConfig(mixup=0.2)) == 0
    assert draw_mix(MixConfig(), 1, 0, SIZE) == Mix()


def test_what_is_drawn_depends_on_seed_and_position_alone() -> None:
    assert draw_mix(BOTH, 3, 96, SIZE) == draw_mix(BOTH, 3, 96, SIZE)
    others = [draw_mix(BOTH, 3, 97, SIZE), draw_mix(BOTH, 4, 96, SIZE), draw_mix(BOTH, 3, 96 + (1 << 32), SIZE)]
    assert len({draw_mix(BOTH, 3, 96, SIZE), *others}) == 4


ERASE = EraseConfig(probability=0.25)


def test_boxes_of_a_slice_are_those_of_the_whole() -> None:
    whole = draw_boxes(ERASE, 2, 1000, 64, SIZE)
    assert np.array_equal(whole[16:48], draw_boxes(ERASE, 2, 1016, 32, SIZE))


@pytest.mark.parametrize("name", ["height", "width", "area", "top"])
def test_boxes_are_distributed_as_timms(name: str) -> None:
    ours = draw_boxes(replace(ERASE, probability=1.0), 2, 0, NUM_DRAWS, 224)
    random.seed(0)
    theirs = RandomErasing(probability=1.0, mode="const", device="cpu")
    blank, boxes = torch.ones(1, 224, 224), []
    for _ in range(NUM_DRAWS):
        rows, columns = torch.nonzero(theirs(blank.clone())[0] == 0).unbind(1)
        top, left = int(rows.min()), int(columns.min())
        boxes.append((top, left, int(rows.max()) + 1 - top, int(columns.max()) + 1 - left))
    pick = {"height": lambda b: b[:, 2], "width": lambda b: b[:, 3], "area": lambda b: b[:, 2] * b[:, 3]}
    pick["top"] = lambda b: b[:, 0]
    assert kstest(pick[name](ours), pick[name](np.array(boxes))).pvalue > 0.001


def test_a_quarter_is_erased_and_the_rest_untouched(batch: Any) -> None:
    boxes = draw_boxes(ERASE, 0, 0, NUM_DRAWS, SIZE)
    assert 0.21 * NUM_DRAWS < np.count_nonzero(boxes[:, 2]) < 0.29 * NUM_DRAWS
    images, _ = batch
    boxes = torch.tensor([[4, 5, 6, 7]] + 7 * [[0, 0, 0, 0]])
    erased = erase(images, boxes)
    changed = (erased != images).any(1)
    assert changed[0, 4:10, 5:12].all() and changed.sum() == 42
    assert erased.is_contiguous(memory_format=torch.channels_last)


def test_noise_is_normal(batch: Any) -> None:
    torch.manual_seed(0)
    erased = erase(torch.zeros(8, 3, SIZE, SIZE), torch.tensor([[0, 0, SIZE, SIZE]] * 8))
    assert kstest(erased.flatten().numpy(), "norm").pvalue > 0.001


def test_each_ends_at_its_epoch() -> None:
    recipe = replace(demo(), mix=replace(BOTH, until=2), erase=EraseConfig(probability=1.0, until=3))
    augment = BatchAugment(recipe, epoch_size=100, world=World())
    images = torch.full((8, 3, SIZE, SIZE), 128, dtype=torch.uint8)
    plain = Normalize()(images)
    for position, mixes, erases in ((192, True, True), (200, False, True), (299, False, True), (300, False, False)):
        augmented, mix = augment(images, position)
        assert (mix.share != 1) == mixes
        assert (not torch.equal(augmented, plain)) == erases
