"""Print the same pictures in a terminal: bars made of block characters, with their figures next to them."""

from dataclasses import dataclass

from drawing.shown import Bar, Picture, Point, Spend, Stack
from reports.words import format_number
from rich.console import Console
from rich.text import Text

LEAST_CELLS, MOST_CELLS = 8, 60  # length of the longest bar, in characters
EIGHTHS = " ▏▎▍▌▋▊▉"
BLOCKS = {"wait": "░", "take": "▒", "step": "█", "read": "▒", "decode": "█", "copy": "░"}


@dataclass(frozen=True)
class Row:
    """A mark as text; `parts` are the lengths of its parts by kind, `length` is its total length."""

    heading: str
    name: str
    parts: dict[str, float]
    length: float
    figures: str
    note: str
    is_ours: bool


def print_picture(picture: Picture, console: Console) -> None:
    """Print the title, then one line per mark, as wide as the terminal allows."""
    # The columns' widths; the bars get what is left.
    rows = [describe_mark(mark, picture) for mark in picture.marks]
    name, figures, note = (max(len(getattr(row, column)) for row in rows) for column in ("name", "figures", "note"))
    cells = max(LEAST_CELLS, min(MOST_CELLS, console.width - name - figures - note - 6))
    scale, heading = cells / max(row.length for row in rows), ""

    # One line per mark, with a heading above the first one of each group.
    lines = [Text(picture.title, "bold"), Text(picture.subtitle, "dim")]
    for row in rows:
        if row.heading != heading:
            heading = row.heading
            lines.append(Text(f"{'':<{name}}  {heading}", "dim"))
        color = "bright_blue" if row.is_ours else "grey62"
        blocks = Text(make_blocks(row, scale).ljust(cells), color)
        tail = f"  {row.figures:<{figures}}  {row.note}".rstrip()
        lines.append(Text.assemble((f"{row.name:<{name}}  ", "bold" if row.is_ours else ""), blocks, tail))
    for line in lines:
        console.print(line, soft_wrap=True)
    console.print()


def describe_mark(mark: Bar | Stack | Point | Spend, picture: Picture) -> Row:
    """Return a mark's name, lengths and figures."""
    if isinstance(mark, Stack):
        figures = ", ".join(f"{name} {value:.1f}" for name, value in mark.parts.items())
        return Row("", mark.label, mark.parts, mark.period, f"{figures} of {mark.period:.1f}", "", True)
    if isinstance(mark, Spend):
        figures = f"{mark.on_demand:.2f} $, spot {mark.spot:.2f} $, {mark.hours}"
        return Row(mark.group, mark.label, {"": mark.on_demand}, mark.on_demand, figures, mark.binds, False)
    figures = f"{format_number(mark.median)} ({format_number(mark.low)} to {format_number(mark.high)})"
    if isinstance(mark, Point):
        return Row("", f"{mark.x:,.0f} {picture.unit}", {"": mark.median}, mark.median, figures, mark.label, True)
    note = f"Penstock is {mark.ratio}" if mark.ratio else mark.of_originals
    return Row(mark.group, mark.label, {"": mark.median}, mark.median, figures, note, mark.is_ours)


def make_blocks(row: Row, scale: float) -> str:
    """Return a bar, exact to an eighth of a character; or its parts in a row, with dots for the rest of its length."""
    if "" in row.parts:
        full, eighths = divmod(round(8 * row.length * scale), 8)
        return "█" * full + EIGHTHS[eighths].strip()
    blocks = "".join(BLOCKS[name] * round(value * scale) for name, value in row.parts.items())
    return blocks.ljust(round(row.length * scale), "·")
