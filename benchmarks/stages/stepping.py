"""The stages `loader`, `model` and `train`: the complete loader, the training step, and the step fed by the loader."""

import copy
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from types import TracebackType

import torch
from pace import max_batches_ready
from stages.setting import Setting
from stages.stage import LOADER, MODEL, TRAIN, Stage

from loaders import Batch, Loader, LoaderConfig, Stats, TrainTransform, World, build_loader
from train.compile import SpeedConfig, set_precision
from train.config import Recipe, RunConfig
from train.metrics import Sums
from train.model import build_model
from train.optim import build_optimizer
from train.step import Step, new_state

TOTAL_IMAGES = 10**9  # keeps the learning rate in its warm-up
FIRST_STEPS = 3  # untimed steps at the start of a window of training


class Feed:
    """One loader's stream of batches, open as long as stages take batches from it."""

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
    """Take batches as fast as they come."""

    def __init__(self, feed: Feed, name: str = LOADER) -> None:
        super().__init__(name, len(feed.loader.slots), feed.loader.world)
        self.feed = feed

    def take(self) -> None:
        next(self.feed.batches)

    def rest(self) -> None:
        """Use up the batches that an idle loader has made ready: they would make the window too fast."""
        for _ in range(max_batches_ready(self.feed.loader.config)):
            next(self.feed.batches)

    def stats(self) -> Stats:
        return self.feed.loader.stats()


class Stepping(Feeding):
    """Run a training step on each batch of a feed: the synthetic one for `model`, the loader's for `train`."""

    def __init__(self, feed: Feed, step: Step) -> None:
        super().__init__(feed, TRAIN if feed.loader.backend.reads else MODEL)
        self.step, self.sums = step, Sums.zero(feed.loader.world.device)

    def take(self) -> None:
        self.step(next(self.feed.batches), self.sums)

    def rest(self) -> None:
        """Also run a few steps, during which a loader that is faster than the step gets ahead again."""
        if self.name == TRAIN:
            super().rest()
            for _ in range(FIRST_STEPS):
                self.take()


def open_synthetic(loader: Loader, size: int, batch_size: int | None = None) -> Loader:
    """Return a loader of the same batches without their pixels: noise of `size` pixels, already on the device.

    Args:
        batch_size: images over all processes; None: as many as `loader` has.
    """
    config = LoaderConfig(backend="synthetic")
    return build_loader(
        loader.split, TrainTransform(size), batch_size or loader.batch_size, loader.world, config=config
    )


def build_step(setting: Setting, loader: Loader) -> Step:
    """Return the training step as `train.fit` builds it at the start of a run."""
    return make_step(setting, loader.batch_size, len(loader.split.class_names), loader.world)


def make_step(setting: Setting, batch_size: int, num_classes: int, world: World) -> Step:
    """Return a training step for batches that need not come from a loader.

    Args:
        batch_size: images of a batch over all processes.
    """
    # The recipe with the model, batch size, precision and compile mode of the settings, at one resolution. The weights
    # are random ones: a measurement loads no files.
    base = setting.recipe or Recipe(name="throughput", epochs=100)
    recipe = replace(
        base,
        batch_size=batch_size,
        amp=setting.amp,  # pyright: ignore[reportArgumentType]  (the command line has checked it)
        model=replace(base.model, name=setting.model, pretrained="", init=None),
        transform=replace(base.transform, size=setting.size, first_size=None),
        speed=SpeedConfig(compile=setting.compile, microbatch=setting.microbatch),
        run=RunConfig(dir=setting.run_dir),
    )
    # Build the network, its EMA and the optimizer as at the start of a run.
    set_precision(recipe.speed)
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model, num_classes, world.device)
    ema = copy.deepcopy(model).requires_grad_(False)
    state = new_state(recipe, model, ema, build_optimizer(model, recipe.optim, recipe.batch_size))
    return Step(recipe, state, TOTAL_IMAGES, world)
