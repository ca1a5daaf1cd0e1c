"""Small training steps for tests that need no data: recipes, steps, random batches, copies of the state."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from loaders import Batch, World
from train.config import Recipe
from train.model import build_model
from train.optim import build_optimizer
from train.recipe import demo
from train.step import Step, new_state

CPU = torch.device("cpu")


def small(batch_size: int = 16, **changes: Any) -> Recipe:
    """Return the demo recipe at 16 pixels; it uses every component except dropout."""
    recipe = demo()
    return replace(recipe, batch_size=batch_size, transform=replace(recipe.transform, size=16), **changes)


def build_step(recipe: Recipe, dtype: torch.dtype = torch.float32, network: nn.Module | None = None) -> Step:
    """Return a step of the recipe's network, or of a copy of another one."""
    torch.manual_seed(recipe.seed)
    model = (copy.deepcopy(network) if network else build_model(recipe.model, 10, CPU)).to(dtype)
    state = new_state(recipe, model, copy.deepcopy(model), build_optimizer(model, recipe.optim, recipe.batch_size))
    return Step(recipe, state, 1600, World())


def random_batch(position: int) -> Batch:
    generator = torch.Generator().manual_seed(position)
    images = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8, generator=generator)
    images = images.contiguous(memory_format=torch.channels_last)
    valid, damaged = torch.ones(16, dtype=torch.bool), torch.zeros(16, dtype=torch.bool)
    return Batch(images, torch.arange(16) % 10, valid, damaged, position, np.arange(16))


def tensors(step: Step) -> dict[str, torch.Tensor]:
    """Return copies of all tensors that a step may change, by name."""
    state = step.state
    momenta = {
        f"momentum {i}": each["momentum_buffer"] for i, each in enumerate(state.optimizer.state.values()) if each
    }
    weights = {f"model {name}": tensor for name, tensor in state.model.state_dict().items()}
    averages = {f"ema {name}": tensor for name, tensor in state.ema.state_dict().items()}
    return {name: tensor.clone() for name, tensor in {**weights, **averages, **momenta}.items()}
