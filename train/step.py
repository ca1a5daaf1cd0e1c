"""One training step: what happens to one batch between the loader and the clock."""

from dataclasses import dataclass

import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn import functional

from loaders import Batch, World
from loaders.normalize import Normalize
from train.checkpoint import TrainState
from train.dist import add_up, wrap
from train.optim import lr_factor, peak_lr, set_lr
from train.recipe import Recipe

SEED_STRIDE, MOST_RANKS = 1 << 40, 1 << 12  # a run sees fewer images, and has fewer processes
AMP_TYPES = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Sums:
    """Training metrics since the last log, added up on the device so that no step waits for them."""

    loss_and_hits: torch.Tensor  # float64 [2]
    num_images: int = 0

    @classmethod
    def zero(cls, device: torch.device) -> "Sums":
        """Nothing yet."""
        return cls(torch.zeros(2, dtype=torch.float64, device=device))

    @torch.no_grad()
    def add(self, loss: torch.Tensor, logits_BK: torch.Tensor, labels_B: torch.Tensor) -> None:
        """Count one batch with its mean loss."""
        num_images = len(labels_B)
        hits = (logits_BK.argmax(1) == labels_B).sum()
        self.loss_and_hits += torch.stack([loss.double() * num_images, hits.double()])
        self.num_images += num_images

    def over(self, world: World) -> list[float]:
        """Loss, hits and images, over all processes: for a checkpoint, so that a resumed run logs the same means."""
        return [*add_up(self.loss_and_hits.clone(), world).tolist(), self.num_images * world.size]

    def restore(self, saved: list[float] | None, world: World) -> None:
        """Go on from what `over` gave, in a world of any size: each process takes an equal share."""
        if saved:
            loss, hits, num_images = (value / world.size for value in saved)
            self.loss_and_hits += torch.tensor([loss, hits], dtype=torch.float64, device=self.loss_and_hits.device)
            self.num_images += round(num_images)


class Step:
    """Trains `state` by one batch at a time; holds what does not change from step to step."""

    def __init__(self, recipe: Recipe, state: TrainState, total_images: int, world: World) -> None:
        self.recipe, self.state, self.world = recipe, state, world
        self.total_images = total_images
        self.warmup = recipe.optim.warmup_epochs / recipe.epochs
        self.peak_lr = peak_lr(recipe.optim, recipe.batch_size)
        self.lr = 0.0
        self.model = wrap(state.model, world)
        self.ema = ModelEmaV3(state.model, decay=recipe.ema_decay)
        self.ema.module = state.ema
        self.normalize = Normalize(recipe.model.mean, recipe.model.std).to(world.device)
        self.amp = autocast(recipe, world.device)

    def __call__(self, batch: Batch, sums: Sums) -> None:
        """Forward, backward, optimizer, EMA, clock."""
        state, recipe = self.state, self.recipe
        self._seed(batch.position)
        with self.amp:
            logits_BK = self.model(self.normalize(batch.images_BCHW))
            loss = functional.cross_entropy(logits_BK, batch.labels_B, label_smoothing=recipe.label_smoothing)
        self.lr = self.peak_lr * lr_factor((state.clock + recipe.batch_size / 2) / self.total_images, self.warmup)
        set_lr(state.optimizer, self.lr)
        state.scaler.scale(loss).backward()
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad()
        self.ema.update(state.model)
        state.clock += recipe.batch_size
        sums.add(loss, logits_BK, batch.labels_B)

    def _seed(self, position: int) -> None:
        """Dropout and stochastic depth are a function of (seed, position, rank): a resumed run draws the same."""
        torch.manual_seed(((self.recipe.seed * SEED_STRIDE + position) * MOST_RANKS + self.world.rank) % 2**63)


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """The autocast context of a recipe; one that does nothing for amp none."""
    return torch.autocast(device.type, AMP_TYPES[recipe.amp], enabled=recipe.amp != "none")


def new_state(recipe: Recipe, model: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer) -> TrainState:
    """The state before the first step."""
    device = next(model.parameters()).device.type
    return TrainState(model, ema, optimizer, torch.amp.GradScaler(device, enabled=recipe.amp == "fp16"))
