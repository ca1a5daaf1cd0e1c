"""The pages of the documentation name only what exists: commands, flags, files, headings and error lines."""

import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from helpers.commands import CHECKOUT

from train.arguments import RENAMED
from train.config import Recipe

PAGES = sorted([CHECKOUT / "README.md", *(CHECKOUT / "docs").glob("*.md")])
OURS = re.compile(r"(?:python|torchrun)[^`|]*?\s((?:prep|train|serve|benchmarks)/\w+\.py)([^`|#]*)")
LINK = re.compile(r"\]\((?!https?:)([^)\s]*)\)")
SUBCOMMANDS = ("write", "stage", "first-batch", "app", "verdict", "tuning", "ingredients")
CODE = re.compile(r"``.*?``|`([^`\n]+)`")
SOURCES = [
    path
    for folder in ("prep", "loaders", "train", "serve", "benchmarks")
    for path in CHECKOUT.glob(f"{folder}/**/*.py")
]


def _recipe_flags(kind: Any, prefix: str = "") -> Iterator[str]:
    """Yield the flags of `train/main.py` as tyro derives them from the fields of a recipe."""
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _recipe_flags(hints[field.name], f"{prefix}{field.name}.")
        else:
            flag = f"{prefix}{field.name}".replace("_", "-")
            yield RENAMED.get(flag, flag)


RECIPE_FLAGS = {"help", "dry-run", "device", *_recipe_flags(Recipe)}


def _commands(page: Path) -> list[tuple[str, str]]:
    """Return (file, rest of the line) of each command of ours in a page; a backslash continues a line."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    return [(found[1], found[2]) for line in text.splitlines() for found in OURS.finditer(line)]


def _slug(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


def _has_flag(name: str, rest: str, flag: str) -> bool:
    """Check whether a command knows a flag; `rest` is what follows the command's name."""
    if name == "train/main.py":
        return flag in RECIPE_FLAGS
    if f'"--{flag}"' in (CHECKOUT / name).read_text(encoding="utf-8"):
        return True
    first = rest.split(maxsplit=1)[0]
    said = _ask_help(name, "" if first.startswith("-") or first.isupper() else first)
    return re.search(rf"--{flag}(?![\w-])", said) is not None


@cache
def _ask_help(name: str, subcommand: str) -> str:
    """Return what a command or its subcommand prints for --help; "" if it has no such subcommand."""
    words = [sys.executable, name, *([subcommand] if subcommand in SUBCOMMANDS else []), "--help"]
    done = subprocess.run(words, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    return re.sub(r"[^\x20-\x7e]+", " ", done.stdout)  # without the frames of the boxes


@pytest.mark.needs("tyro")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_its_flags_exist(page: Path) -> None:
    for name, rest in _commands(page):
        path = CHECKOUT / name
        assert path.is_file(), f"{page.name} names {name}"
        for flag in re.findall(r"(?<=\s)--([a-z][\w.-]*)", rest):
            assert _has_flag(name, rest, flag), f"{page.name} gives {name} the flag --{flag}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_with_a_dot_is_a_field_of_the_recipe(page: Path) -> None:
    for flag in re.findall(r"--([a-z]\w*(?:\.[a-z][\w-]*)+)", page.read_text(encoding="utf-8")):
        assert flag in RECIPE_FLAGS, f"{page.name} names --{flag}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(_slug, headings), f"{page.name} links to {link}"


def test_every_error_line_of_the_troubleshooting_page_is_in_the_code() -> None:
    """A quoted symptom is a piece of a message; an ellipsis stands for what varies."""
    literals = "".join(re.sub(r'"\s*\n\s*f?"', "", path.read_text(encoding="utf-8")) for path in SOURCES)
    page = (CHECKOUT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    symptoms = [code for entry in re.findall(r"^\*\*(.*?)\*\*", page, re.MULTILINE) for code in CODE.findall(entry)]
    ours = [symptom for symptom in symptoms if " " in symptom and symptom not in FOREIGN]
    assert len(ours) > 10
    for symptom in ours:
        for piece in re.split(r"…|\d+|\(.*", symptom):
            assert piece.strip(" `") in literals, f"no message of ours says {piece!r} ({symptom!r})"


# Symptoms in the words of others: torch, the kernel, the shell.
FOREIGN = {"address already in use", "bus error", "data wait"}
