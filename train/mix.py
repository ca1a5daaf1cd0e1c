"""Mixup and CutMix: a batch mixed with itself in reverse order, as timm does it in its mode `batch`.

What is drawn is a function of (seed, position) alone, so that a resumed run mixes alike, on any number of processes.
H. Zhang et al., "mixup", arXiv 1710.09412; S. Yun et al., "CutMix", arXiv 1905.04899.
"""

import math
from dataclasses import dataclass

import torch
from scipy.special import betaincinv
from torch.nn import functional

from loaders.philox import counters, philox4x32, uniform

STREAM = 1  # of the random numbers, apart from the plan's


@dataclass(frozen=True)
class MixConfig:
    """Mixup or CutMix of every batch, either by a fair coin where both have an alpha."""

    mixup: float = 0.0  # alpha of the Beta(alpha, alpha) that a share is drawn from; 0: none
    cutmix: float = 0.0
    until: float | None = None  # epoch at which both end


@dataclass(frozen=True)
class Mix:
    """What is done to one batch: `share` of each image stays, the rest comes from the batch in reverse order."""

    share: float = 1.0
    box: tuple[int, int, int, int] | None = None  # top, left, bottom, right of what CutMix pastes; None: Mixup blends


def draw_mix(config: MixConfig, seed: int, position: int, size: int) -> Mix:
    """What happens to the square images, `size` pixels, of the batch that begins at `position`."""
    coin, share, top, left = uniform(philox4x32(seed, counters(STREAM, position, 1)))[:, 0].tolist()
    cuts = config.cutmix > 0 and (config.mixup <= 0 or coin < 0.5)
    alpha = config.cutmix if cuts else config.mixup
    if alpha <= 0:
        return Mix()
    share = float(betaincinv(alpha, alpha, share))  # Beta(alpha, alpha) by inversion
    return cut(share, int(top * size), int(left * size), size) if cuts else Mix(share)


def cut(share: float, center_y: int, center_x: int, size: int) -> Mix:
    """CutMix's box of area 1 - share around a centre, clipped at the edges; the share is corrected for that."""
    side = int(size * math.sqrt(1 - share))
    top, left = (max(0, center - side // 2) for center in (center_y, center_x))
    bottom, right = (min(size, center + (side + 1) // 2) for center in (center_y, center_x))
    return Mix(1 - (bottom - top) * (right - left) / size**2, (top, left, bottom, right))


def mix_images(images_BCHW: torch.Tensor, mix: Mix) -> torch.Tensor:
    """The mixed images; those given stay as they are."""
    if mix.share == 1:
        return images_BCHW
    others_BCHW = images_BCHW.flip(0)
    if mix.box is None:
        return torch.lerp(others_BCHW, images_BCHW, mix.share)
    top, left, bottom, right = mix.box
    mixed_BCHW = images_BCHW.clone()
    mixed_BCHW[:, :, top:bottom, left:right] = others_BCHW[:, :, top:bottom, left:right]
    return mixed_BCHW


def mixed_loss(logits_BK: torch.Tensor, labels_B: torch.Tensor, mix: Mix, label_smoothing: float) -> torch.Tensor:
    """Mean cross-entropy in nats against the labels mixed as the images are.

    Cross-entropy is linear in its targets, so that the soft targets need not be made.
    """
    loss = functional.cross_entropy(logits_BK, labels_B, label_smoothing=label_smoothing)
    if mix.share == 1:
        return loss
    others = functional.cross_entropy(logits_BK, labels_B.flip(0), label_smoothing=label_smoothing)
    return torch.lerp(others, loss, mix.share)
