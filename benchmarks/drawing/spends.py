"""Draw the dollars of a run by machine: a stacked bar on demand, a mark for spot, and the figures in columns."""

from typing import Any

from drawing.bars import place
from drawing.shown import Picture, Spend
from drawing.style import ACCENT, ALARM, FAINT, GREY, INK, new_figure
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROW, THICK = 0.27, 0.66  # inches of a row; thickness of a bar in rows
LABELS, BELOW = 1.9, 0.12  # inches: the names, free space below
COLUMNS = {"on demand": 0.60, "spot": 0.70, "time": 0.80, "binds longest": 1.0}  # right ends, as shares of the axes
BARS = 0.47  # share of the axes that the longest bar takes


def draw_spends(picture: Picture) -> Figure:
    """Draw one row per machine, in groups by stored form, all on one scale that starts at 0."""
    spends: list[Spend] = list(picture.marks)  # pyright: ignore[reportAssignmentType]
    rows, headings = place(spends)
    figure, ax = new_figure(picture, ROW * (max(rows) + 1), (LABELS, BELOW))
    for row, spend in zip(rows, spends, strict=True):
        _draw_spend(ax, row, spend)
    for row, heading in headings.items():
        ax.text(0, row, heading, va="center", color=FAINT, fontsize=9)
        for name, end in COLUMNS.items():
            _write(ax, end, row, name, FAINT)
    longest = max(max(spend.on_demand, spend.spot) for spend in spends)
    ax.set_xlim(0, longest / BARS)
    ax.set_ylim(max(rows) + 0.5, -0.5)
    for side in ("bottom", "left"):
        ax.spines[side].set_visible(False)
    ax.tick_params(left=False, bottom=False, labelbottom=False)
    ax.set_yticks(rows, [spend.label for spend in spends], fontsize=9)
    return figure


def _draw_spend(ax: Axes, row: float, spend: Spend) -> None:
    ax.barh(row, spend.running, THICK, color=ACCENT)
    ax.barh(row, spend.start, THICK, left=spend.running, color=GREY)
    ax.plot(spend.spot, row, "D", color=ALARM, markeredgecolor="white", markersize=6.5)
    cells = (f"{spend.on_demand:.2f} $", f"{spend.spot:.2f} $", spend.hours, spend.binds)
    for end, text in zip(COLUMNS.values(), cells, strict=True):
        _write(ax, end, row, text, INK)


def _write(ax: Axes, end: float, row: float, text: str, color: str) -> None:
    """Write a figure so that it ends at a share of the axes."""
    style: dict[str, Any] = {"va": "center", "ha": "right", "color": color, "fontsize": 9}
    ax.text(end, row, text.replace("$", r"\$"), transform=ax.get_yaxis_transform(), **style)
