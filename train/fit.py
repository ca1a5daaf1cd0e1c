"""Training from the first image to the last: `fit` reads as what happens, in its order."""

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loaders import Batch, Loader, Sampling, Split, World, build_loader, select
from loaders.placement import Choice
from loaders.subset import Subset
from prep.errors import InputError
from prep.files import write_whole
from train.checkpoint import TrainState, load_checkpoint
from train.config import Recipe
from train.dist import from_every_rank, meet
from train.guard import NotFiniteError
from train.journal import Journal
from train.metrics import Meter, train_metrics, validation_metrics
from train.model import build_model
from train.optim import build_optimizer, peak_lr
from train.origin import check_paths, hash_classes, load_origin
from train.pictures import show_augmented, show_mistakes
from train.preemption import Notices, Reason, remove_marker, write_marker
from train.run_folder import BAD_BATCHES, CHECKPOINTS, RECIPE
from train.run_lock import RunLock
from train.saver import Saver
from train.speed import set_precision
from train.start import Start, find_start, read_recipe
from train.starvation import Starvation
from train.step import Step, Sums, check_step, new_state
from train.tuned import keep_file, resolve_on_rank_0, settle_on_every_rank
from train.validate import validate
from train.warmup import warm_up
from train.watchdog import Watchdog


def fit(recipe: Recipe, world: World) -> bool:
    """Train a recipe to its end, going on from its run folder's newest whole checkpoint.

    Returns:
        Whether it is finished. If not, it was asked to leave, has saved, and the same call goes on.

    Raises:
        InputError: the data, the recipe or the run folder cannot be used as they are, or the loss is not finite.
    """
    check_recipe(recipe, world)
    set_precision(recipe.speed)
    recipe, tuned, placement = settle_on_every_rank(recipe, world)
    training, validation = open_loaders(recipe, placement, world)
    check_length(recipe, training)
    with RunLock(recipe.run_dir, world) as lock:  # no other run writes into the folder, or reads what this one writes
        start = resolve_on_rank_0(lambda: lock.confirm() or find_start(recipe, len(training.split)), world)
        return train(recipe, tuned, training, validation, start)


def train(recipe: Recipe, tuned: Path | None, training: Loader, validation: Loader, start: Start) -> bool:
    """Train from a start to the end, in a run folder that this run holds; return whether it is finished."""
    world, epoch_size = training.world, len(training.split)
    total_images = round(recipe.epochs * epoch_size)
    state, sums, saved, start = start_state(recipe, training, start)
    metrics, owes_evaluation = saved.get("metrics", {}), start.owes_evaluation
    claim_run_folder(recipe, tuned, world)
    step, meter, starvation = Step(recipe, state, total_images, world), Meter(training), Starvation(training)

    with (
        Journal(recipe, state.clock, epoch_size, world, training.placement, start) as journal,
        Saver(recipe.run_dir / CHECKPOINTS, recipe.run.keep, world) as saver,
        Watchdog(recipe.run.hang_minutes, recipe.run_dir, world) as watchdog,
        Notices(recipe.run.spot, world) as notices,
    ):
        remove_marker(recipe.run_dir)
        journal.say(describe(recipe, training, total_images, state.clock, world))
        for line in (*start.warnings, start.epochs, start.found):
            if line is not None:
                journal.say(str(line))
        if state.clock >= total_images and not owes_evaluation:
            journal.say(f"{recipe.run_dir} is finished: nothing left to train")
            return True
        if start.found is not None:  # the weights of another run are needed only once
            saver.save(state, gather_facts(step, training, sums, metrics, owes_evaluation, start))
        warm_up(step)
        reason, batches = Reason.NONE, iter(training)
        while not reason and (owes_evaluation or state.clock < total_images):
            saves = False
            if not owes_evaluation:  # a run that left in the middle of one does it first
                before, metrics = state.clock, {}
                watchdog.beat(before, "reading")
                batch = next(batches)
                watchdog.beat(before, "training")
                step(batch, sums)
                last = state.clock >= total_images
                if last or due(recipe.run.log_every, before, state.clock):
                    log_training(step, sums, training, meter, starvation, journal)
                    sums = Sums.zero(world.device)
                owes_evaluation = last or due(recipe.run.evaluate_every * epoch_size, before, state.clock)
                saves = due(recipe.run.save_every * epoch_size, before, state.clock)
                if owes_evaluation:
                    show_augmented(journal, step, batch)
            if owes_evaluation and (metrics := evaluate(step, validation, journal, watchdog, notices)):
                journal.log("validation", state.clock, metrics)
                owes_evaluation, saves = False, True
                meter.restart()
                starvation.restart()
            reason = notices.agreed()
            if saves or reason:
                watchdog.beat(state.clock, "saving")
                journal.sync()  # before the checkpoint: what it has logged must not be lost behind it
                saver.save(state, gather_facts(step, training, sums, metrics, owes_evaluation, start))
        saver.wait()
        is_finished = state.clock >= total_images and not owes_evaluation
        if not is_finished:
            write_marker(recipe.run_dir, reason, state.clock, world)
        meet(world)  # torchrun ends all processes when the first has left
        journal.say(conclude(recipe, state.clock, None if is_finished else reason))
    return is_finished


def due(every: float, before: int, now: int) -> bool:
    """Whether the clock passed a multiple of `every` images in going from `before` to `now`."""
    return before // max(1, every) < now // max(1, every)


def check_recipe(recipe: Recipe, world: World) -> None:
    """Raise InputError for what needs neither data nor other processes to be found wrong."""
    recipe.check()
    check_step(recipe, world)
    check_paths(recipe)


def check_length(recipe: Recipe, training: Loader) -> None:
    """Check that an epoch, and the run, hold at least one batch.

    Raises:
        InputError: they do not. A batch would be of several epochs, and the run longer than it was asked to be.
    """
    split, num_processes = training.split, training.world.size
    num_images, batch_size = len(split), recipe.batch_size
    if num_images < batch_size:
        parent = split.split if isinstance(split, Subset) else split
        labels = split.labels if isinstance(split, Subset) else range(len(split.class_names))
        available = int(np.isin(parent.column("label"), labels).sum())
        each = num_images // num_processes
        each -= each % min(recipe.speed.microbatch or 1, max(each, 1))
        remedies = [f"--batch-size {each * num_processes}"] if each > 1 else []
        if available >= batch_size:
            remedies.append(f"--data.fraction {math.ceil(1000 * batch_size / available) / 1000:g}")
        raise InputError(
            f"an epoch must have at least one batch of {batch_size} images, and has {num_images}, of {available:,} in "
            f"{parent.folder}{' in the chosen classes' if recipe.data.classes else ''}: "
            f"give {' or '.join(remedies) or 'more images, or start fewer processes'}"
        )
    if (total := round(recipe.epochs * num_images)) < batch_size:
        raise InputError(
            f"a run must have at least one batch of {batch_size} images, and --epochs {recipe.epochs:g} are {total}: "
            f"give --epochs {math.ceil(1000 * batch_size / num_images) / 1000:g} or more"
        )


def claim_run_folder(recipe: Recipe, tuned: Path | None, world: World) -> None:
    """Write the resolved recipe into the run folder, once everything that it needs was found to be there.

    It is written again where a run goes on with another number of epochs.

    Args:
        tuned: where the loader's settings are from; a copy is written too.
    """
    if world.rank == 0:
        theirs = read_recipe(recipe.run_dir)
        if theirs is None or theirs["epochs"] != recipe.epochs:
            write_whole(recipe.run_dir / RECIPE, (json.dumps(recipe.to_dict(), indent=1) + "\n").encode())
    keep_file(tuned, recipe, world)


def open_loaders(recipe: Recipe, placement: Choice, world: World) -> tuple[Loader, Loader]:
    """Open the training and the validation loader, over splits of the same classes; both decode on the same side."""
    data = recipe.data
    splits = [Split(data.root, name) for name in (data.train, data.validation)]
    if splits[0].class_names != splits[1].class_names:
        raise InputError(f"{splits[0].folder} and {splits[1].folder} have different classes: prepare them together")
    splits = [select(splits[0], data.fraction, data.classes), select(splits[1], classes=data.classes)]
    sampling = Sampling(recipe.seed, data.order, data.repeats)
    training, validation = (
        build_loader(split, transform, recipe.batch_size, world, sampling, placement)
        for split, transform in zip(splits, (recipe.transform, recipe.evaluation), strict=True)
    )
    return training, validation


def start_state(recipe: Recipe, training: Loader, start: Start) -> tuple[TrainState, Sums, dict[str, Any], Start]:
    """Build the state of a new run, or load that of its newest checkpoint, and the loader's with it.

    Returns:
        The state, what it has added up since the last log, what the checkpoint says of itself, and the start with what
        was found out about the weights of another run.
    """
    world, class_names = training.world, training.split.class_names
    torch.manual_seed(recipe.seed)
    at_once = len(training.slots) // recipe.speed.num_parts(len(training.slots))
    model = build_model(recipe.model, len(class_names), world.device, recipe.image_sizes(at_once))
    ema = copy.deepcopy(model).requires_grad_(False)
    state = new_state(recipe, model, ema, build_optimizer(model, recipe.optim, recipe.batch_size))
    sums, saved = Sums.zero(world.device), {}
    if start.checkpoint is not None:
        saved = load_checkpoint(start.checkpoint, state)
        try:
            training.load_state_dict(saved["loader"])
        except InputError as error:
            raise InputError(f"{recipe.run_dir} cannot go on: {error}; choose another --run.dir") from error
        sums.restore(saved.get("since_log"), world)
    elif start.found is not None:
        found = load_origin(start.found, recipe, class_names, state)
        start = replace(start, found=found, origin=found.to_dict())
    return state, sums, saved, start


def log_training(
    step: Step, sums: Sums, training: Loader, meter: Meter, starvation: Starvation, journal: Journal
) -> None:
    """The figures since the last log, and what they give cause to say; the one place that waits for the device."""
    check_guard(step, training)
    figures = train_metrics(sums, meter, step.lr, step.world)
    journal.log("train", step.state.clock, figures)
    starvation.look(figures["data_wait_percent"], journal.say)


def check_guard(step: Step, training: Loader) -> None:
    """Raises InputError where the loss has not been finite for too long, and lists the images in the run's folder."""
    most = step.recipe.run.most_bad_steps
    try:
        step.guard.check(most, step.world)
    except NotFiniteError as error:
        path = step.recipe.run_dir / BAD_BATCHES
        if step.world.rank == 0:
            batches = list_batches(training, step.state.clock, most)
            write_whole(path, (json.dumps(batches, indent=1) + "\n").encode())
        raise InputError(
            f"{error}: {path} lists the images of the last {most} batches, from which nothing was learned; look at "
            f"them, or train with a lower --optim.lr in another --run.dir"
        ) from error


def list_batches(training: Loader, clock: int, num_batches: int) -> list[dict[str, Any]]:
    """The global batches before `clock`, the last one first: its position in the stream and its images' keys."""
    split, size = training.split, training.batch_size
    whole = build_loader(split, training.transform, size, World(), training.sampling, training.placement)
    whole.quarantine.rows = training.quarantine.rows
    positions = range(clock - size, max(-1, clock - size * num_batches - 1), -size)
    return [{"position": position, "keys": split.keys(whole.plan(position).rows_B)} for position in positions]


def evaluate(
    step: Step, validation: Loader, journal: Journal, watchdog: Watchdog, notices: Notices
) -> dict[str, float]:
    """Metrics of the model and of its EMA; none where all ranks agree to leave before every image was seen."""

    def attend() -> Iterator[Batch]:
        for batch in validation:
            watchdog.beat(step.state.clock, "evaluating")
            if notices.agreed():
                return
            if batch.position == 0:
                show_mistakes(journal, step, batch, validation.split)
            yield batch

    models = {"model": step.state.model, "ema": step.state.ema}
    scores = validate(models, step.augment.normalize, attend(), step.amp, step.world)
    return {} if notices.reason else validation_metrics(scores)


def gather_facts(
    step: Step, training: Loader, sums: Sums, metrics: dict[str, float], owes_evaluation: bool, start: Start
) -> dict[str, Any]:
    """What a checkpoint holds beside the state; every rank must call it, and then knows of all damaged images."""
    since_log = sums.over(step.world)
    training.quarantine.add_keys(from_every_rank(training.quarantine.keys(), step.world))
    return {
        "recipe": step.recipe.to_dict(),
        "loader": training.state_dict(),
        "metrics": metrics,
        "owes_evaluation": owes_evaluation,
        "since_log": since_log,
        "placement": training.placement.to_dict(),
        "classes_sha256": hash_classes(training.split.class_names),
        "origin": start.origin,
    }


def describe(recipe: Recipe, training: Loader, total_images: int, clock: int, world: World) -> str:
    """The run in a few words, before it starts."""
    each, lr = len(training.slots), peak_lr(recipe.optim, recipe.batch_size)
    resumed = f", going on at image {clock:,}" if clock else ""
    return (
        f"{recipe.name}: {recipe.model.name}, {len(training.split):,} images of {len(training.split.class_names):,} "
        f"classes, batch {recipe.batch_size} ({world.size} x {each} on {world.device.type}), {recipe.optim.name}, "
        f"peak lr {lr:g}, {recipe.epochs:g} epochs = {total_images:,} images{resumed}; {training.placement}"
    )


def conclude(recipe: Recipe, clock: int, reason: Reason | None) -> str:
    """The run in a few words, when it ends or leaves."""
    if reason:
        return f"{reason.name}: saved at image {clock:,} in {recipe.run_dir}; the same command goes on from there"
    return f"finished: {recipe.run_dir} holds the checkpoints, metrics.jsonl and TensorBoard's logs"
