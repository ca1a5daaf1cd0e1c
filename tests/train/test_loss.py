"""The training loss and the classifier's first bias against formulas written here, in numpy and float64."""

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.steps import CPU, build_step, random_batch, small, tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data.mixup import mixup_target
from torch import nn
from torch.nn import functional

from prep.errors import InputError
from train.batch_augment import Mix, mix_images
from train.config import LossKind, ModelConfig, Recipe
from train.loss import soft_targets, training_loss
from train.metrics import Sums
from train.model import build_model, set_prior_bias

reproducible = settings(deadline=None, derandomize=True)
shares = st.floats(0, 1)


def draw(seed: int, num_images: int, num_classes: int, height: float = 4.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float32 logits and labels."""
    generator = torch.Generator().manual_seed(seed)
    logits_BK = height * torch.randn(num_images, num_classes, generator=generator)
    return logits_BK, torch.randint(0, num_classes, (num_images,), generator=generator)


def bce_by_formula(logits_BK: np.ndarray, labels_B: np.ndarray, share: float, smoothing: float) -> float:
    """Return -sum over classes of t ln p + (1 - t) ln (1 - p), p = 1 / (1 + exp(-x)), mean over images, in float64."""
    num_images, num_classes = logits_BK.shape
    targets_BK = np.eye(num_classes)[labels_B] * (1 - smoothing) + smoothing / num_classes
    targets_BK = share * targets_BK + (1 - share) * targets_BK[::-1]
    x_BK = logits_BK.astype(np.float64)
    log_p_BK, log_q_BK = -np.logaddexp(0, -x_BK), -np.logaddexp(0, x_BK)
    return float(-(targets_BK * log_p_BK + (1 - targets_BK) * log_q_BK).sum() / num_images)


@reproducible
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(2, 40), shares, st.floats(0, 0.99))
def test_bce_is_the_formula_summed_over_classes_and_the_mean_over_images(
    seed: int, num_images: int, num_classes: int, share: float, smoothing: float
) -> None:
    logits_BK, labels_B = draw(seed, num_images, num_classes)
    ours = training_loss("bce", logits_BK, labels_B, Mix(share), smoothing)
    expected = bce_by_formula(logits_BK.numpy(), labels_B.numpy(), share, smoothing)
    assert float(ours) == pytest.approx(expected, rel=1e-5)


@reproducible
@given(st.integers(0, 10_000), st.integers(2, 9), shares, st.floats(0, 0.99))
def test_soft_targets_are_timms(seed: int, num_images: int, share: float, smoothing: float) -> None:
    _, labels_B = draw(seed, num_images, 7)
    expected_BK = mixup_target(labels_B, 7, share, smoothing)
    torch.testing.assert_close(soft_targets(labels_B, 7, Mix(share), smoothing), expected_BK, rtol=1e-5, atol=1e-6)


def test_gradients_of_bce_are_probability_minus_target_over_images() -> None:
    logits_BK, labels_B = draw(1, 6, 10)
    logits_BK.requires_grad_()
    training_loss("bce", logits_BK, labels_B, Mix(), 0.08).backward()
    targets_BK = 0.92 * functional.one_hot(labels_B, 10) + 0.08 / 10
    assert logits_BK.grad is not None
    torch.testing.assert_close(logits_BK.grad, (logits_BK.detach().sigmoid() - targets_BK) / 6)


@pytest.mark.parametrize("kind", ["bce", "cross_entropy"])
def test_the_loss_of_parts_is_that_of_the_batch(kind: LossKind) -> None:
    """So the mean over accumulated parts, and over ranks, does not depend on how many there are."""
    logits_BK, labels_B = draw(2, 12, 10)
    whole = training_loss(kind, logits_BK, labels_B, Mix(), 0.1)
    parts = [training_loss(kind, logits_BK[i : i + 4], labels_B[i : i + 4], Mix(), 0.1) for i in (0, 4, 8)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_bce_of_a_large_batch_is_finite_and_exact_in_half_precision(dtype: torch.dtype) -> None:
    """2,048 images of 1,000 classes sum up to 1.4 million nats, beyond fp16's 65,504."""
    logits_BK, labels_B = draw(3, 2048, 1000, height=0.1)
    logits_BK = logits_BK.to(dtype)
    with torch.autocast("cpu", dtype):
        ours = training_loss("bce", logits_BK, labels_B, Mix(), 0.08)
    assert ours.dtype == torch.float32
    expected = bce_by_formula(logits_BK.float().numpy(), labels_B.numpy(), 1.0, 0.08)
    assert expected * 2048 > 65_504 and float(ours) == pytest.approx(expected, rel=1e-5)


def test_a_mixed_batch_has_the_loss_of_mixed_labels_in_a_step() -> None:
    """A complete step with Mixup: the loss that it counts is the formula's on the network's own logits."""
    recipe = small(loss="bce", label_smoothing=0.08)
    step, sums, batch = build_step(recipe), Sums.zero(CPU), random_batch(0)
    augment, mix, seen = step.augment, Mix(0.7), []

    def mixed(images_BCHW: torch.Tensor, position: int) -> tuple[torch.Tensor, Mix]:
        return mix_images(augment(images_BCHW, position)[0], mix), mix

    step.augment = mixed  # pyright: ignore[reportAttributeAccessIssue]
    step.state.model.register_forward_hook(lambda _, __, logits_BK: seen.append(logits_BK.detach().float().numpy()))
    step(batch, sums)
    expected = bce_by_formula(seen[0], batch.labels_B.numpy(), 0.7, 0.08)
    assert sums.loss_and_hits[0].item() / sums.num_images == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("amp", ["none", "bf16", "fp16"])
def test_bce_learns_a_batch_by_heart(amp: str) -> None:
    recipe = small(loss="bce", label_smoothing=0.0, amp=amp, model=ModelConfig("test_resnet", prior_bias=True))
    step, losses = build_step(replace(recipe, optim=replace(recipe.optim, warmup_epochs=0.0))), []
    for _ in range(30):
        sums = Sums.zero(CPU)
        step(random_batch(0), sums)
        losses.append(sums.loss_and_hits[0].item() / sums.num_images)
    assert min(losses[-5:]) < 0.5 * losses[0], losses
    assert all(tensor.isfinite().all() for tensor in tensors(step).values())


# The first bias of the classifier.


def first_loss(recipe: Recipe) -> float:
    step, sums = build_step(recipe), Sums.zero(CPU)
    step(random_batch(0), sums)
    return sums.loss_and_hits[0].item() / sums.num_images


def test_the_first_bias_is_minus_ln_classes_and_changes_no_other_weight() -> None:
    torch.manual_seed(3)
    plain = build_model(ModelConfig("test_resnet"), 1000, CPU).state_dict()
    torch.manual_seed(3)
    ours = build_model(ModelConfig("test_resnet", prior_bias=True), 1000, CPU).state_dict()
    assert {name for name in plain if not torch.equal(plain[name], ours[name])} == {"fc.bias"}
    torch.testing.assert_close(ours["fc.bias"], torch.full((1000,), -6.907755279))


def test_a_run_starts_at_the_loss_of_equally_probable_classes() -> None:
    """Of K classes with p = 1/K: ln K for the right one and about 1 for the others; without the bias K ln 2."""
    recipe = small(loss="bce", label_smoothing=0.0, model=ModelConfig("test_resnet"))
    told = replace(recipe, model=ModelConfig("test_resnet", prior_bias=True))
    assert first_loss(recipe) == pytest.approx(10 * math.log(2), rel=0.05)
    assert first_loss(told) == pytest.approx(math.log(10) - 9 * math.log(0.9), rel=0.05)


@pytest.mark.parametrize(
    "name", ["resnet50", "test_vit", "test_convnext", "test_mambaout", "deit_tiny_distilled_patch16_224"]
)
def test_classifiers_of_any_family_get_it(name: str) -> None:
    model = build_model(ModelConfig(name, prior_bias=True), 10, CPU)
    biases = [each.detach() for name, each in model.named_parameters() if name.endswith("bias") and each.shape == (10,)]
    assert len(biases) == (2 if "distilled" in name else 1)
    assert all(torch.allclose(bias, torch.full((10,), -math.log(10))) for bias in biases)


@pytest.mark.parametrize(
    "head",
    [lambda: nn.Linear(3, 10, bias=False), nn.Identity, lambda: nn.Linear(3, 9)],
    ids=["none", "no head", "other"],
)
def test_a_classifier_without_biases_of_its_classes_is_refused(head: Callable[[], nn.Module]) -> None:
    model = SimpleNamespace(get_classifier=head)
    with pytest.raises(
        InputError, match=r"needs a classifier that is one layer with a bias for each class.* --model\.no-prior-bias"
    ):
        set_prior_bias(model, 10)  # pyright: ignore[reportArgumentType]
