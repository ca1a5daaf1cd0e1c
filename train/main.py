"""`torchrun train/main.py [RECIPE] [--data.root DIR] [--run.dir RUN] ...`: train a recipe; run it again to resume.

`--help` lists the recipes, `RECIPE --help` the flags: every field of a recipe is one. `--dry-run` prints the resolved
recipe and stops; on stderr it says how these processes would share a batch. A run that is asked to leave (SIGTERM,
SIGHUP, Ctrl-C, a spot notice) saves first and exits with status 75.

Torch and DALI are imported only when the command line has been parsed, so that `--help` and a wrong flag are answered
at once.
"""

from __future__ import annotations

import json
import math
import sys
from typing import TYPE_CHECKING

from prep.errors import InputError, run
from train.config import Recipe

if TYPE_CHECKING:
    from loaders import World
    from train.arguments import Command


def main() -> None:
    """Parse the command line, join the processes, train."""
    from train.arguments import parse_command  # noqa: PLC0415 - here a missing tyro becomes one line

    command = parse_command(sys.argv[1:])
    if command.dry_run:
        dry_run(command)
        return

    from train.dist import join_world  # noqa: PLC0415
    from train.fit import fit  # noqa: PLC0415
    from train.preemption import LEFT_EARLY, watch_launcher  # noqa: PLC0415

    watch_launcher()
    with join_world(command.device) as world:
        is_finished = fit(command.recipe, world)
    if not is_finished:
        sys.exit(LEFT_EARLY)


def dry_run(command: Command) -> None:
    """Print the resolved recipe, and on stderr how the processes would share a batch; only rank 0 prints.

    The processes need not know each other: torchrun's variables say how many they are.

    Raises:
        InputError: these processes cannot share a batch of this recipe, or its lengths contradict each other.
    """
    from loaders.world import find_world  # noqa: PLC0415

    world = find_world()
    if world.rank > 0:
        return
    recipe = resolve_recipe(command)
    print(json.dumps(recipe.to_dict(), indent=1), flush=True)
    recipe.check_lengths()
    print(describe_batch(recipe, world), describe_length(recipe), sep="\n", file=sys.stderr)


def describe_batch(recipe: Recipe, world: World) -> str:
    """Return one line: processes, the images of each, in how many parts they go through the network, and the rate."""
    from train.optim import peak_lr  # noqa: PLC0415

    each = len(world.share(recipe.batch_size))
    parts = recipe.speed.num_parts(each)
    return (
        f"{recipe.name}: batch {recipe.batch_size:,} = {world.size} {'process' if world.size == 1 else 'processes'} x "
        f"{each:,} images, {parts} {'microbatch' if parts == 1 else 'microbatches'} of {each // parts:,} in each, "
        f"peak lr {peak_lr(recipe.optim, recipe.batch_size):g}"
    )


def describe_length(recipe: Recipe) -> str:
    """Return one line: images and optimizer steps of an epoch and of the run, if the data is there."""
    from loaders import Split, select  # noqa: PLC0415
    from prep.dataset import MANIFEST  # noqa: PLC0415

    data = recipe.data
    try:
        if data.folder is None or (data.folder != data.root and not (data.folder / data.train / MANIFEST).is_file()):
            raise InputError(f"{data.root} is in a bucket, and not all of it is in a cache")
        num_images = len(select(Split(data.folder, data.train), data.fraction, data.classes))
    except InputError as error:
        return f"{recipe.name}: {recipe.describe_epochs()}; the number of steps is not known: {error}"
    steps = math.ceil(round(recipe.epochs * num_images) / recipe.batch_size)
    return (
        f"{recipe.name}: {num_images:,} images = {num_images / recipe.batch_size:,.1f} optimizer steps per epoch, "
        f"{steps:,} in {recipe.describe_epochs()}"
    )


def resolve_recipe(command: Command) -> Recipe:
    """Return the recipe, with the settings of the file that --loader.tuned names."""
    if command.recipe.loader.tuned is None:
        return command.recipe

    from loaders.world import join_environment  # noqa: PLC0415
    from train.loader_settings import apply_tuned  # noqa: PLC0415

    return apply_tuned(command.recipe, join_environment(command.device))[0]


if __name__ == "__main__":
    run(main)
