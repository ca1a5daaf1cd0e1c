"""The command line of `train/main.py`, typed and generated from the recipe's dataclasses.

Apart from `train/command.py` because it alone needs tyro, which the other commands run without.
"""

import dataclasses
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from loaders import InputError
from train.command import DEFAULT_RECIPE
from train.config import Recipe
from train.recipe import RECIPES


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
