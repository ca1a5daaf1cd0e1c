"""One training step: what happens to one batch between the loader and the clock."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from loaders import Batch, World
from prep.errors import InputError
from train.augment import Augment
from train.checkpoint import TrainState
from train.config import Recipe
from train.dist import add_up, alone, wrap
from train.ema import Ema
from train.guard import Guard
from train.mix import mixed_loss
from train.optim import check_optimizer, lr_factor, peak_lr, set_lr
from train.speed import compiled

SEED_STRIDE = 1 << 40  # a run sees fewer images
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
        """Count one batch with its mean loss; a loss that is not finite adds none."""
        num_images = len(labels_B)
        hits = (logits_BK.argmax(1) == labels_B).sum()
        finite_loss = torch.where(loss.isfinite(), loss, 0)
        self.loss_and_hits += torch.stack([finite_loss.double() * num_images, hits.double()])
        self.num_images += num_images

    def over(self, world: World) -> list[float]:
        """Loss, hits and images, over all processes: for a checkpoint, so that a resumed run logs the same means."""
        return [*add_up(self.loss_and_hits.clone(), world).tolist(), self.num_images * world.size]

    def restore(self, saved: list[float] | None, world: World) -> None:
        """Go on from what `over` gave, in a world of any size; rank 0 takes the sums, since shares would be rounded."""
        if saved:
            *loss_and_hits, num_images = saved
            if world.rank == 0:
                self.loss_and_hits += torch.tensor(loss_and_hits, dtype=torch.float64, device=self.loss_and_hits.device)
            self.num_images += round(num_images / world.size)


@dataclass(frozen=True)
class Part:
    """Images of a batch that go through the network at once."""

    images_BCHW: torch.Tensor  # uint8
    labels_B: torch.Tensor
    position: int  # of the first one in the stream


class Step:
    """Trains `state` by one batch at a time; holds what does not change from step to step."""

    def __init__(self, recipe: Recipe, state: TrainState, total_images: int, world: World) -> None:
        check_step(recipe, world)
        self.recipe, self.state, self.world = recipe, state, world
        self.total_images = total_images
        self.warmup = recipe.optim.warmup_epochs / recipe.epochs
        self.peak_lr = peak_lr(recipe.optim, recipe.batch_size)
        self.lr = 0.0
        self.slots = world.share(recipe.batch_size)
        self.num_parts = recipe.speed.num_parts(len(self.slots))
        self.model = wrap(compiled(state.model, recipe.speed, recipe.run_dir), world)
        self.ema = Ema(state.model, state.ema, recipe.ema_decay)
        self.augment = Augment(recipe, round(total_images / recipe.epochs), world)
        self.guard = Guard(state.model, world.device)
        self.amp = autocast(recipe, world.device)

    def __call__(self, batch: Batch, sums: Sums) -> None:
        """Forward and backward of each part, optimizer, EMA, clock."""
        state, recipe = self.state, self.recipe
        self.guard.remember()
        losses = [self._accumulate(part, sums, is_last) for part, is_last in self._cut(batch)]
        self.lr = self.peak_lr * self._lr_factor()
        set_lr(state.optimizer, self.lr)
        state.scaler.step(state.optimizer)  # skipped where a gradient is not finite
        state.scaler.update(None if recipe.amp == "fp16" else 1.0)
        state.optimizer.zero_grad()  # to None, before the next forward pass: see `SpeedConfig.num_parts`
        self.guard.settle(torch.stack(losses).isfinite().all())
        self.ema.update()
        state.clock += recipe.batch_size

    def preview(self, batch: Batch, num_images: int) -> torch.Tensor:
        """The first images of a batch as the network sees them, back in uint8 RGB [N, 3, H, W]."""
        images_BCHW, _ = self.augment(batch.images_BCHW, batch.position + self.slots.start)
        return self.augment.normalize.inverse(images_BCHW[:num_images])

    def _cut(self, batch: Batch) -> Iterator[tuple[Part, bool]]:
        """The batch's parts, and whether it is the last one."""
        each = len(batch.labels_B) // self.num_parts
        for i in range(self.num_parts):
            here = slice(i * each, (i + 1) * each)
            position = batch.position + self.slots.start + here.start
            yield Part(batch.images_BCHW[here], batch.labels_B[here], position), i == self.num_parts - 1

    def _accumulate(self, part: Part, sums: Sums, is_last: bool) -> torch.Tensor:
        """Add the gradients of one part; with the last one they are averaged over the processes. Its mean loss."""
        torch.manual_seed((self.recipe.seed * SEED_STRIDE + part.position) % 2**63)  # noise, dropout, stochastic depth
        images_BCHW, mix = self.augment(part.images_BCHW, part.position)
        with nullcontext() if is_last else alone(self.model):
            with self.amp:
                logits_BK = self.model(images_BCHW)
                loss = mixed_loss(logits_BK, part.labels_B, mix, self.recipe.label_smoothing)
            self.state.scaler.scale(loss / self.num_parts).backward()
        sums.add(loss.detach(), logits_BK.detach(), part.labels_B)
        return loss.detach()

    def _lr_factor(self) -> float:
        """Of the middle of the batch."""
        progress = (self.state.clock + self.recipe.batch_size / 2) / self.total_images
        return lr_factor(progress, self.warmup, self.recipe.optim.schedule)


def check_step(recipe: Recipe, world: World) -> None:
    """Check whether a recipe's steps can be taken in this world, before anything is built or written.

    Raises:
        InputError: the batch cannot be shared or cut as asked, settings exclude each other, or the GPU lacks bfloat16.
    """
    recipe.speed.check()
    check_optimizer(recipe.optim)
    recipe.speed.num_parts(len(world.share(recipe.batch_size)))
    check_amp(recipe, world.device)


def check_amp(recipe: Recipe, device: torch.device) -> None:
    """Check whether a device computes in the recipe's type.

    Raises:
        InputError: bfloat16 on a GPU before Ampere (V100, T4). torch would only emulate it there.
    """
    if recipe.amp != "bf16" or device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False):
        return
    name, (major, minor) = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    raise InputError(
        f"amp bf16 needs a GPU that computes in bfloat16 (compute capability 8.0 or higher), and this {name} has "
        f"{major}.{minor}: train with --amp fp16; to evaluate a bf16 checkpoint here, give --device cpu"
    )


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """The autocast context of a recipe; one that does nothing for amp none."""
    return torch.autocast(device.type, AMP_TYPES[recipe.amp], enabled=recipe.amp != "none")


def new_state(recipe: Recipe, model: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer) -> TrainState:
    """The state before the first step.

    Only fp16 needs its gradients scaled; elsewhere the scaler makes the optimizer skip what is not finite.
    """
    scale = 2.0**16 if recipe.amp == "fp16" else 1.0
    scaler = torch.amp.GradScaler(next(model.parameters()).device.type, init_scale=scale)
    return TrainState(model, ema, optimizer, scaler)
