"""Training from the first image to the last: `fit` reads from top to bottom, its parts follow in the same order."""

import copy
import json
import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loaders import Batch, Loader, Sampling, World, build_loader, open_splits, select
from loaders.placement import Choice
from loaders.subset import Subset
from prep.errors import InputError
from prep.files import write_whole
from train.checkpoint import Saver, TrainState, load_checkpoint
from train.compile import set_precision
from train.config import BAD_BATCHES, CHECKPOINTS, RECIPE, Recipe
from train.dist import all_gather_objects, barrier, resolve_on_rank0
from train.fused import explain_plain, fuse_if_wanted
from train.graphs import explain_no_graphs
from train.loader_settings import apply_tuned_on_every_rank, keep_tuned_file
from train.logger import RunLogger, log_augmented, log_mistakes
from train.metrics import DataWaitWarning, Meter, Sums, train_metrics, validation_metrics
from train.mirror_upload import Mirror
from train.model import build_model
from train.optim import build_optimizer, peak_lr
from train.origin import check_origin_flags, hash_classes
from train.preemption import Notices, Reason, remove_marker, write_marker
from train.run_lock import RunLock
from train.start import Start, find_start, read_recipe
from train.step import NotFiniteError, Step, check_step, new_state, warm_up
from train.transfer import load_origin, share_state
from train.validate import validate
from train.watchdog import Watchdog


@dataclass
class Run:
    """The objects that a run uses from its start to its end."""

    step: Step
    train_loader: Loader
    validation_loader: Loader
    start: Start
    logger: RunLogger
    saver: Saver
    watchdog: Watchdog
    notices: Notices
    mirror: Mirror

    def __post_init__(self) -> None:
        # `meter` and `data_wait` measure the training loader from here on.
        self.meter, self.data_wait = Meter(self.train_loader), DataWaitWarning(self.train_loader)


def fit(recipe: Recipe, world: World) -> bool:
    """Train a recipe to its end, from the newest complete checkpoint in its run folder if there is one.

    Returns:
        True if the run is finished. False if a signal or spot notice asked it to stop early: it has saved, and
        the same call resumes it. Also False if the mirror lacks a part of it: the same call uploads it.

    Raises:
        InputError: the data, the recipe, the run folder or the mirror cannot be used as they are, another run has taken
            over the mirror, or the loss is not finite.
    """
    # Refuse what cannot work before anything is read or written.
    check_recipe(recipe, world)
    mirror = Mirror(recipe, world)
    set_precision(recipe.speed)

    # Open the data. Rank 0 chooses the loader's settings for all ranks, so that all decode in the same way.
    recipe, tuned_file, placement = apply_tuned_on_every_rank(recipe, world)
    training, validation = open_loaders(recipe, placement, world)
    check_length(recipe, training)
    epoch_size = len(training.split)
    total_images = round(recipe.epochs * epoch_size)

    # Lock the run folder, so that no other run starts or resumes in it. Other commands may read its checkpoints.
    with RunLock(recipe.run_dir, world) as lock, ExitStack() as stack:
        # Fetch the newest checkpoint from the mirror, if the folder has none that is newer.
        stack.enter_context(mirror)
        mirror.fetch(lock)

        # Build the model and the optimizer; load the checkpoint that rank 0 finds. From then on mirror and folder are
        # this run's: another one that uses the mirror stops, and the recipe is written into the folder.
        start = resolve_on_rank0(lambda: decide_start(recipe, epoch_size, lock), world)
        state, sums, start = start_state(recipe, training, start)
        mirror.claim(state.clock)
        claim_run_folder(recipe, tuned_file, world)
        step = Step(recipe, state, total_images, world)

        # Start logging, saving, the watchdog, the handlers of signals and spot notices, and uploading; the stack
        # closes them in reverse order.
        logger = stack.enter_context(RunLogger(recipe, state.clock, epoch_size, world, training.placement, start))
        saver = stack.enter_context(Saver(recipe.run_dir / CHECKPOINTS, recipe.run.keep, world, mirror.offer))
        minutes, loaders = recipe.run.hang_minutes, (training, validation)
        watchdog = stack.enter_context(Watchdog(minutes, recipe.run_dir, world, loaders, mirror.put_hang))
        notices = stack.enter_context(Notices(recipe.run.spot, world))
        run = Run(step, training, validation, start, logger, saver, watchdog, notices, mirror)

        # Print what this run is and where it starts. A finished run ends here.
        remove_marker(recipe.run_dir)
        mirror.start(notices.record)
        print_start(run, total_images)
        if state.clock >= total_images and not start.owes_evaluation:
            logger.print(f"{recipe.run_dir} is finished: nothing left to train")
            return end_run(run, is_trained=True)

        # A new run that starts from given weights: save them now. After this their files are not needed again.
        if start.from_weights is not None:
            saver.save(state, gather_facts(run, sums, metrics={}, owes_evaluation=False))

        # Compile, choose convolutions and fix the order of DDP's buckets before the first step.
        warm_up(step)
        batches = iter(training)

        # Repeat, from its first image, the evaluation that a notice interrupted in the previous run.
        owes_evaluation = start.owes_evaluation
        if owes_evaluation:
            owes_evaluation = not evaluate_and_save(run, sums)

        # The training loop. `notices.agreed()` below asks the other ranks and sets `notices.reason`, the same on all
        # ranks. A signal counts one or two steps later.
        while not notices.reason and state.clock < total_images:
            # Train on one global batch; `step` advances the clock.
            before = state.clock
            watchdog.beat(before, "reading")
            batch = next(batches)
            watchdog.beat(before, "training")
            step(batch, sums)
            is_last = state.clock >= total_images

            # Log the averages since the last log. Other steps read no results, unless they evaluate or save.
            if is_last or is_due(recipe.run.log_every, before, state.clock):
                log_training(run, sums)
                sums = Sums.zero(world.device)

            # Evaluate, which also saves; or only save, on schedule or before leaving early.
            if is_last or is_due(recipe.run.evaluate_every * epoch_size, before, state.clock):
                log_augmented(logger, step, batch)
                owes_evaluation = not evaluate_and_save(run, sums)
            elif (
                notices.agreed()
                or notices.should_save
                or is_due(recipe.run.save_every * epoch_size, before, state.clock)
            ):
                save(run, sums, metrics={}, owes_evaluation=False)

        return end_run(run, is_trained=state.clock >= total_images and not owes_evaluation)


# Before the loop.


def check_recipe(recipe: Recipe, world: World) -> None:
    """Check everything that needs neither the data nor other processes; raise InputError if it cannot work."""
    recipe.check_lengths()
    check_step(recipe, world)
    check_origin_flags(recipe)


def check_length(recipe: Recipe, training: Loader) -> None:
    """Check that an epoch, and the run, have at least one batch.

    Otherwise a batch would span several epochs, or the run would be longer than asked for. And that the EMA moves.

    Raises:
        InputError: they are shorter, or the EMA would never be updated.
    """
    split, num_processes = training.split, training.world.size
    num_images, batch_size = len(split), recipe.batch_size

    # An epoch. The advice is computed: the largest batch that fits, or the share of the data that holds a batch.
    if num_images < batch_size:
        parent = split.split if isinstance(split, Subset) else split
        labels = split.labels if isinstance(split, Subset) else range(len(split.class_names))
        available = int(np.isin(parent.column("label"), labels).sum())
        # Images per process: as many as fit, rounded down to a multiple of the microbatch.
        each = num_images // num_processes
        each -= each % min(recipe.speed.microbatch or 1, max(each, 1))
        remedies = [f"--batch-size {each * num_processes}"] if each > 1 else []
        if available >= batch_size:
            remedies.append(f"--data.fraction {math.ceil(1000 * batch_size / available) / 1000:g}")
        raise InputError(
            f"an epoch must have at least one batch of {batch_size} images, and has {num_images}, of {available:,} in "
            f"{parent.place}{' in the chosen classes' if recipe.data.classes else ''}: "
            f"give {' or '.join(remedies) or 'more images, or start fewer processes'}"
        )

    # The run.
    if (total := round(recipe.epochs * num_images)) < batch_size:
        raise InputError(
            f"a run must have at least one batch of {batch_size} images, and --epochs {recipe.epochs:g} are {total}: "
            f"give --epochs {math.ceil(1000 * batch_size / num_images) / 1000:g} or more"
        )

    # Its EMA.
    num_steps = math.ceil(total / batch_size)
    if recipe.ema_every > num_steps:
        raise InputError(
            f"ema_every must be at most the run's {num_steps} steps, got {recipe.ema_every}: the EMA would keep its "
            f"first weights; give --ema-every {num_steps} or less"
        )


def open_loaders(recipe: Recipe, placement: Choice, world: World) -> tuple[Loader, Loader]:
    """Open the training and the validation loader, over splits of the same classes; both decode on the same side."""
    data = recipe.data
    splits = open_splits(data.root, (data.train, data.validation), data.cache, world)
    if splits[0].class_names != splits[1].class_names:
        raise InputError(f"{splits[0].place} and {splits[1].place} have different classes: prepare them together")
    splits = [select(splits[0], data.fraction, data.classes), select(splits[1], classes=data.classes)]
    sampling = Sampling(recipe.seed, data.order, data.repeats)
    training, validation = (
        build_loader(split, transform, recipe.batch_size, world, sampling, placement)
        for split, transform in zip(splits, (recipe.transform, recipe.evaluation), strict=True)
    )
    return training, validation


def decide_start(recipe: Recipe, epoch_size: int, lock: RunLock) -> Start:
    """Check that no other run holds the run folder, then find where this run starts. For rank 0."""
    lock.confirm()
    return find_start(recipe, epoch_size)


def start_state(recipe: Recipe, training: Loader, start: Start) -> tuple[TrainState, Sums, Start]:
    """Build the state of a new run, or load it, and the loader's position, from the checkpoint of `start`.

    Returns:
        The state, the sums since the last log, and the start; for weights from elsewhere, it now also records what was
        loaded.
    """
    # Weights depend on the seed alone.
    world, class_names = training.world, training.split.class_names
    torch.manual_seed(recipe.seed)
    # Images of one forward pass on this rank.
    at_once = len(training.slots) // recipe.speed.num_parts(len(training.slots))
    model = build_model(recipe.model, len(class_names), world.device, recipe.image_sizes(at_once))
    ema = copy.deepcopy(model).requires_grad_(False)
    fuse_if_wanted(model, recipe.speed, recipe.model.name, world.device)
    state = new_state(recipe, model, ema, build_optimizer(model, recipe.optim, recipe.batch_size))
    sums = Sums.zero(world.device)

    # Resume from this run's checkpoint, or start from given weights, which rank 0 reads.
    if start.checkpoint is not None:
        saved = load_checkpoint(start.checkpoint, state)
        try:
            training.load_state_dict(saved["loader"])
        except InputError as error:
            raise InputError(f"{recipe.run_dir} cannot be resumed: {error}; choose another --run.dir") from error
        sums.restore(saved.get("since_log"), world)
    elif start.from_weights is not None:
        origin = start.from_weights
        loaded = resolve_on_rank0(lambda: load_origin(origin, recipe, class_names, state), world)
        share_state(state, recipe.run.from_optimizer, world)
        start = replace(start, from_weights=loaded, origin=loaded.to_dict())
    return state, sums, start


def claim_run_folder(recipe: Recipe, tuned_file: Path | None, world: World) -> None:
    """Write the resolved recipe into the run folder. Call this when everything that the run needs has been found.

    The recipe is written again if a run is resumed with another number of epochs.

    Args:
        tuned_file: the source of the loader's settings, of which a copy is written too; None without one.
    """
    if world.rank == 0:
        theirs = read_recipe(recipe.run_dir)
        if theirs is None or theirs["epochs"] != recipe.epochs:
            write_whole(recipe.run_dir / RECIPE, (json.dumps(recipe.to_dict(), indent=1) + "\n").encode())
    keep_tuned_file(tuned_file, recipe, world)


def print_start(run: Run, total_images: int) -> None:
    """Print what the run trains; then settings of speed that this machine cannot follow, warnings (damaged files), a
    change of epochs, and the source of the weights.
    """
    recipe, device = run.step.recipe, run.step.world.device
    run.logger.print(describe_run(recipe, run.train_loader, total_images, run.step.state.clock))
    slower = (explain_plain(recipe.speed, device), explain_no_graphs(recipe.speed, device))
    for line in (*slower, *run.start.warnings, run.start.epochs, run.start.from_weights):
        if line is not None:
            run.logger.print(str(line))


def describe_run(recipe: Recipe, training: Loader, total_images: int, clock: int) -> str:
    """Return one line that describes a run before it starts."""
    world = training.world
    each, lr = len(training.slots), peak_lr(recipe.optim, recipe.batch_size)
    parts = recipe.speed.num_parts(each)
    shares = f"{world.size} x {each}{f' in {parts} microbatches' if parts > 1 else ''} on {world.device.type}"
    resumed = f", resuming at image {clock:,}" if clock else ""
    return (
        f"{recipe.name}: {recipe.model.name}, {len(training.split):,} images of {len(training.split.class_names):,} "
        f"classes, batch {recipe.batch_size} ({shares}), {recipe.optim.name}, "
        f"peak lr {lr:g}, {recipe.describe_epochs()} = {total_images:,} images{resumed}; {training.placement}"
    )


# The parts of the loop.


def is_due(every: float, before: int, now: int) -> bool:
    """Return True if the clock passed a multiple of `every` images on its way from `before` to `now`."""
    return before // max(1, every) < now // max(1, every)


def log_training(run: Run, sums: Sums) -> None:
    """Log the averages since the last log, and warn if training waited for data. Waits for the device."""
    check_finite_loss(run)
    figures = train_metrics(sums, run.meter, run.step.lr, run.step.world)
    run.logger.log_metrics("train", run.step.state.clock, figures)
    run.data_wait.check_wait(figures["data_wait_percent"], run.logger.print)


def check_finite_loss(run: Run) -> None:
    """Check that at least one of the last steps had a finite loss; if not, list their images in a file.

    Raises:
        InputError: no loss was finite in `recipe.run.most_bad_steps` steps in a row, on any one rank.
    """
    step, most = run.step, run.step.recipe.run.most_bad_steps
    try:
        step.guard.check_bad_steps(most, step.world)
    except NotFiniteError as error:
        path = step.recipe.run_dir / BAD_BATCHES
        if step.world.rank == 0:
            batches = list_batches(run.train_loader, step.state.clock, most)
            write_whole(path, (json.dumps(batches, indent=1) + "\n").encode())
        raise InputError(
            f"{error}: {path} lists the images of the last {most} batches, from which nothing was learned; look at "
            f"them, or train with a lower --optim.lr in another --run.dir"
        ) from error


def list_batches(training: Loader, clock: int, num_batches: int) -> list[dict[str, Any]]:
    """Return the global batches before `clock`, the last one first: position in the stream and keys of the images.

    Damaged images that only another rank knows are not replaced.
    """
    split, size = training.split, training.batch_size
    # This rank's loader plans only its own slots; a loader for a world of one plans complete batches.
    whole = build_loader(split, training.transform, size, World(), training.sampling, training.placement)
    whole.quarantine.rows = training.quarantine.rows
    positions = range(clock - size, max(-1, clock - size * num_batches - 1), -size)
    return [{"position": position, "keys": split.keys(whole.plan(position).rows_B)} for position in positions]


def evaluate_and_save(run: Run, sums: Sums) -> bool:
    """Evaluate the model and its EMA, log the scores, save.

    Returns:
        True if every image was seen. False if a notice interrupted the evaluation. The checkpoint records this, and
        the next run evaluates again from the start.
    """
    metrics = run_validation(run)
    if metrics:
        run.logger.log_metrics("validation", run.step.state.clock, metrics)
        # The time of the evaluation does not count as training time.
        run.meter.restart()
        run.data_wait.restart()
    # A training step that evaluates does not reach `agreed()` in the loop: ask here.
    run.notices.agreed()
    save(run, sums, metrics, owes_evaluation=not metrics)
    return bool(metrics)


def run_validation(run: Run) -> dict[str, float]:
    """Return the metrics of the model and of its EMA; empty if all ranks agreed to leave before the last image."""
    step = run.step

    def batches() -> Iterator[Batch]:
        for batch in run.validation_loader:
            run.watchdog.beat(step.state.clock, "evaluating")
            if run.notices.agreed():
                return
            if batch.position == 0:
                # `validate` has set the models to evaluation mode before it requests the first batch.
                log_mistakes(run.logger, step, batch, run.validation_loader.split)
            yield batch

    models = {"model": step.state.model, "ema": step.state.ema}
    scores = validate(models, step.augment.normalize, batches(), step.amp, step.world)
    return {} if run.notices.reason else validation_metrics(scores)


def save(run: Run, sums: Sums, metrics: dict[str, float], owes_evaluation: bool) -> None:
    """Save a checkpoint. Every rank must call it."""
    run.watchdog.beat(run.step.state.clock, "saving")
    if run.notices.should_save:
        run.logger.print(f"EC2 recommends to leave this instance: saving at image {run.step.state.clock:,}, going on")
        run.notices.should_save = False
    # The log goes to disk before the checkpoint: a run that resumes from it must find all earlier entries.
    run.logger.sync()
    run.saver.save(run.step.state, gather_facts(run, sums, metrics, owes_evaluation))


def gather_facts(run: Run, sums: Sums, metrics: dict[str, float], owes_evaluation: bool) -> dict[str, Any]:
    """Return what a checkpoint's meta.json holds about the run. Every rank must call it.

    Afterwards every rank knows the damaged images that any rank has found.

    Args:
        metrics: of the evaluation at this clock; empty without one.
        owes_evaluation: True if an evaluation at this clock was interrupted.
    """
    step, training = run.step, run.train_loader
    since_log = sums.over_all_ranks(step.world)
    training.quarantine.add_keys(all_gather_objects(training.quarantine.keys(), step.world))
    return {
        "recipe": step.recipe.to_dict(),
        "loader": training.state_dict(),
        "metrics": metrics,
        "owes_evaluation": owes_evaluation,
        "since_log": since_log,
        "placement": training.placement.to_dict(),
        "classes_sha256": hash_classes(training.split.class_names),
        "origin": run.start.origin,
    }


# After the loop.


def end_run(run: Run, is_trained: bool) -> bool:
    """Wait for the last save and for the mirror; return whether the run is finished. Every rank must call it.

    A run that is not finished marks its folder, so that a script can start it again: before the upload, which may be
    killed. A run that is trained to its end is finished when the mirror has all of it.

    Raises:
        InputError: another run has taken over the mirror.
    """
    # Save, and mark the folder.
    recipe, world, clock = run.step.recipe, run.step.world, run.step.state.clock
    run.saver.wait()
    reason = run.notices.reason
    if is_trained:
        reason = Reason.NOT_UPLOADED if recipe.run.mirror else Reason.NONE
    if reason not in (Reason.NONE, Reason.TAKEN_OVER):
        write_marker(recipe.run_dir, reason, clock, world)

    # Upload. A notice that comes now leaves less time for it.
    def leaves() -> bool:
        run.watchdog.beat(clock, "uploading")
        return bool(run.notices.agreed())

    try:
        is_uploaded = run.mirror.finish(leaves, with_marker=not is_trained)
    except InputError:
        remove_marker(recipe.run_dir)  # or a script would take the mirror back
        raise
    is_finished = is_trained and is_uploaded
    if is_uploaded:
        run.saver.delete_others()
    if is_finished:
        remove_marker(recipe.run_dir)
    barrier(world)  # torchrun ends the others when one exits with an error status, and 75 is one
    run.logger.print(describe_end(recipe, clock, Reason.NONE if is_finished else reason, is_uploaded))
    return is_finished


def describe_end(recipe: Recipe, clock: int, reason: Reason, is_uploaded: bool) -> str:
    """Return one line that describes how a run ended; `reason` is NONE for a finished run."""
    mirror = recipe.run.mirror
    if reason == Reason.NONE:
        return f"finished: {recipe.run_dir} holds the checkpoints, metrics.jsonl and TensorBoard's logs"
    if reason == Reason.NOT_UPLOADED:
        return f"trained to the end, but {mirror} does not have all of it: the same command uploads the rest"
    also = "" if mirror is None else f" and in {mirror}" if is_uploaded else f", not all of it in {mirror}"
    return f"{reason.name}: saved at image {clock:,} in {recipe.run_dir}{also}; the same command resumes from there"
