"""Training from the first image to the last: `fit` reads as what happens, in its order."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from loaders import Batch, InputError, Loader, Sampling, Split, World, build_loader, select
from loaders.placement import Choice
from prep.dataset import write_whole
from train.checkpoint import TrainState, load_checkpoint, newest_whole
from train.config import Recipe, first_difference
from train.dist import from_every_rank, from_rank_0, meet
from train.guard import NotFiniteError
from train.journal import Journal
from train.metrics import Meter, train_metrics, validation_metrics
from train.model import build_model
from train.optim import build_optimizer, peak_lr
from train.pictures import show_augmented, show_mistakes
from train.preemption import Notices, Reason, remove_marker, write_marker
from train.run_folder import BAD_BATCHES, CHECKPOINTS, RECIPE
from train.saver import Saver
from train.speed import set_precision
from train.starvation import Starvation
from train.step import Step, Sums, check_step, new_state
from train.tuned import keep_file, settle_on_every_rank
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
    epoch_size = len(training.split)
    total_images = round(recipe.epochs * epoch_size)
    state, sums, saved = start_state(recipe, training, world)
    metrics, owes_evaluation = saved.get("metrics", {}), saved.get("owes_evaluation", False)
    claim_run_folder(recipe, tuned, world)
    step, meter, starvation = Step(recipe, state, total_images, world), Meter(training), Starvation(training)

    with (
        Journal(recipe, state.clock, epoch_size, world, placement) as journal,
        Saver(recipe.run_dir / CHECKPOINTS, recipe.run.keep, world) as saver,
        Watchdog(recipe.run.hang_minutes, recipe.run_dir, world) as watchdog,
        Notices(recipe.run.spot, world) as notices,
    ):
        remove_marker(recipe.run_dir)
        journal.say(describe(recipe, training, total_images, state.clock, world))
        if state.clock >= total_images and not owes_evaluation:
            journal.say(f"{recipe.run_dir} is finished: nothing left to train")
            return True
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
                saver.save(state, gather_facts(step, training, sums, metrics, owes_evaluation, world))
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
    recipe.run.check()
    check_step(recipe, world)
    check_run_folder(recipe)


def check_run_folder(recipe: Recipe) -> None:
    """Raises InputError where the run folder holds a run of another recipe."""
    path = recipe.run_dir / RECIPE
    if path.exists():
        theirs: dict[str, Any] = json.loads(path.read_text())
        if field := first_difference(recipe.to_dict(), theirs):
            raise InputError(
                f"{recipe.run_dir} holds a run of another recipe, {field} differs: choose another --run.dir"
            )


def claim_run_folder(recipe: Recipe, tuned: Path | None, world: World) -> None:
    """Write the resolved recipe into the run folder, once everything that it needs was found to be there.

    Args:
        tuned: where the loader's settings are from; a copy is written too.
    """
    if world.rank == 0 and not (path := recipe.run_dir / RECIPE).exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, (json.dumps(recipe.to_dict(), indent=1) + "\n").encode())
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


def start_state(recipe: Recipe, training: Loader, world: World) -> tuple[TrainState, Sums, dict[str, Any]]:
    """A fresh state and what it has added up since the last log, or the newest whole checkpoint's; and the loader's.

    Returns:
        Beside these what the checkpoint says of itself.
    """
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model, len(training.split.class_names), world.device)
    ema = copy.deepcopy(model).requires_grad_(False)
    state = new_state(recipe, model, ema, build_optimizer(model, recipe.optim))
    sums, saved = Sums.zero(world.device), {}
    path, damaged = from_rank_0(newest_whole(recipe.run_dir / CHECKPOINTS), world)
    if world.rank == 0 and damaged:
        print("\n".join(damaged), flush=True)
    if path is not None:
        saved = load_checkpoint(path, state)
        try:
            training.load_state_dict(saved["loader"])
        except InputError as error:
            raise InputError(f"{recipe.run_dir} cannot go on: {error}; choose another --run.dir") from error
        sums.restore(saved.get("since_log"), world)
    return state, sums, saved


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
    step: Step, training: Loader, sums: Sums, metrics: dict[str, float], owes_evaluation: bool, world: World
) -> dict[str, Any]:
    """What a checkpoint holds beside the state; every rank must call it, and then knows of all damaged images."""
    since_log = sums.over(world)
    training.quarantine.add_keys(from_every_rank(training.quarantine.keys(), world))
    return {
        "recipe": step.recipe.to_dict(),
        "loader": training.state_dict(),
        "metrics": metrics,
        "owes_evaluation": owes_evaluation,
        "since_log": since_log,
        "placement": training.placement.to_dict(),
    }


def describe(recipe: Recipe, training: Loader, total_images: int, clock: int, world: World) -> str:
    """The run in a few words, before it starts."""
    each, lr = len(training.slots), peak_lr(recipe.optim, recipe.batch_size)
    resumed = f", going on at image {clock:,}" if clock else ""
    return (
        f"{recipe.name}: {recipe.model.name}, {len(training.split):,} images of {len(training.split.class_names):,} "
        f"classes, batch {recipe.batch_size} ({world.size} x {each} on {world.device.type}), peak lr {lr:g}, "
        f"{recipe.epochs:g} epochs = {total_images:,} images{resumed}; {training.placement}"
    )


def conclude(recipe: Recipe, clock: int, reason: Reason | None) -> str:
    """The run in a few words, when it ends or leaves."""
    if reason:
        return f"{reason.name}: saved at image {clock:,} in {recipe.run_dir}; the same command goes on from there"
    return f"finished: {recipe.run_dir} holds the checkpoints, metrics.jsonl and TensorBoard's logs"
