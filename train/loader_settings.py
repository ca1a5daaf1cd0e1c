"""The loader's settings of a run: a tuned file and the placement, resolved by rank 0 for all processes.

With `--loader.tuned FILE` the file's settings become the recipe's, and a copy of the file stays in the run folder. A
resumed run no longer needs the file: if it is missing or can no longer be used, the copy replaces it.
"""

from dataclasses import replace
from pathlib import Path

from loaders import LoaderConfig, World
from loaders.placement import Choice, choose_placement
from loaders.tuned import SETTINGS, TunedFileError
from prep.errors import print_or_discard
from prep.files import write_whole
from train.config import TUNED, Recipe
from train.dist import resolve_on_rank0


def apply_tuned(recipe: Recipe, world: World) -> tuple[Recipe, Path | None, Choice]:
    """Resolve the loader's settings for this machine.

    Returns:
        The recipe with those settings, the file that they come from (None without one), and the placement.

    Raises:
        TunedFileError: the file cannot be used, and the run folder has no copy of an earlier one.
        InputError: the settings cannot work on this machine.
    """
    given, kept = recipe.loader.tuned, recipe.run_dir / TUNED
    try:
        choice = choose_placement(recipe.loader, world)
    except TunedFileError as error:
        if not kept.exists():
            raise
        print_or_discard(f"{error}; using {kept} instead")
        given, choice = kept, choose_placement(replace(recipe.loader, tuned=kept), world)
    return replace(recipe, loader=choice.config), given, choice


def apply_tuned_on_every_rank(recipe: Recipe, world: World) -> tuple[Recipe, Path | None, Choice]:
    """Return rank 0's result of `apply_tuned` on every rank.

    The file may exist on rank 0's machine alone. And machines with different numbers of cores must not decode on
    different sides (CPU or GPU), since the pixels of the two differ slightly.
    """
    outcome = resolve_on_rank0(lambda: apply_tuned(recipe, world), world)
    if world.rank == 0 and recipe.loader.tuned is not None:
        print_or_discard(f"loader: {describe_settings(outcome[0].loader)}")
    return outcome


def keep_tuned_file(path: Path | None, recipe: Recipe, world: World) -> None:
    """Copy the tuned file into the run folder, on rank 0; do nothing without one."""
    kept = recipe.run_dir / TUNED
    if world.rank == 0 and path is not None and path != kept:
        write_whole(kept, path.read_bytes())


def describe_settings(config: LoaderConfig) -> str:
    """Return the settings of speed in one line."""
    return ", ".join(f"{name} {getattr(config, name)}" for name in SETTINGS)


def agree_on_placement(config: LoaderConfig, world: World) -> Choice:
    """Return rank 0's choice of the placement on every rank.

    Raises:
        InputError: the settings cannot work on rank 0's machine.
    """
    return resolve_on_rank0(lambda: choose_placement(config, world), world)
