"""Exact evaluation: every image counted once, whatever the batch and world size. Sums, never averages of averages.

Between the loader and two readers: training adds up sums on every process (`validate`), `train/evaluate.py` takes a
verdict on each image (`judge_images`). M models, B images of a batch, K classes.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn import functional

from loaders import Batch, World
from train.dist import add_up, share_buffers, to_rank_0

NUM_FACTS, NUM_VERDICTS = 2, 4  # columns of an image: row and damaged; then what `judge` gives for each model
PADDING = -1  # instead of an image's row


@dataclass(frozen=True)
class Hits:
    """Counts over a whole split."""

    num_images: int
    num_damaged: int  # of these, not decodable and so counted as wrong
    num_top1: int
    num_top5: int

    @property
    def top1(self) -> float:
        """Percent."""
        return 100 * self.num_top1 / self.num_images

    @property
    def top5(self) -> float:
        """Percent."""
        return 100 * self.num_top5 / self.num_images


@dataclass(frozen=True)
class Scores(Hits):
    """Sums over a whole split."""

    loss_sum: float  # cross-entropy without label smoothing, nats

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return self.loss_sum / self.num_images

    def to_dict(self) -> dict[str, float]:
        """Sums and means."""
        return {**asdict(self), "top1": self.top1, "top5": self.top5, "loss": self.loss}


class Mirrored(nn.Module):
    """A model that sees each image and its mirror image: the mean of both logits, as FFCV evaluates."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return (self.model(images_BCHW).float() + self.model(images_BCHW.flip(3)).float()) / 2


@torch.inference_mode()
def validate(
    models: Mapping[str, nn.Module], normalize: nn.Module, batches: Iterable[Batch], amp: torch.autocast, world: World
) -> dict[str, Scores]:
    """Evaluate several models in one pass over the data; the scores are the same on every rank.

    Args:
        models: by name, e.g. model and ema; left in training mode.
        batches: of an evaluation transform.
    """
    sums_M5 = torch.zeros(len(models), 5, dtype=torch.float64, device=world.device)
    for batch, logits_MBK in predict(models, normalize, batches, amp, world):
        sums_M5 += torch.stack([score(logits_BK, batch) for logits_BK in logits_MBK])
    return {name: to_scores(sums) for name, sums in zip(models, add_up(sums_M5, world).tolist(), strict=True)}


@torch.inference_mode()
def judge_images(
    models: Mapping[str, nn.Module], normalize: nn.Module, batches: Iterable[Batch], amp: torch.autocast, world: World
) -> torch.Tensor | None:
    """What the models say of each image, on rank 0; None elsewhere. Arguments as for `validate`.

    Returns:
        float64 [slots of all batches, 2 + 4 M]: row in the index or PADDING, damaged, and for each model what `judge`
        gives.
    """
    pieces = []
    for batch, logits_MBK in predict(models, normalize, batches, amp, world):
        rows_B = torch.where(batch.valid_B, torch.from_numpy(batch.rows_B).to(world.device), PADDING)
        facts_B2 = torch.stack([rows_B, batch.damaged_B], dim=1).double()
        pieces.append(torch.cat([facts_B2, *(judge(logits_BK, batch.labels_B) for logits_BK in logits_MBK)], dim=1))
    return to_rank_0(torch.cat(pieces), world)


def predict(
    models: Mapping[str, nn.Module], normalize: nn.Module, batches: Iterable[Batch], amp: torch.autocast, world: World
) -> Iterator[tuple[Batch, list[torch.Tensor]]]:
    """Each batch with every model's logits, float32 [B, K]; models are in training mode again after the last one."""
    for model in models.values():
        share_buffers(model, world)
        model.eval()
    for batch in batches:
        images_BCHW = normalize(batch.images_BCHW)
        with amp:
            logits_MBK = [model(images_BCHW) for model in models.values()]
        yield batch, [logits_BK.float() for logits_BK in logits_MBK]
    for model in models.values():
        model.train()


def judge(logits_BK: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """Of each image the guess, its softmax, whether the label is among five guesses, and the loss in nats.

    Returns:
        float64 [B, 4]: exact, since they are integers and float32 numbers.
    """
    guesses_B5 = logits_BK.topk(min(5, logits_BK.shape[1]), dim=1).indices
    confidences_B = logits_BK.softmax(dim=1).amax(dim=1)
    in_top5_B = (guesses_B5 == labels_B[:, None]).any(dim=1)
    losses_B = functional.cross_entropy(logits_BK, labels_B, reduction="none")
    return torch.stack([each.double() for each in (guesses_B5[:, 0], confidences_B, in_top5_B, losses_B)], dim=1)


def score(logits_BK: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Images, damaged ones, top-1 hits, top-5 hits and summed loss of one batch, padding left out: float64 [5].

    A damaged image is no hit; its loss is that of the black one shown instead.
    """
    guesses_B, _, in_top5_B, losses_B = judge(logits_BK, batch.labels_B).unbind(1)
    hits_B = (guesses_B == batch.labels_B) & ~batch.damaged_B
    columns = (torch.ones_like(losses_B), batch.damaged_B, hits_B, (in_top5_B > 0) & ~batch.damaged_B, losses_B)
    columns_B5 = torch.stack([column_B.double() for column_B in columns], dim=1)
    return torch.where(batch.valid_B[:, None], columns_B5, 0).sum(0)


def to_scores(sums: list[float]) -> Scores:
    """Scores from their five sums."""
    *counts, loss_sum = sums
    return Scores(*map(int, counts), loss_sum=loss_sum)
