"""The optimizer and its schedules: SGD without decay on norms and biases; the rate a function of progress alone."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from timm.optim import param_groups_weight_decay
from torch import nn

LR_BATCH_SIZE = 256  # learning rates are given for this batch, and scale linearly (Goyal et al., arXiv 1706.02677)


ScheduleKind = Literal["cosine", "linear"]


@dataclass(frozen=True)
class OptimConfig:
    """SGD with Nesterov momentum; linear warm-up, then down to zero."""

    lr: float = 0.1  # peak, for a batch of 256: scaled linearly with the batch
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4  # not on norms and biases
    warmup_epochs: float = 5.0
    schedule: ScheduleKind = "cosine"  # half a cosine to zero; or a straight line


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """SGD over two groups: tensors of one dimension (norms, biases) are not decayed, whatever their names.

    Fused: one kernel for all tensors, which itself passes over a step whose gradients are not finite.
    """
    groups = param_groups_weight_decay(model, config.weight_decay)
    optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True)
    if config.momentum:  # torch 2.15 leaves them as they come from the allocator where the very first step is skipped
        for parameter in model.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def peak_lr(config: OptimConfig, batch_size: int) -> float:
    """The highest learning rate, for this batch size."""
    return config.lr * batch_size / LR_BATCH_SIZE


def cosine(progress: float) -> float:
    """From 1 to 0 along half a cosine (SGDR, arXiv 1608.03983, without restarts)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def linear(progress: float) -> float:
    """From 1 to 0 along a straight line, as in FFCV's recipes."""
    return 1 - progress


SCHEDULES: dict[ScheduleKind, Callable[[float], float]] = {"cosine": cosine, "linear": linear}


def lr_factor(progress: float, warmup: float, schedule: ScheduleKind = "cosine") -> float:
    """The learning rate as a share of its peak.

    Args:
        progress: share of the run that is done, 0 to 1.
        warmup: share of the run over which the rate rises linearly from 0; the schedule takes the rest.
    """
    progress = min(progress, 1.0)
    if progress < warmup or warmup == 1:
        return progress / warmup
    return SCHEDULES[schedule]((progress - warmup) / (1 - warmup))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
