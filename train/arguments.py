"""The command line of `train/main.py`, typed and generated from the recipe's dataclasses.

In a file of its own because it alone needs tyro, which the other commands run without.
"""

import dataclasses
import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from prep.errors import InputError
from train.config import Recipe, RunConfig
from train.optim import OPTIONAL, OptimConfig, describe_unused, find_unused, own_lr
from train.recipe import DEFAULT_RECIPE, RECIPES

# `from` is a keyword of Python, so the field has another name than its flag. Named here, since train/config.py is
# also used without tyro.
RENAMED = {"run.start-from": "run.from"}
RunConfig.__annotations__["start_from"] = Annotated[Path | None, tyro.conf.arg(name="from")]


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
    optim = choose_optimizer(default.recipe.optim, command.recipe.optim, _given(arguments, "--optim."))
    return replace(command, recipe=replace(command.recipe, optim=optim))


def choose_optimizer(usual: OptimConfig, asked: OptimConfig, given: set[str]) -> OptimConfig:
    """Return the optimizer's settings; where it is not the recipe's, what the recipe says of its own does not hold.

    Args:
        usual: of the recipe.
        asked: with the command line's values.
        given: the fields that the command line named.

    Raises:
        InputError: no such optimizer, a field that it does not use, or a learning rate that was meant for another one.
    """
    for field in find_unused(asked):
        if field in given:
            raise InputError(describe_unused(asked, field))
    if asked.name == usual.name:
        return asked
    if "lr" not in given:
        own = own_lr(asked.name)
        raise InputError(
            f"the recipe's learning rate {usual.lr:g} is for {usual.name}, not for {asked.name}: give --optim.lr"
            + (f" ({asked.name}'s own default is {own:g})" if own else "")
        )
    return replace(asked, **{name: getattr(OptimConfig(), name) for name in OPTIONAL if name not in given})


def _given(arguments: list[str], prefix: str) -> set[str]:
    """Return the fields under a prefix that a command line names, e.g. `lr` for --optim.lr=0.1."""
    flags = [argument.partition("=")[0].replace("-", "_") for argument in arguments if argument.startswith(prefix)]
    return {flag.rpartition(".")[2].removeprefix("no_") for flag in flags}


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
            names.append(RENAMED.get(name, name))
    return names
