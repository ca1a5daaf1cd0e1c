"""The certificates of one loader for people: a table, and in words how much of the stream was decoded."""

from typing import Any

from certificates.verdict import Certificate
from reports.words import format_placement
from rich.console import Console
from rich.table import Table
from rich.text import Text

STYLES = {True: "bold green", False: "bold red", None: "yellow"}
LEAST_WIDTH = 120  # characters, where no terminal says how many it has


def show(facts: dict[str, Any], certificates: list[Certificate]) -> None:
    """On standard error."""
    console = Console(stderr=True)
    console.width = console.width if console.is_terminal else max(LEAST_WIDTH, console.width)
    table = Table(title=describe(facts), title_justify="left", show_lines=True)
    for name, ratio in {"certificate": 3, "": 1, "measured": 6, "expected": 4, "limit, and why": 4}.items():
        table.add_column(name, ratio=ratio, overflow="fold")
    for each in certificates:
        verdict = Text(each.verdict, STYLES[each.passed])
        table.add_row(each.name, verdict, *map(Text, (each.measured, each.expected, each.limit)))
    console.print(table)


def describe(facts: dict[str, Any]) -> str:
    """What was certified."""
    if "buffer" in facts:
        return f"{facts['loader']}, shuffle buffer of {facts['buffer']:,} images (its order alone, nothing decoded)"
    decoded = f"{facts['num_decoded']:,} images, {facts['decoded_percent']:.3g}% of its epochs"
    return f"{facts['loader']} on {facts['device']}: {decoded}; {format_placement(facts['placement'])}"
