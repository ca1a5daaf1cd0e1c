"""options.py parses command lines into dataclasses; tables.py shows one table as Markdown and in the terminal."""

import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from prep.errors import InputError


@dataclass(frozen=True)
class Nested:
    """Options that commands share."""

    seconds: float = 1.0  # of a window


@dataclass(frozen=True)
class Some:
    """Options of a command."""

    batch_size: int = 64  # images
    only: tuple[str, ...] = ()  # names
    nested: Nested = field(default_factory=Nested)


@pytest.fixture
def options() -> Any:
    return importlib.import_module("options")


@pytest.fixture
def tables() -> Any:
    return importlib.import_module("tables")


def test_flags_of_a_nested_dataclass_have_no_prefix(options: Any) -> None:
    words = ["--batch-size", "8", "--only", "a", "b", "--seconds", "2"]
    assert options.parse_options(Some, "some.py", "", words) == Some(8, ("a", "b"), Nested(2.0))


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("--batch-sise=8", "--batch-sise; did you mean --batch-size?"),
        ("--second=2", "--second; did you mean --seconds?"),
        ("--qqq", "--qqq (`"),
    ],
)
def test_an_unknown_flag_names_the_nearest_one(options: Any, word: str, named: str) -> None:
    with pytest.raises(InputError) as refusal:
        options.parse_options(Some, "benchmarks/some.py", "", [word])
    assert f"unknown flag {named}" in str(refusal.value)
    assert "`python benchmarks/some.py --help` lists all flags" in str(refusal.value)


@pytest.mark.parametrize(
    ("check", "told"),
    [
        (lambda it: it.check_least(2, num_ranks=1), "--num-ranks must be at least 2, got 1"),
        (lambda it: it.check_positive(seconds=float("nan")), "--seconds must be finite and greater than 0, got nan"),
        (lambda it: it.check_least(0, warmup=float("inf")), "--warmup must be finite and at least 0, got inf"),
        (lambda it: it.check_positive(seconds=0), "--seconds must be greater than 0, got 0"),
        (lambda it: it.check_repetitions(4), "--repetitions must be at least 5, got 4"),
        (lambda it: it.check_known("--race", ["c"], "ab"), "--race: unknown name 'c': choose from a, b"),
        (lambda it: it.check_folder("--work", Path("/no")), "--work: /no is not a folder"),
        (lambda it: it.check_outputs(None, Path("/")), "/ is a folder: give the name of a file"),
        (lambda it: it.check_outputs(Path("/no/record.json")), "/no does not exist: create it or choose another"),
    ],
)
def test_a_refusal_says_what_was_expected_and_found(options: Any, check: Callable[[Any], None], told: str) -> None:
    with pytest.raises(InputError) as refusal:
        check(options)
    assert told in str(refusal.value)


def test_markdown_escapes_pipes_and_leaves_out_empty_columns(tables: Any) -> None:
    table = tables.Table("Title", ("", "empty", "b|c"), [["", "", "x|y"], ["", "", "two\nlines"]], ["a note"])
    assert tables.to_markdown([table]).splitlines() == [
        *("**Title**", "", "|  | b\\|c |", "|---|---|", "|  | x\\|y |", "|  | two lines |", ""),
        "* a note",
    ]


def test_details_are_collapsed_in_markdown_and_left_out_in_the_terminal(tables: Any) -> None:
    shown = [tables.Table("Shown", ("a", "none"), [["[b]x", ""]], ["n"]), tables.Table(notes=["m"], detail="method")]
    text, terminal = tables.to_markdown(shown), io.StringIO()
    assert "<details><summary>method</summary>\n\n* m\n\n</details>" in text
    tables.print_tables(shown, terminal)
    assert [line.strip() for line in terminal.getvalue().splitlines()] == ["Shown", "a", "[b]x", "n", ""]
    assert tables.to_markdown([tables.Table(detail="nothing")]) == ""


@pytest.mark.parametrize("columns", [80, 300])
def test_cells_are_neither_cut_nor_changed_in_a_terminal(
    tables: Any, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    header = [f"a-long-heading-{number}" for number in range(40)]
    row = [f"/folder/with:cat:[red]/{'x' * number * 10}" for number in range(40)]
    terminal = io.StringIO()
    tables.print_tables([tables.Table("A :cat: [b]title", header, [row], [":dog: [b]note"])], terminal)
    title, heading, values, note, _ = terminal.getvalue().splitlines()
    assert (title, note) == ("A :cat: [b]title", ":dog: [b]note")
    assert (heading.split(), values.split()) == (header, row)
