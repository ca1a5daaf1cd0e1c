"""`--loader.tuned FILE` of a run: its settings become the recipe's, and a copy stays with the run.

A run that goes on needs the file no more: where it has gone, or can no longer be used, the copy takes its place.
"""

from dataclasses import replace
from pathlib import Path

from loaders import InputError, LoaderConfig, World
from loaders.tuned import SETTINGS, settle
from prep.dataset import write_whole
from train.config import Recipe
from train.dist import from_rank_0
from train.run_folder import TUNED


def settle_loader(recipe: Recipe, world: World) -> tuple[Recipe, Path | None]:
    """The recipe with the loader's settings as this machine will use them, and the file that they are from.

    Raises:
        InputError: the file cannot be used, and the run folder has no copy of an earlier one.
    """
    given, copy = recipe.loader.tuned, recipe.run_dir / TUNED
    try:
        return replace(recipe, loader=settle(recipe.loader, world)), given
    except InputError as error:
        if not copy.exists():
            raise
        print(f"{error}; going on with {copy}", flush=True)
        return replace(recipe, loader=settle(replace(recipe.loader, tuned=copy), world)), copy


def settle_on_every_rank(recipe: Recipe, world: World) -> tuple[Recipe, Path | None]:
    """What `settle_loader` gives on rank 0, for all: the file may lie on its machine alone."""
    if recipe.loader.tuned is None:
        return recipe, None
    outcome = from_rank_0(_try(recipe, world) if world.rank == 0 else None, world)
    if isinstance(outcome, InputError):
        raise outcome
    if world.rank == 0:
        print(f"loader: {describe(outcome[0].loader)}", flush=True)
    return outcome


def keep_file(path: Path | None, recipe: Recipe, world: World) -> None:
    """Copy the file into the run folder."""
    copy = recipe.run_dir / TUNED
    if world.rank == 0 and path is not None and path != copy:
        write_whole(copy, path.read_bytes())


def describe(config: LoaderConfig) -> str:
    """The settings of speed in one line."""
    return ", ".join(f"{name} {getattr(config, name)}" for name in SETTINGS)


def _try(recipe: Recipe, world: World) -> tuple[Recipe, Path | None] | InputError:
    try:
        return settle_loader(recipe, world)
    except InputError as error:
        return InputError(str(error))  # of a kind that other ranks can be told
