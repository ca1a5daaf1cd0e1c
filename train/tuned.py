"""The loader's settings of a run: tuned settings and the placement, resolved by rank 0 for all processes.

`--loader.tuned FILE`: the file's settings become the recipe's, and a copy stays in the run folder. A run that goes on
no longer needs the file: if it is missing or can no longer be used, the copy takes its place.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from loaders import LoaderConfig, World
from loaders.placement import Choice, choose_placement
from loaders.tuned import SETTINGS, TunedFileError
from prep.errors import InputError, print_or_discard
from prep.files import write_whole
from train.config import Recipe
from train.dist import from_rank_0
from train.run_folder import TUNED

T = TypeVar("T")


def settle_loader(recipe: Recipe, world: World) -> tuple[Recipe, Path | None, Choice]:
    """Resolve the loader's settings for this machine.

    Returns:
        The recipe with those settings, the file that they are from (None without one), and the placement.

    Raises:
        TunedFileError: the file cannot be used, and the run folder has no copy of an earlier one.
        InputError: the settings cannot work on this machine.
    """
    given, copy = recipe.loader.tuned, recipe.run_dir / TUNED
    try:
        choice = choose_placement(recipe.loader, world)
    except TunedFileError as error:
        if not copy.exists():
            raise
        print_or_discard(f"{error}; going on with {copy}")
        given, choice = copy, choose_placement(replace(recipe.loader, tuned=copy), world)
    return replace(recipe, loader=choice.config), given, choice


def settle_on_every_rank(recipe: Recipe, world: World) -> tuple[Recipe, Path | None, Choice]:
    """Return what `settle_loader` gives on rank 0, on every rank.

    The file may lie on rank 0's machine alone; and machines with different numbers of cores must not decode on
    different sides, since the pixels of the two differ a little.
    """
    outcome = resolve_on_rank_0(lambda: settle_loader(recipe, world), world)
    if world.rank == 0 and recipe.loader.tuned is not None:
        print_or_discard(f"loader: {describe(outcome[0].loader)}")
    return outcome


def keep_file(path: Path | None, recipe: Recipe, world: World) -> None:
    """Copy the file into the run folder."""
    copy = recipe.run_dir / TUNED
    if world.rank == 0 and path is not None and path != copy:
        write_whole(copy, path.read_bytes())


def describe(config: LoaderConfig) -> str:
    """Return the settings of speed in one line."""
    return ", ".join(f"{name} {getattr(config, name)}" for name in SETTINGS)


def agree_on_placement(config: LoaderConfig, world: World) -> Choice:
    """Return rank 0's choice of the placement, on every rank.

    Raises:
        InputError: the settings cannot work on rank 0's machine.
    """
    return resolve_on_rank_0(lambda: choose_placement(config, world), world)


def resolve_on_rank_0(resolve: Callable[[], T], world: World) -> T:
    """Return on every rank what rank 0 resolves, or raise there the InputError that rank 0 met."""
    outcome: T | InputError | None = None
    if world.rank == 0:
        try:
            outcome = resolve()
        except InputError as error:
            outcome = InputError(str(error))  # of a kind that other ranks can be told
    outcome = from_rank_0(outcome, world)
    if isinstance(outcome, InputError):
        raise outcome
    assert outcome is not None
    return outcome
