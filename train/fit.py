"""Training from the first image to the last: `fit` reads as what happens, in its order."""

import copy
import json
from typing import Any

import torch

from loaders import InputError, Loader, Sampling, Split, World, build_loader, select
from prep.dataset import write_whole
from train.checkpoint import (
    TrainState,
    list_checkpoints,
    load_checkpoint,
    newest_whole,
    prune,
    read_meta,
    save_checkpoint,
)
from train.dist import from_every_rank, from_rank_0
from train.journal import Journal
from train.metrics import Meter, train_metrics, validation_metrics
from train.model import build_model
from train.optim import build_optimizer, peak_lr
from train.recipe import Recipe, first_difference
from train.run_folder import CHECKPOINTS, RECIPE
from train.step import Step, Sums, new_state
from train.validate import validate


def fit(recipe: Recipe, world: World) -> None:
    """Train a recipe to its end, going on from its run folder's newest whole checkpoint.

    Raises:
        InputError: the data, the recipe or the run folder cannot be used as they are.
    """
    check_run_folder(recipe)
    training, validation = open_loaders(recipe, world)
    epoch_size = len(training.split)
    total_images = round(recipe.epochs * epoch_size)
    state, sums = start_state(recipe, training, world)
    claim_run_folder(recipe, world)
    step, meter = Step(recipe, state, total_images, world), Meter(training)

    with Journal(recipe, state.clock, epoch_size, world) as journal:
        journal.say(describe(recipe, training, total_images, state.clock, world))
        if state.clock >= total_images:
            journal.say(f"{recipe.run_dir} is finished: nothing left to train")
            return
        batches = iter(training)
        while state.clock < total_images:
            before = state.clock
            step(next(batches), sums)
            last = state.clock >= total_images
            if last or due(recipe.run.log_every, before, state.clock):
                journal.log("train", state.clock, train_metrics(sums, meter, step.lr, world))
                sums = Sums.zero(world.device)
            evaluate = last or due(recipe.run.evaluate_every * epoch_size, before, state.clock)
            metrics = {}
            if evaluate:
                scores = validate({"model": state.model, "ema": state.ema}, step.normalize, validation, step.amp, world)
                metrics = validation_metrics(scores)
                journal.log("validation", state.clock, metrics)
            if evaluate or due(recipe.run.save_every * epoch_size, before, state.clock):
                save(recipe, state, sums, training, metrics, world)
            if evaluate:
                meter.restart()
    journal.say(f"finished: {recipe.run_dir} holds the checkpoints, metrics.jsonl and TensorBoard's logs")


def due(every: float, before: int, now: int) -> bool:
    """Whether the clock passed a multiple of `every` images in going from `before` to `now`."""
    return before // max(1, every) < now // max(1, every)


def check_run_folder(recipe: Recipe) -> None:
    """Raises InputError where the run folder holds a run of another recipe."""
    path = recipe.run_dir / RECIPE
    if path.exists():
        theirs: dict[str, Any] = json.loads(path.read_text())
        if field := first_difference(recipe.to_dict(), theirs):
            raise InputError(
                f"{recipe.run_dir} holds a run of another recipe, {field} differs: choose another --run.dir"
            )


def claim_run_folder(recipe: Recipe, world: World) -> None:
    """Write the resolved recipe into the run folder, once everything that it needs was found to be there."""
    if world.rank == 0 and not (path := recipe.run_dir / RECIPE).exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, (json.dumps(recipe.to_dict(), indent=1) + "\n").encode())


def open_loaders(recipe: Recipe, world: World) -> tuple[Loader, Loader]:
    """The training and the validation loader, over splits of the same classes."""
    data = recipe.data
    splits = [Split(data.root, name) for name in (data.train, data.validation)]
    if splits[0].class_names != splits[1].class_names:
        raise InputError(f"{splits[0].folder} and {splits[1].folder} have different classes: prepare them together")
    splits = [select(splits[0], data.fraction, data.classes), select(splits[1], classes=data.classes)]
    sampling = Sampling(recipe.seed, data.order)
    training, validation = (
        build_loader(split, transform, recipe.batch_size, world, sampling, recipe.loader)
        for split, transform in zip(splits, (recipe.transform, recipe.evaluation), strict=True)
    )
    return training, validation


def start_state(recipe: Recipe, training: Loader, world: World) -> tuple[TrainState, Sums]:
    """A fresh state and what it has added up since the last log, or the newest whole checkpoint's; and the loader's."""
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model, len(training.split.class_names), world.device)
    ema = copy.deepcopy(model).requires_grad_(False)
    state = new_state(recipe, model, ema, build_optimizer(model, recipe.optim))
    sums = Sums.zero(world.device)
    path, damaged = from_rank_0(newest_whole(recipe.run_dir / CHECKPOINTS), world)
    if world.rank == 0 and damaged:
        print("\n".join(damaged), flush=True)
    if path is not None:
        meta = load_checkpoint(path, state)
        try:
            training.load_state_dict(meta["loader"])
        except InputError as error:
            raise InputError(f"{recipe.run_dir} cannot go on: {error}; choose another --run.dir") from error
        sums.restore(meta.get("since_log"), world)
    return state, sums


def save(
    recipe: Recipe, state: TrainState, sums: Sums, training: Loader, metrics: dict[str, float], world: World
) -> None:
    """Save a checkpoint from rank 0; keep the newest ones and the best by EMA top-1."""
    since_log = sums.over(world)
    training.quarantine.add_keys(from_every_rank(training.quarantine.keys(), world))
    if world.rank != 0:
        return
    folder = recipe.run_dir / CHECKPOINTS
    facts = {"recipe": recipe.to_dict(), "loader": training.state_dict(), "metrics": metrics, "since_log": since_log}
    save_checkpoint(folder, state, facts)
    scored = {path: read_meta(path)["metrics"].get("ema_top1", -1.0) for path in list_checkpoints(folder)}
    prune(folder, recipe.run.keep, best=max(scored, key=lambda path: scored[path]))


def describe(recipe: Recipe, training: Loader, total_images: int, clock: int, world: World) -> str:
    """The run in a few words, before it starts."""
    each, lr = len(training.slots), peak_lr(recipe.optim, recipe.batch_size)
    resumed = f", going on at image {clock:,}" if clock else ""
    return (
        f"{recipe.name}: {recipe.model.name}, {len(training.split):,} images of {len(training.split.class_names):,} "
        f"classes, batch {recipe.batch_size} ({world.size} x {each} on {world.device.type}), peak lr {lr:g}, "
        f"{recipe.epochs:g} epochs = {total_images:,} images{resumed}"
    )
