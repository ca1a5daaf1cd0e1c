"""The command line of `train/main.py`, generated from the recipe's dataclasses by tyro.

A separate file because only this command needs tyro. Needs no torch until an --optim flag has to be checked.
"""

import dataclasses
import difflib
import inspect
import shutil
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from prep.errors import InputError
from train.config import DataConfig, OptimConfig, Recipe, RunConfig
from train.recipe import DEFAULT_RECIPE, RECIPES

# `from` is a keyword of Python, so the field has another name than its flag. The annotation is set here, since
# train/config.py is also used without tyro.
RENAMED = {"run.start-from": "run.from"}
DataConfig.__annotations__["root"] = Annotated[str | Path, tyro.conf.arg(metavar="PATH|URL")]
RunConfig.__annotations__["start_from"] = Annotated[Path | None, tyro.conf.arg(name="from")]


@dataclass(frozen=True)
class Command:
    """A parsed command line."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    device: str = "auto"  # auto (a GPU if there is one), cpu or cuda
    dry_run: bool = False  # print the resolved recipe and stop


def parse_command(arguments: list[str]) -> Command:
    """Parse `[RECIPE] [--flag value]...`; the recipe's values are the defaults of the flags.

    `--help` without a recipe lists the recipes and exits; with a recipe it lists that recipe's flags.

    Raises:
        InputError: unknown recipe or flag (the message names the nearest one), or --optim flags that exclude each
            other.
    """
    # The recipe.
    if arguments and arguments[0] in ("-h", "--help"):
        print(list_recipes())
        sys.exit(0)
    named = bool(arguments) and not arguments[0].startswith("-")
    name = arguments[0] if named else DEFAULT_RECIPE
    if name not in RECIPES:
        raise InputError(f"unknown recipe '{name}'{_suggest(name, RECIPES)} (recipes: {', '.join(RECIPES)})")

    # Its flags.
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
        suggestion = _suggest(flag, [f"--{field}" for field in _list_flags(default)])
        raise InputError(f"unknown flag {flag}{suggestion} (`train/main.py {name} --help` lists all flags)")

    # Weights to start from: those of the command line replace the recipe's.
    names_weights = command.recipe.model.init is not None or command.recipe.run.start_from is not None
    if names_weights and "pretrained" not in _find_given(arguments, "--model."):
        command = replace(command, recipe=replace(command.recipe, model=replace(command.recipe.model, pretrained="")))

    # The EMA: a decay on the command line replaces the recipe's half-life.
    command = replace(command, recipe=choose_average(command.recipe, arguments))

    # The optimizer: the flags of one may not fit another.
    if given := _find_given(arguments, "--optim."):
        optim = choose_optimizer(default.recipe.optim, command.recipe.optim, given)
        command = replace(command, recipe=replace(command.recipe, optim=optim))
    return command


def list_recipes() -> str:
    """Return the help text that lists the recipes: the first line and the expected accuracy of each docstring."""
    width = shutil.get_terminal_size().columns
    lines = [
        "usage: [torchrun --nproc-per-node N] train/main.py [RECIPE] [--flag value]...",
        "",
        "Train a recipe. Run the same command again to resume.",
        "",
        "recipes:",
    ]
    for name, recipe in RECIPES.items():
        title, expected = describe_recipe(inspect.getdoc(recipe) or "")
        default = " (default)" if name == DEFAULT_RECIPE else ""
        start = f"  {name + default:<20}"
        lines += textwrap.wrap(f"{title} Expected: {expected}", width, initial_indent=start, subsequent_indent=" " * 22)
    lines += ["", "`train/main.py RECIPE --help` lists the flags of a recipe: each of its values is one."]
    return "\n".join(lines)


def describe_recipe(docstring: str) -> tuple[str, str]:
    """Return a recipe's title, which is the first line of its docstring, and the sentence after `Expected:`."""
    title = docstring.partition("\n")[0]
    expected = docstring.partition("Expected: ")[2].partition("\n\n")[0]
    # The value ends where the next entry, e.g. `Hardware:`, begins.
    kept = []
    for line in expected.splitlines():
        if kept and line.partition(" ")[0].endswith(":"):
            break
        kept.append(line)
    return title, " ".join(kept)


def choose_average(asked: Recipe, arguments: list[str]) -> Recipe:
    """Return the recipe in which --ema-decay, if the command line has it, replaces a half-life of the recipe's own.

    Raises:
        InputError: the command line has both.
    """
    flags = {argument.partition("=")[0].replace("_", "-") for argument in arguments}
    if "--ema-decay" not in flags or asked.ema_half_life is None:
        return asked
    if "--ema-half-life" in flags:
        raise InputError("--ema-decay and --ema-half-life exclude each other: remove one")
    return replace(asked, ema_half_life=None)


def choose_optimizer(usual: OptimConfig, asked: OptimConfig, given: set[str]) -> OptimConfig:
    """Return the optimizer's settings; for another optimizer than the recipe's, the recipe's own do not apply.

    Args:
        usual: the recipe's settings.
        asked: the same with the values of the command line.
        given: the fields that the command line names.

    Raises:
        InputError: unknown optimizer, a field that it does not use, or a learning rate meant for another optimizer.
    """
    from train.optim import OPTIONAL, default_lr, describe_unused, find_unused  # noqa: PLC0415  (imports torch)

    for field in find_unused(asked):
        if field in given:
            raise InputError(describe_unused(asked, field))
    if asked.name == usual.name:
        return asked
    if "lr" not in given:
        own = default_lr(asked.name)
        raise InputError(
            f"the recipe's learning rate {usual.lr:g} is for {usual.name}, not for {asked.name}: give --optim.lr"
            + (f" ({asked.name}'s own default is {own:g})" if own else "")
        )
    return replace(asked, **{name: getattr(OptimConfig(), name) for name in OPTIONAL if name not in given})


def _find_given(arguments: list[str], prefix: str) -> set[str]:
    """Return the fields under a prefix that a command line names, e.g. `lr` for --optim.lr=0.1."""
    flags = [argument.partition("=")[0].replace("-", "_") for argument in arguments]
    prefix = prefix.replace("-", "_")
    return {flag.rpartition(".")[2].removeprefix("no_") for flag in flags if flag.startswith(prefix)}


def _suggest(word: str, words: Iterable[str]) -> str:
    found = difflib.get_close_matches(word.replace("_", "-"), words, n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else ""


def _list_flags(value: Any, prefix: str = "") -> list[str]:
    """Return the dotted flags of a dataclass; those of `recipe` have no prefix, as on the command line."""
    names = []
    for field in dataclasses.fields(value):
        inner, name = getattr(value, field.name), prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(inner):
            names += _list_flags(inner, "" if isinstance(inner, Recipe) else f"{name}.")
        else:
            names.append(RENAMED.get(name, name))
    return names
