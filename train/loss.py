"""The training loss: cross-entropy, or binary cross-entropy of each class, against labels mixed as the images are.

Validation always reports cross-entropy (`train/validate.py`).
"""

import torch
from torch.nn import functional

from train.batch_augment import Mix
from train.config import LossKind


def training_loss(
    kind: LossKind, logits_BK: torch.Tensor, labels_B: torch.Tensor, mix: Mix, label_smoothing: float
) -> torch.Tensor:
    """Return the mean loss of a batch in nats per image.

    Args:
        label_smoothing: share of each target that is spread evenly over all classes.
    """
    if kind == "bce":
        targets_BK = soft_targets(labels_B, logits_BK.shape[1], mix, label_smoothing)
        return binary_cross_entropy(logits_BK, targets_BK)
    return mixed_cross_entropy(logits_BK, labels_B, mix, label_smoothing)


def mixed_cross_entropy(
    logits_BK: torch.Tensor, labels_B: torch.Tensor, mix: Mix, label_smoothing: float
) -> torch.Tensor:
    """Return the mean cross-entropy.

    Cross-entropy is linear in its targets, so two losses are mixed instead of making soft targets.
    """
    loss = functional.cross_entropy(logits_BK, labels_B, label_smoothing=label_smoothing)
    if not mix.is_mixed:
        return loss
    others = functional.cross_entropy(logits_BK, labels_B.flip(0), label_smoothing=label_smoothing)
    return torch.lerp(others, loss, mix.share)


def binary_cross_entropy(logits_BK: torch.Tensor, targets_BK: torch.Tensor) -> torch.Tensor:
    """Return the binary cross-entropy of each class, summed over the classes, mean over the images.

    Summed, because the mean over 1,000 classes would make gradients, and so the learning rate, depend on the number of
    classes. At least in float32, also under autocast: the sum over a batch is beyond fp16.
    """
    logits_BK = logits_BK.to(torch.promote_types(logits_BK.dtype, torch.float32))
    loss = functional.binary_cross_entropy_with_logits(logits_BK, targets_BK.to(logits_BK.dtype), reduction="sum")
    return loss / len(logits_BK)


def soft_targets(labels_B: torch.Tensor, num_classes: int, mix: Mix, label_smoothing: float) -> torch.Tensor:
    """Return the probability of each class, float32 [B, K]: smoothed labels, mixed as the images are."""
    rest = label_smoothing / num_classes
    targets_BK = torch.full((len(labels_B), num_classes), rest, device=labels_B.device)
    targets_BK.scatter_(1, labels_B[:, None], 1 - label_smoothing + rest)
    return torch.lerp(targets_BK.flip(0), targets_BK, mix.share) if mix.is_mixed else targets_BK
