"""Command lines of the benchmarks: a dataclass of options becomes flags, as in train/main.py, with checks used by all.

A command's options are a frozen dataclass whose fields have a docstring or a comment of one line: tyro shows it in
--help. Nothing here imports torch, so that --help answers at once.
"""

import difflib
import math
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from prep.errors import InputError

LEAST_REPETITIONS = 5  # fewer show no spread
NUM_CORES = len(os.sched_getaffinity(0))

Options = TypeVar("Options")


def parse_options(
    kind: type[Options],
    script: str,
    about: str | None,
    words: list[str] | None = None,
    may_be_bare: tuple[str, ...] = (),
) -> Options:
    """Parse a command line into a dataclass.

    Args:
        kind: a dataclass; a nested dataclass's fields become flags without a prefix.
        script: the command's path in the checkout, for example `benchmarks/compare.py`.
        about: the command's docstring.
        words: the command line; None: that of this process.
        may_be_bare: flags with several values that may also be given without one.

    Raises:
        InputError: an unknown flag, and the message names the nearest one; an unexpected word; a flag without a value.
    """
    import tyro  # noqa: PLC0415

    words = sys.argv[1:] if words is None else words
    parsed, unknown = tyro.cli(
        kind,
        args=words,
        prog=script,
        description=about,
        config=(tyro.conf.OmitArgPrefixes,),
        return_unknown_args=True,
    )
    if unknown:
        flag, found = unknown[0].partition("=")[0], "unexpected word"
        suggestion = ""
        if flag.startswith("-"):
            near = difflib.get_close_matches(flag, values_by_flag(parsed), n=1, cutoff=0.5)
            found, suggestion = "unknown flag", f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"{found} {flag}{suggestion} (`python {script} --help` lists all flags)")
    # tyro takes a flag with no value for an empty tuple, which means "all" where that is the default.
    given = {word.partition("=")[0].replace("_", "-") for word in words}
    for flag, value in values_by_flag(parsed).items():
        if value == () and flag in given and flag not in may_be_bare:
            raise InputError(f"{flag} needs at least one value (`python {script} --help` explains it)")
    return parsed


def refuse_start(command: str) -> None:
    """Refuse to run a file that is not a command, and name the command to run.

    Args:
        command: its words after `python benchmarks/`.

    Raises:
        InputError: always.
    """
    raise InputError(f"this file is not a command: run `python benchmarks/{command}` with the same flags")


def values_by_flag(options: Any) -> dict[str, Any]:
    """Return the values of a dataclass and of those nested in it, by their flags."""
    values: dict[str, Any] = {}
    for name, value in vars(options).items():
        is_nested = hasattr(value, "__dataclass_fields__")
        values |= values_by_flag(value) if is_nested else {f"--{name.replace('_', '-')}": value}
    return values


def check_least(least: float, **values: float) -> None:
    """Check that values are at least `least`, and finite; raise InputError that names the first other flag."""
    for name, value in values.items():
        if not least <= value < math.inf:
            raise InputError(f"--{name.replace('_', '-')} must be {_finite(value)}at least {least:g}, got {value:g}")


def check_positive(**values: float) -> None:
    """Check that values are greater than 0 and finite; raise InputError that names the first other flag."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise InputError(f"--{name.replace('_', '-')} must be {_finite(value)}greater than 0, got {value:g}")


def _finite(value: float) -> str:
    return "" if math.isfinite(value) else "finite and "


def check_minutes(minutes: float) -> None:
    """Check the length of a search for the fastest settings; raise InputError for one that cannot be used."""
    if not 0 < minutes < math.inf:
        raise InputError(f"--minutes must be greater than 0 (1 or more is useful), got {minutes:g}")


def check_repetitions(repetitions: int) -> None:
    """Check that the median of the repetitions has a spread; raise InputError if not."""
    check_least(LEAST_REPETITIONS, repetitions=repetitions)


def check_known(flag: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Check that names are known; raise InputError with the choices for the first one that is not."""
    choices = list(known)
    for name in given:
        if name not in choices:
            raise InputError(f"{flag}: unknown name '{name}': choose from {', '.join(choices)}")


def check_outputs(*outputs: Path | None) -> None:
    """Check that the folders of output files exist, before anything is measured; raise InputError if not."""
    for out in filter(None, outputs):
        if out.is_dir():
            raise InputError(f"{out} is a folder: give the name of a file")
        if not out.resolve().parent.is_dir():
            raise InputError(f"{out.parent} does not exist: create it or choose another folder for {out.name}")


def check_folder(flag: str, folder: Path | None) -> None:
    """Check that a folder exists; raise InputError if not."""
    if folder and not folder.is_dir():
        raise InputError(f"{flag}: {folder} is not a folder: create it or choose another one")
