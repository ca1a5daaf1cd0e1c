"""Shared by the tests of evaluation and export: checkpoints without a run, and the command in several processes."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from helpers.commands import CHECKOUT, free_port
from helpers.ranks import Ranks
from loaders import EvalTransform, LoaderConfig, Split, TrainTransform, build_loader
from loaders.batch import Normalize
from train.checkpoint import TrainState, take_snapshot, write_checkpoint
from train.config import ModelConfig, Recipe
from train.model import build_model
from train.recipe import demo

CPU = torch.device("cpu")


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: on a machine that is busy, threads that wait for each other take ten times as long."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def tiny_recipe(data: Path) -> Recipe:
    """The demo with a tiny network at 16 pixels, cropped from 20."""
    recipe = demo()
    return replace(
        recipe,
        model=ModelConfig("test_resnet"),
        transform=TrainTransform(size=16, scale=(0.6, 1.0), hflip=0.0),
        evaluation=EvalTransform(size=16, resize=20),
        data=replace(recipe.data, root=data),
    )


@one_thread()
def learn(recipe: Recipe, num_steps: int) -> tuple[nn.Module, nn.Module]:
    """A network halfway to having learnt something, and when it has."""
    torch.manual_seed(0)
    model = build_model(recipe.model, 10, CPU)
    halfway = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    normalize = Normalize(recipe.model.mean, recipe.model.std)
    loader = build_loader(Split(recipe.data.root, "train"), recipe.transform, 64, config=LoaderConfig("reference"))
    for number, batch in enumerate(islice(loader, num_steps), start=1):
        functional.cross_entropy(model(normalize(batch.images_BCHW)), batch.labels_B).backward()
        optimizer.step()
        optimizer.zero_grad()
        if number == num_steps // 2:
            halfway.load_state_dict(model.state_dict())
    return halfway, model


def save(folder: Path, recipe: Recipe, model: nn.Module, ema: nn.Module, **metrics: float) -> Path:
    """A checkpoint as a run saves it, below `folder`."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = TrainState(model, ema, optimizer, torch.amp.GradScaler("cpu", enabled=False), clock=1280)
    return write_checkpoint(
        folder / "checkpoints", take_snapshot(state), {"recipe": recipe.to_dict(), "metrics": metrics}
    )


def evaluate(ranks: Ranks, size: int, folder: Path, *arguments: object) -> str:
    """Return what train/evaluate.py prints with a number of processes, as torchrun starts them."""
    port = free_port()
    words: list[Any] = [*map(str, arguments), "--device", "cpu"]
    script = str(CHECKOUT / "train/evaluate.py")
    group = ranks.start("script", size, folder, script=script, arguments=words, port=port)
    for ended in ranks.wait(60):
        assert ended.status == 0, ended.stderr
    assert not any((group / f"stdout-{rank}").read_text() for rank in range(1, size)), "others than rank 0 spoke"
    return (group / "stdout-0").read_text()
