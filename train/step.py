"""One training step: from a batch of the loader to new weights, a new EMA and a later clock.

Also what belongs to each step: the rollback after a loss that is not finite (`Guard`), and the warm-up before the first
step (`warm_up`).
"""

import math
from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import nn

from loaders import Batch, World
from loaders.plan import sizes
from prep.errors import InputError
from train.batch_augment import BatchAugment, Part
from train.checkpoint import TrainState
from train.compile import compile_model
from train.config import Recipe
from train.dist import all_gather_objects, no_sync, wrap_ddp
from train.ema import Ema, decay_of_update, is_update_due
from train.graphs import StepGraphs, check_graphs, uses_graphs
from train.loss import training_loss
from train.metrics import Sums
from train.optim import check_optimizer, lr_factor, peak_lr, set_lr

SEED_STRIDE = 1 << 40  # distance between the random seeds of two runs: more than the images of any run
AMP_TYPES = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Step:
    """Trains `state` by one batch at a time; holds what does not change from step to step."""

    def __init__(self, recipe: Recipe, state: TrainState, total_images: int, world: World) -> None:
        check_step(recipe, world)
        self.recipe, self.state, self.world = recipe, state, world
        # The learning rate is a function of progress, the share of `schedule_images` that has been seen: the images of
        # the run, or of a longer schedule that the run leaves before its end.
        epoch_size, schedule_epochs = round(total_images / recipe.epochs), recipe.optim.schedule_epochs
        self.schedule_images = total_images if schedule_epochs is None else round(schedule_epochs * epoch_size)
        self.warmup = recipe.optim.warmup_epochs / recipe.schedule_epochs
        self.peak_lr = peak_lr(recipe.optim, recipe.batch_size)
        self.lr = 0.0
        # This rank's slots in each global batch, which go through the network in `num_parts` parts.
        self.slots = world.share(recipe.batch_size)
        self.num_parts = recipe.speed.num_parts(len(self.slots))
        self.model = wrap_ddp(compile_model(state.model, recipe.speed, recipe.run_dir), world)
        self.ema = Ema(state.model, state.ema, decay_of_update(recipe))
        self.augment = BatchAugment(recipe, epoch_size, world)
        self.guard = Guard(state.model, world.device)
        self.amp = autocast(recipe, world.device)
        self.graphs = StepGraphs(self) if uses_graphs(recipe.speed, world.device) else None

    def __call__(self, batch: Batch, sums: Sums) -> None:
        """Train on one batch and advance the clock; add its loss and hits to `sums`.

        Does not wait for the device if the optimizer itself skips bad steps (fused ones do, see `optim.FUSED`). For
        others, the gradient scaler waits to read whether the gradients are finite.
        """
        # Forward, backward and optimizer: operation by operation, or as CUDA graphs of the same operations.
        state, parts = self.state, self._prepare(batch)
        self.lr = self.peak_lr * self._lr_factor()
        if self.graphs is None:
            self.guard.save_statistics()
            losses = [self.forward_backward(part, sums) for part in parts]
            set_lr(state.optimizer, self.lr)
            self.update(torch.stack(losses).isfinite().all())
        else:
            self.graphs.replay(parts, self.lr, sums)

        # Move the clock, and the EMA at every `ema_every` steps.
        state.clock += self.recipe.batch_size
        if is_update_due(self.recipe, state.clock):
            self.ema.update()

    def preview(self, batch: Batch, num_images: int) -> torch.Tensor:
        """Return the first images of a batch as the network sees them, converted back to uint8 RGB [N, 3, H, W]."""
        images_BCHW, _ = self.augment(batch.images_BCHW, batch.position + self.slots.start)
        return self.augment.normalize.inverse(images_BCHW[:num_images])

    def _prepare(self, batch: Batch) -> Iterator[Part]:
        """Yield the batch's parts, each one augmented when it is needed."""
        each = len(batch.labels_B) // self.num_parts
        for i in range(self.num_parts):
            here = slice(i * each, (i + 1) * each)
            position = batch.position + self.slots.start + here.start
            # Noise, dropout and stochastic depth are functions of (seed, position), so a resumed run repeats them.
            torch.manual_seed((self.recipe.seed * SEED_STRIDE + position) % 2**63)
            images_BCHW, mix = self.augment(batch.images_BCHW[here], position)
            yield Part(images_BCHW, batch.labels_B[here], mix, is_last=i == self.num_parts - 1)

    # The work on the device. Whatever changes here from step to step is a tensor, so that CUDA graphs can capture it.

    def forward_backward(self, part: Part, sums: Sums) -> torch.Tensor:
        """Add the gradients of one part, and its loss and hits to `sums`; return its mean loss."""
        # Only the last part's backward pass averages the gradients over the ranks.
        with nullcontext() if part.is_last else no_sync(self.model):
            with self.amp:
                logits_BK = self.model(part.images_BCHW)
                smoothing = self.recipe.label_smoothing
                loss = training_loss(self.recipe.loss, logits_BK, part.labels_B, part.mix, smoothing)
            self.state.scaler.scale(loss / self.num_parts).backward()
        sums.add(loss.detach(), logits_BK.detach(), part.labels_B)
        return loss.detach()

    def update(self, is_finite: torch.Tensor) -> None:
        """Move the weights by the gradients of all parts, and drop these.

        Args:
            is_finite: bool [], on the device: whether all losses are finite.
        """
        # The gradient scaler or the fused optimizer skips the update if a gradient is not finite. Without fp16 the
        # scale stays 1; `update` alone would halve it after a bad step.
        state = self.state
        state.scaler.step(state.optimizer)
        state.scaler.update(None if self.recipe.amp == "fp16" else 1.0)
        state.optimizer.zero_grad()  # to None, before the next forward pass: see `SpeedConfig.num_parts`

        # If the loss is not finite, restore BatchNorm's statistics; the weights were not changed.
        self.guard.rollback_unless_finite(is_finite)

    def _lr_factor(self) -> float:
        """Return the learning rate's share of its peak, at the middle of the batch."""
        progress = (self.state.clock + self.recipe.batch_size / 2) / self.schedule_images
        return lr_factor(progress, self.warmup, self.recipe.optim.schedule)


def check_step(recipe: Recipe, world: World) -> None:
    """Check whether a recipe's steps are possible in this world, before anything is built or written.

    Raises:
        InputError: the batch cannot be shared or cut as asked, settings exclude each other, or the GPU lacks bfloat16.
    """
    recipe.speed.check_speed()
    check_optimizer(recipe.optim)
    check_graphs(recipe, world.size)
    recipe.speed.num_parts(len(world.share(recipe.batch_size)))
    check_amp(recipe, world.device)


def check_amp(recipe: Recipe, device: torch.device) -> None:
    """Check whether a device computes in the recipe's type.

    Raises:
        InputError: bfloat16 on a GPU before Ampere (V100, T4), where torch would only emulate it.
    """
    if recipe.amp != "bf16" or device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False):
        return
    name, (major, minor) = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    raise InputError(
        f"amp bf16 needs a GPU that computes in bfloat16 (compute capability 8.0 or higher), and this {name} has "
        f"{major}.{minor}: train with --amp fp16; to evaluate a bf16 checkpoint here, give --device cpu"
    )


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """Return the autocast context of a recipe; for amp none it does nothing."""
    return torch.autocast(device.type, AMP_TYPES[recipe.amp], enabled=recipe.amp != "none")


def new_state(recipe: Recipe, model: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer) -> TrainState:
    """Return the state before the first step.

    Only fp16 needs scaled gradients; with the other types the scaler only makes the optimizer skip a step if
    a gradient is not finite.
    """
    scale = 2.0**16 if recipe.amp == "fp16" else 1.0
    scaler = torch.amp.GradScaler(next(model.parameters()).device.type, init_scale=scale)
    return TrainState(model, ema, optimizer, scaler)


class NotFiniteError(InputError):
    """The loss was not finite for `num_steps` steps in a row."""

    def __init__(self, num_steps: int) -> None:
        super().__init__(f"the loss was not finite for {num_steps} steps in a row")
        self.num_steps = num_steps


class Guard:
    """Restores BatchNorm's running statistics after a step with a loss that is not finite; counts such steps.

    The optimizer skips such a step by itself. But running statistics that have once been infinite or NaN stay so
    forever, and so do the averaged weights. Everything happens on the device; only `check_bad_steps` waits for it.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self.sizes = [buffer.numel() for buffer in self.statistics]
        self.num_in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        self.save_statistics()

    @torch.no_grad()
    def save_statistics(self) -> None:
        """Copy the running statistics; to be called before a step."""
        self.saved = self._flatten()

    @torch.no_grad()
    def rollback_unless_finite(self, is_finite: torch.Tensor) -> None:
        """Restore the running statistics if the step's loss was not finite.

        Args:
            is_finite: bool [], on the device, so that this does not wait for its value.
        """
        self.num_in_a_row.copy_(torch.where(is_finite, 0, self.num_in_a_row + 1))  # in place, for CUDA graphs
        if self.statistics:
            chosen = torch.where(is_finite, self._flatten(), self.saved).split(self.sizes)
            shaped = [new.view_as(old) for new, old in zip(chosen, self.statistics, strict=True)]
            torch._foreach_copy_(self.statistics, shaped)

    def check_bad_steps(self, most: int, world: World) -> None:
        """Raise NotFiniteError if some rank had `most` bad steps in a row. Waits for the device; call on every rank."""
        num_in_a_row = max(all_gather_objects([int(self.num_in_a_row)], world))
        if num_in_a_row >= most:
            raise NotFiniteError(num_in_a_row)

    def _flatten(self) -> torch.Tensor:
        return torch.cat([each.flatten() for each in self.statistics]) if self.statistics else torch.empty(0)


def warm_up(step: Step) -> None:
    """Run the network at each resolution before the first step; change neither weights nor running statistics.

    For two reasons. No later step is delayed by compiling, choosing convolutions or recording CUDA graphs. And a
    resumed run computes the same bits as an uninterrupted one: after its first backward pass DDP reorders the buckets
    of gradients in the order in which these are ready, and sums of three or more addends then round differently.
    """
    recipe, world = step.recipe, step.world
    resolutions = sizes(recipe.transform, math.ceil(recipe.epochs))
    if recipe.speed.compile == "none" and world.device.type == "cpu" and step.graphs is None:
        # Nothing to compile, tune or capture. DDP needs one pass, at any resolution.
        resolutions = resolutions[:1] if world.size > 1 else []

    # The forward passes change running statistics: restore them afterwards.
    buffers = list(step.state.model.buffers())
    saved = [buffer.clone() for buffer in buffers]
    for size in resolutions:
        for _ in range(recipe.speed.num_rehearsals):
            rehearse(step, size)
            # Before the next pass: with CUDA graphs these gradients are memory of a graph that it overwrites.
            step.state.optimizer.zero_grad()
        if step.graphs is not None:
            step.graphs.warm_up(size)
    for buffer, before in zip(buffers, saved, strict=True):
        buffer.copy_(before)

    # Capture the largest resolution first: smaller ones then fit into its memory, which the graphs share. And after all
    # warm-ups, which cannot use that memory.
    if step.graphs is not None:
        for size in sorted(resolutions, reverse=True):
            step.graphs.capture(size)


def rehearse(step: Step, size: int) -> None:
    """Run forward and backward once on black images of `size` pixels, as many as go through the network at once."""
    shape = (len(step.slots) // step.num_parts, 3, size, size)
    images_BCHW = torch.zeros(shape, device=step.world.device).contiguous(memory_format=torch.channels_last)
    with step.amp:
        outputs_BK = step.model(images_BCHW)
    outputs_BK.float().sum().backward()
    check_gradients(step)


def check_gradients(step: Step) -> None:
    """Check that every parameter got a gradient; in a run of several processes DDP would wait for a missing one.

    Raises:
        InputError: a parameter has none.
    """
    unused = [name for name, each in step.state.model.named_parameters() if each.requires_grad and each.grad is None]
    if unused and step.world.size > 1:
        raise InputError(
            f"{step.recipe.model.name} does not use {unused[0]}{' and others' if len(unused) > 1 else ''} in training, "
            "and such a model trains in one process alone: start one, or choose another --model.name"
        )
