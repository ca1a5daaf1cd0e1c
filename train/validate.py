"""Exact evaluation: every image counted once, whatever the batch and world size. Sums, never averages of averages."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn import functional

from loaders import Batch, Loader, World
from train.dist import add_up, share_buffers


@dataclass(frozen=True)
class Scores:
    """Sums over a whole split."""

    num_images: int
    num_damaged: int  # of these, not decodable and so counted as wrong
    num_top1: int
    num_top5: int
    loss_sum: float  # cross-entropy without label smoothing, nats

    @property
    def top1(self) -> float:
        """Percent."""
        return 100 * self.num_top1 / self.num_images

    @property
    def top5(self) -> float:
        """Percent."""
        return 100 * self.num_top5 / self.num_images

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return self.loss_sum / self.num_images

    def to_dict(self) -> dict[str, float]:
        """Sums and means."""
        return {**asdict(self), "top1": self.top1, "top5": self.top5, "loss": self.loss}


@torch.inference_mode()
def validate(
    models: Mapping[str, nn.Module], normalize: nn.Module, loader: Loader, amp: torch.autocast, world: World
) -> dict[str, Scores]:
    """Evaluate several models in one pass over the data; the scores are the same on every rank.

    Args:
        models: by name, e.g. model and ema; left in training mode.
        loader: of an evaluation transform.
    """
    for model in models.values():
        share_buffers(model, world)
        model.eval()
    sums_M5 = torch.zeros(len(models), 5, dtype=torch.float64, device=world.device)
    for batch in loader:
        images_BCHW = normalize(batch.images_BCHW)
        with amp:
            logits_MBK = [model(images_BCHW) for model in models.values()]
        sums_M5 += torch.stack([score(logits_BK.float(), batch) for logits_BK in logits_MBK])
    for model in models.values():
        model.train()
    return {name: to_scores(sums) for name, sums in zip(models, add_up(sums_M5, world).tolist(), strict=True)}


def score(logits_BK: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Images, damaged ones, top-1 hits, top-5 hits and summed loss of one batch, padding left out: float64 [5].

    A damaged image is no hit; its loss is that of the black one shown instead.
    Exact in float64: all but the last are integers, the losses float32 numbers.
    """
    losses_B = functional.cross_entropy(logits_BK, batch.labels_B, reduction="none")
    num_guesses = min(5, logits_BK.shape[1])
    hits_B5 = (logits_BK.topk(num_guesses, dim=1).indices == batch.labels_B[:, None]) & ~batch.damaged_B[:, None]
    columns = (torch.ones_like(losses_B), batch.damaged_B, hits_B5[:, 0], hits_B5.any(1), losses_B)
    columns_B5 = torch.stack([column_B.float() for column_B in columns], dim=1)
    return torch.where(batch.valid_B[:, None], columns_B5, 0).double().sum(0)


def to_scores(sums: list[float]) -> Scores:
    """Scores from their five sums."""
    *counts, loss_sum = sums
    return Scores(*map(int, counts), loss_sum=loss_sum)
