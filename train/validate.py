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
    sums_M4 = torch.zeros(len(models), 4, dtype=torch.float64, device=world.device)
    for batch in loader:
        images_BCHW = normalize(batch.images_BCHW)
        with amp:
            logits_MBK = [model(images_BCHW) for model in models.values()]
        sums_M4 += torch.stack([score(logits_BK.float(), batch) for logits_BK in logits_MBK])
    for model in models.values():
        model.train()
    return {name: to_scores(sums) for name, sums in zip(models, add_up(sums_M4, world).tolist(), strict=True)}


def score(logits_BK: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Images, top-1 hits, top-5 hits and summed loss of one batch, padding left out: float64 [4].

    Exact in float64: the first three are integers, the losses float32 numbers.
    """
    losses_B = functional.cross_entropy(logits_BK, batch.labels_B, reduction="none")
    num_guesses = min(5, logits_BK.shape[1])
    hits_B5 = logits_BK.topk(num_guesses, dim=1).indices == batch.labels_B[:, None]
    columns_B4 = torch.stack(
        [torch.ones_like(losses_B), hits_B5[:, 0].float(), hits_B5.any(1).float(), losses_B], dim=1
    )
    return torch.where(batch.valid_B[:, None], columns_B4, 0).double().sum(0)


def to_scores(sums: list[float]) -> Scores:
    """Scores from their four sums."""
    return Scores(int(sums[0]), int(sums[1]), int(sums[2]), sums[3])
