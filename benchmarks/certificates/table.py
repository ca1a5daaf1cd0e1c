"""Print the certificates of one loader as a table, with a title that says how much of the stream was decoded."""

from typing import Any

from certificates.verdict import Certificate
from reports.words import format_placement
from rich.console import Console
from rich.table import Table
from rich.text import Text

STYLES = {True: "bold green", False: "bold red", None: "yellow"}
LEAST_WIDTH = 120  # characters, if standard error is not a terminal


def print_certificates(facts: dict[str, Any], certificates: list[Certificate]) -> None:
    """Print the table to standard error."""
    console = Console(stderr=True)
    console.width = console.width if console.is_terminal else max(LEAST_WIDTH, console.width)
    table = Table(title=format_title(facts), title_justify="left", show_lines=True)
    for name, ratio in {"certificate": 3, "": 1, "measured": 6, "expected": 4, "limit and reason": 4}.items():
        table.add_column(name, ratio=ratio, overflow="fold")
    for each in certificates:
        verdict = Text(each.verdict, STYLES[each.passed])
        table.add_row(each.name, verdict, *map(Text, (each.measured, each.expected, each.limit)))
    console.print(table)


def format_title(facts: dict[str, Any]) -> str:
    """Return a loader's name, settings, and how much was decoded."""
    if "buffer" in facts:
        return f"{facts['loader']}, shuffle buffer of {facts['buffer']:,} images (order only, nothing decoded)"
    decoded = f"{facts['num_decoded']:,} images, {facts['decoded_percent']:.3g}% of its epochs"
    return f"{facts['loader']} on {facts['device']}: {decoded}; {format_placement(facts['placement'])}"
