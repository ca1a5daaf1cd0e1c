"""Exact evaluation: every image is counted once, for any batch size and number of processes.

Sums are accumulated, never averages of averages. Training needs only the sums (`validate`); `train/evaluate.py` needs
a prediction for each image (`collect_predictions`). M models, B images of a batch, K classes.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn import functional

from loaders import Batch, World
from train.dist import all_reduce_sum, broadcast_buffers, gather_to_rank0

# Columns of `collect_predictions`: an image's row and damage, then the columns of `score_images` for each model.
NUM_FACTS, NUM_SCORES = 2, 4
PADDING = -1  # row of a slot that holds no image


@dataclass(frozen=True)
class Hits:
    """Counts over a complete split."""

    num_images: int
    num_damaged: int  # images that cannot be decoded, and are counted as wrong
    num_top1: int
    num_top5: int

    @property
    def top1(self) -> float:
        """Top-1 accuracy in percent."""
        return 100 * self.num_top1 / self.num_images

    @property
    def top5(self) -> float:
        """Top-5 accuracy in percent."""
        return 100 * self.num_top5 / self.num_images


@dataclass(frozen=True)
class Scores(Hits):
    """Counts and summed loss over a complete split."""

    loss_sum: float  # cross-entropy without label smoothing, nats

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return self.loss_sum / self.num_images

    def to_dict(self) -> dict[str, float]:
        """Return sums and means by name."""
        return {**asdict(self), "top1": self.top1, "top5": self.top5, "loss": self.loss}


class Mirrored(nn.Module):
    """A model that returns the mean logits of each image and its mirror image, as FFCV evaluates."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return (self.model(images_BCHW).float() + self.model(images_BCHW.flip(3)).float()) / 2


@torch.inference_mode()
def validate(
    models: Mapping[str, nn.Module], normalize: nn.Module, batches: Iterable[Batch], amp: torch.autocast, world: World
) -> dict[str, Scores]:
    """Evaluate several models in one pass over the data; return the same scores on every rank.

    Args:
        models: by name, e.g. model and ema; afterwards in training mode.
        batches: of an evaluation transform.
    """
    sums_M5 = torch.zeros(len(models), 5, dtype=torch.float64, device=world.device)
    for batch, logits_MBK in iterate_logits(models, normalize, batches, amp, world):
        sums_M5 += torch.stack([sum_scores(logits_BK, batch) for logits_BK in logits_MBK])
    totals_M5 = all_reduce_sum(sums_M5, world).tolist()
    return {name: to_scores(sums_5) for name, sums_5 in zip(models, totals_M5, strict=True)}


@torch.inference_mode()
def collect_predictions(
    models: Mapping[str, nn.Module], normalize: nn.Module, batches: Iterable[Batch], amp: torch.autocast, world: World
) -> torch.Tensor | None:
    """Return the models' predictions for each image on rank 0, None on other ranks. Arguments as for `validate`.

    Returns:
        float64 [S, 2 + 4 M] for the S slots of all batches: row in the index or PADDING, damaged, and for each model
        the columns of `score_images`.
    """
    pieces = []
    for batch, logits_MBK in iterate_logits(models, normalize, batches, amp, world):
        rows_B = torch.where(batch.valid_B, torch.from_numpy(batch.rows_B).to(world.device), PADDING)
        facts_B2 = torch.stack([rows_B, batch.damaged_B], dim=1).double()
        scores = (score_images(logits_BK, batch.labels_B) for logits_BK in logits_MBK)
        pieces.append(torch.cat([facts_B2, *scores], dim=1))
    return gather_to_rank0(torch.cat(pieces), world)


def iterate_logits(
    models: Mapping[str, nn.Module], normalize: nn.Module, batches: Iterable[Batch], amp: torch.autocast, world: World
) -> Iterator[tuple[Batch, list[torch.Tensor]]]:
    """Yield each batch with every model's logits, float32 [B, K]; afterwards set the models to training mode."""
    for model in models.values():
        broadcast_buffers(model, world)  # in training, running statistics differ between ranks
        model.eval()
    for batch in batches:
        images_BCHW = normalize(batch.images_BCHW)
        with amp:
            logits_MBK = [model(images_BCHW) for model in models.values()]
        yield batch, [logits_BK.float() for logits_BK in logits_MBK]
    for model in models.values():
        model.train()


def score_images(logits_BK: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """Return for each image the predicted class, its softmax, whether the label is in the top 5, and the loss in nats.

    Returns:
        float64 [B, 4]; exact, since the values are integers and float32 numbers.
    """
    guesses_B5 = logits_BK.topk(min(5, logits_BK.shape[1]), dim=1).indices
    confidences_B = logits_BK.softmax(dim=1).amax(dim=1)
    in_top5_B = (guesses_B5 == labels_B[:, None]).any(dim=1)
    losses_B = functional.cross_entropy(logits_BK, labels_B, reduction="none")
    return torch.stack([each.double() for each in (guesses_B5[:, 0], confidences_B, in_top5_B, losses_B)], dim=1)


def sum_scores(logits_BK: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return images, damaged images, top-1 hits, top-5 hits and summed loss of one batch without padding: float64 [5].

    A damaged image is never a hit; its loss is that of the black image shown instead.
    """
    guesses_B, _, in_top5_B, losses_B = score_images(logits_BK, batch.labels_B).unbind(1)
    hits_B = (guesses_B == batch.labels_B) & ~batch.damaged_B
    columns = (torch.ones_like(losses_B), batch.damaged_B, hits_B, (in_top5_B > 0) & ~batch.damaged_B, losses_B)
    columns_B5 = torch.stack([column_B.double() for column_B in columns], dim=1)
    return torch.where(batch.valid_B[:, None], columns_B5, 0).sum(0)


def to_scores(sums: list[float]) -> Scores:
    """Return the scores, given the five sums of `sum_scores`."""
    *counts, loss_sum = sums
    return Scores(*map(int, counts), loss_sum=loss_sum)
