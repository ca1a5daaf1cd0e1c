"""The command line of `train/main.py`, typed and generated from the recipe's dataclasses; and how commands end."""

import dataclasses
import difflib
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

import tyro

from loaders import InputError
from loaders.blame import DecodeError
from loaders.reader import ShardError
from train.config import Recipe
from train.dist import PeerLostError
from train.recipe import RECIPES

DEFAULT_RECIPE = "seed_113"


@dataclass(frozen=True)
class Command:
    """What a user asked for."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    device: str = "auto"  # auto (a GPU where there is one), cpu or cuda
    dry_run: bool = False  # print the resolved recipe and stop


def parse_command(arguments: list[str]) -> Command:
    """`[RECIPE] [--flag value]…`, the recipe's own values being the defaults.

    Raises:
        InputError: no such recipe or flag; the nearest one is named.
    """
    named = bool(arguments) and not arguments[0].startswith("-")
    name = arguments[0] if named else DEFAULT_RECIPE
    if name not in RECIPES:
        raise InputError(f"there is no recipe {name}{_near(name, RECIPES)}: choose from {', '.join(RECIPES)}")
    default = Command(RECIPES[name]())
    command, unknown = tyro.cli(
        Command,
        args=arguments[named:],
        default=default,
        prog=f"train/main.py {name}",
        description=RECIPES[name].__doc__,
        return_unknown_args=True,
    )
    if unknown:
        flag = unknown[0].partition("=")[0]
        near = _near(flag, [f"--{field}" for field in _fields(default)])
        raise InputError(f"there is no flag {flag}{near}: `train/main.py {name} --help` lists them")
    return command


def exit_with(error: InputError) -> NoReturn:
    """One line for what every rank finds wrong alike; what one rank alone finds wrong it says itself."""
    rank = int(os.environ.get("RANK", "0"))
    if isinstance(error, PeerLostError):
        sys.exit(f"rank {rank}: {error}")
    if rank == 0 or isinstance(error, DecodeError | ShardError):
        sys.exit(f"error: {f'rank {rank}: ' if rank else ''}{error}")
    sys.exit(1)


def run(main: Callable[[], None]) -> None:
    """Run a command; a user's mistake, the disk's fault or Ctrl-C ends it in one line."""
    try:
        main()
    except InputError as error:
        exit_with(error)
    except OSError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


def _near(word: str, words: Iterable[str]) -> str:
    found = difflib.get_close_matches(word.replace("_", "-"), words, n=1, cutoff=0.5)
    return f", did you mean {found[0]}" if found else ""


def _fields(value: Any, prefix: str = "") -> list[str]:
    """The flags of a dataclass, dotted: those of `recipe` have no prefix, as on the command line."""
    names = []
    for field in dataclasses.fields(value):
        inner, name = getattr(value, field.name), prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(inner):
            names += _fields(inner, "" if isinstance(inner, Recipe) else f"{name}.")
        else:
            names.append(name)
    return names
