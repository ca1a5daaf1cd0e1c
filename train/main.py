"""`torchrun train/main.py [RECIPE] [--data.root DIR] [--run.dir RUN] ...`: train a recipe; run it again to resume.

`--help` lists the recipes, `RECIPE --help` the flags: every field of a recipe is one. `--dry-run` prints the resolved
recipe and stops. A run that is asked to leave (SIGTERM, SIGHUP, Ctrl-C, a spot notice) saves first and exits with
status 75.

Torch and DALI are imported only when the command line has been parsed, so that `--help` and a wrong flag are answered
at once.
"""

import json
import sys

from prep.errors import run
from train.arguments import Command, parse_command
from train.config import Recipe


def main() -> None:
    """Parse the command line, join the processes, train."""
    command = parse_command(sys.argv[1:])
    if command.dry_run:
        print(json.dumps(resolve_recipe(command).to_dict(), indent=1))
        return

    from train.dist import join_world  # noqa: PLC0415
    from train.fit import fit  # noqa: PLC0415
    from train.preemption import LEFT_EARLY, watch_launcher  # noqa: PLC0415

    watch_launcher()
    with join_world(command.device) as world:
        is_finished = fit(command.recipe, world)
    if not is_finished:
        sys.exit(LEFT_EARLY)


def resolve_recipe(command: Command) -> Recipe:
    """Return the recipe, with the settings of the file that --loader.tuned names."""
    if command.recipe.loader.tuned is None:
        return command.recipe

    from loaders.world import join_environment  # noqa: PLC0415
    from train.loader_settings import apply_tuned  # noqa: PLC0415

    return apply_tuned(command.recipe, join_environment(command.device))[0]


if __name__ == "__main__":
    run(main)
