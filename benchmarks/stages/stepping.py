"""The stages `loader`, `model` and `train`: all of the loader, the training step alone, and one fed by the other."""

import copy
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from types import TracebackType

import torch
from pace import most_ready
from stages.setting import Setting
from stages.stage import LOADER, MODEL, TRAIN, Stage

from loaders import Batch, Loader, LoaderConfig, Stats, TrainTransform, World, build_loader
from train.config import Recipe, RunConfig
from train.model import ModelConfig, build_model
from train.optim import build_optimizer
from train.speed import SpeedConfig, set_precision
from train.step import Step, Sums, new_state

TOTAL_IMAGES = 10**9  # keeps the learning rate in its warm-up
FIRST_STEPS = 3  # untimed, of a window of training


class Feed:
    """One loader's stream of batches, open for as long as stages take from it."""

    def __init__(self, loader: Loader) -> None:
        self.loader, self.batches = loader, iter(loader)

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        with closing(self.batches):  # pyright: ignore[reportArgumentType]  (a generator)
            pass

    def __iter__(self) -> Iterator[Batch]:
        return self.batches


class Feeding(Stage):
    """Batches taken as fast as they come."""

    def __init__(self, feed: Feed, name: str = LOADER) -> None:
        super().__init__(name, len(feed.loader.slots), feed.loader.world)
        self.feed = feed

    def take(self) -> None:
        next(self.feed.batches)

    def rest(self) -> None:
        """Use up what a loader that stood still has made ready."""
        for _ in range(most_ready(self.feed.loader.config)):
            next(self.feed.batches)

    def stats(self) -> Stats:
        return self.feed.loader.stats()


class Stepping(Feeding):
    """A training step for each batch of a feed: the synthetic one's for the model alone, the loader's for training."""

    def __init__(self, feed: Feed, step: Step) -> None:
        super().__init__(feed, TRAIN if feed.loader.backend.reads else MODEL)
        self.step, self.sums = step, Sums.zero(feed.loader.world.device)

    def take(self) -> None:
        self.step(next(self.feed.batches), self.sums)

    def rest(self) -> None:
        """Then a few steps, beside which a loader that is faster gets ahead again."""
        if self.name == TRAIN:
            super().rest()
            for _ in range(FIRST_STEPS):
                self.take()


def open_synthetic(loader: Loader, size: int) -> Loader:
    """The same batches without their pixels: noise of `size` pixels, already on the device."""
    config = LoaderConfig(backend="synthetic")
    return build_loader(loader.split, TrainTransform(size), loader.batch_size, loader.world, config=config)


def build_step(setting: Setting, loader: Loader) -> Step:
    """The training step as `train.fit` makes it, at the start of a run."""
    return make_step(setting, loader.batch_size, len(loader.split.class_names), loader.world)


def make_step(setting: Setting, batch_size: int, num_classes: int, world: World) -> Step:
    """Return the same for batches that need not come from a loader; `batch_size` counts images over all processes."""
    recipe = Recipe(
        name="throughput",
        epochs=100,
        batch_size=batch_size,
        amp=setting.amp,  # pyright: ignore[reportArgumentType]  (the command line has checked it)
        model=ModelConfig(setting.model),
        speed=SpeedConfig(compile=setting.compile),
        run=RunConfig(dir=setting.run_dir),
    )
    recipe = replace(recipe, transform=TrainTransform(setting.size))
    set_precision(recipe.speed)
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model, num_classes, world.device)
    ema = copy.deepcopy(model).requires_grad_(False)
    state = new_state(recipe, model, ema, build_optimizer(model, recipe.optim))
    return Step(recipe, state, TOTAL_IMAGES, world)
