"""The optimizer and its schedule: SGD without decay on norms and biases; the rate a function of progress alone."""

import math
from dataclasses import dataclass

import torch
from timm.optim import param_groups_weight_decay
from torch import nn

LR_BATCH_SIZE = 256  # learning rates are given for this batch, and scale linearly (Goyal et al., arXiv 1706.02677)


@dataclass(frozen=True)
class OptimConfig:
    """SGD with Nesterov momentum; linear warm-up, then a half cosine to zero."""

    lr: float = 0.1  # peak, for a batch of 256: scaled linearly with the batch
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4  # not on norms and biases
    warmup_epochs: float = 5.0


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """SGD over two groups: tensors of one dimension (norms, biases) are not decayed, whatever their names."""
    groups = param_groups_weight_decay(model, config.weight_decay)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)


def peak_lr(config: OptimConfig, batch_size: int) -> float:
    """The highest learning rate, for this batch size."""
    return config.lr * batch_size / LR_BATCH_SIZE


def lr_factor(progress: float, warmup: float) -> float:
    """The learning rate as a share of its peak.

    Args:
        progress: share of the run that is done, 0 to 1.
        warmup: share of the run over which the rate rises linearly from 0.
    """
    progress = min(progress, 1.0)
    if progress < warmup or warmup == 1:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
