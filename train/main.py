"""`torchrun train/main.py [RECIPE] [--data.root DIR] [--run.dir RUN] …`: train a recipe; run it again to go on.

Every field of a recipe is a flag: `--help` lists them. `--dry-run` prints the resolved recipe and stops.
Asked to leave (SIGTERM, SIGHUP, Ctrl-C, a spot notice) it saves first and exits with status 75.
"""

import json
import sys

from loaders.device import join_environment
from prep.errors import run
from train.arguments import Command, parse_command
from train.config import Recipe
from train.dist import join_world
from train.fit import fit
from train.launcher import watch_launcher
from train.preemption import LEFT_EARLY
from train.tuned import settle_loader


def main() -> None:
    """Parse, join the world, train."""
    command = parse_command(sys.argv[1:])
    if command.dry_run:
        print(json.dumps(resolve(command).to_dict(), indent=1))
        return
    watch_launcher()
    with join_world(command.device) as world:
        is_finished = fit(command.recipe, world)
    if not is_finished:
        sys.exit(LEFT_EARLY)


def resolve(command: Command) -> Recipe:
    """The recipe with the settings of a tuned loader in it."""
    if command.recipe.loader.tuned is None:
        return command.recipe
    return settle_loader(command.recipe, join_environment(command.device))[0]


if __name__ == "__main__":
    run(main)
