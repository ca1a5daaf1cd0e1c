"""Draw bars: contenders with spread, in groups; and each thread's time per batch, stacked."""

from collections.abc import Sequence
from typing import Any

from drawing.shown import Bar, Picture, Spend, Stack
from drawing.style import ACCENT, FAINT, GREY, INK, SHADES, new_figure
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.transforms import Transform
from reports.words import format_number

THICK, GAP = 0.7, 0.4  # in rows: thickness of a bar, distance between groups
ROW, LABELS, BELOW, KEY = 0.31, 1.75, 0.15, 0.45  # inches: a row, the names, free space below, the legend
CHARACTER = 0.079  # inches of a name's character, for names that need more than LABELS
TRACK = "#edf0f3"
LEAST_LABELLED = 0.12  # share of the longest period: narrower parts have no room for their figure


def draw_bars(picture: Picture) -> Figure:
    """Draw horizontal bars, each with its figure at its end; the ratio of ours to it is in a column on the right."""
    bars: list[Bar] = list(picture.marks)  # pyright: ignore[reportAssignmentType]
    rows, headings = place(bars)
    labels = max(LABELS, CHARACTER * max(len(bar.label) for bar in bars))
    figure, ax = new_figure(picture, ROW * (max(rows) + 1), (labels, BELOW))
    for row, bar in zip(rows, bars, strict=True):
        _draw_bar(ax, row, bar)
    room = 1.6 if any(bar.of_originals for bar in bars) else 1.3  # for the figures
    ax.set_xlim(0, max(bar.high for bar in bars) * room)
    for row, heading in headings.items():
        ax.text(0, row, heading, va="center", color=FAINT, fontsize=9)
        is_compared = any(bar.ratio for bar in bars if bar.group == heading)
        compared = "Penstock is" if is_compared else ""
        ax.text(1, row, compared, va="center", ha="right", color=FAINT, fontsize=9, transform=_across(ax))
    _strip(ax, max(rows) + 0.5, -0.5)
    ax.set_yticks(rows, [bar.label for bar in bars])
    for label, bar in zip(ax.get_yticklabels(), bars, strict=True):
        label.set(fontweight="bold" if bar.is_ours else "normal", color=ACCENT if bar.is_ours else INK)
    return figure


def place(bars: Sequence[Bar | Spend]) -> tuple[list[float], dict[float, str]]:
    """Return the row of each bar, and the rows of the groups' headings."""
    rows, headings, row, last = [], {}, 0.0, None
    for bar in bars:
        if bar.group != last:
            row += GAP if headings else 0
            headings[row], last = bar.group, bar.group
            row += 0.85
        rows.append(row)
        row += 1
    return rows, headings


def _across(ax: Axes) -> Transform:
    """Return the transform with shares of the axes as x and rows as y."""
    return ax.get_yaxis_transform()


def _draw_bar(ax: Axes, row: float, bar: Bar) -> None:
    color, weight = (ACCENT, "bold") if bar.is_ours else (INK, "normal")
    ax.barh(row, bar.median, THICK, color=ACCENT if bar.is_ours else GREY)
    ax.plot([bar.low, bar.high], [row, row], color=INK, linewidth=1.2, solid_capstyle="butt")
    style: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontweight": weight, "color": color}
    ax.annotate(format_number(bar.median), (bar.high, row), (6, 0), **style)
    ax.text(1, row, bar.ratio or bar.of_originals, va="center", ha="right", color=INK, transform=_across(ax))


def _strip(ax: Axes, bottom: float, top: float) -> None:
    """Remove all of the axes except the names on the left, because the figures are at the bars."""
    ax.set_ylim(bottom, top)
    ax.spines["bottom"].set_visible(False)
    ax.spines["left"].set_visible(False)
    ax.tick_params(left=False, bottom=False, labelbottom=False)


def draw_stacks(picture: Picture) -> Figure:
    """Draw one row per thread: its parts, with figures if there is room, on a track as long as the time per batch."""
    stacks: list[Stack] = list(picture.marks)  # pyright: ignore[reportAssignmentType]
    figure, ax = new_figure(picture, 1.3 * ROW * len(stacks), (LABELS, KEY))
    longest = max(stack.period for stack in stacks)
    for row, stack in enumerate(stacks):
        _draw_stack(ax, row, stack, LEAST_LABELLED * longest)
        ax.text(stack.period + longest / 100, row, f"{stack.period:.1f} total", va="center", color=FAINT)
    _strip(ax, len(stacks) - 0.4, -0.6)
    ax.set_yticks(range(len(stacks)), [stack.label for stack in stacks])
    ax.set_xlim(0, longest * 1.18)
    _name_colors(ax, stacks)
    return figure


def _draw_stack(ax: Axes, row: int, stack: Stack, least_labelled: float) -> None:
    ax.barh(row, stack.period, THICK, color=TRACK)
    start = 0.0
    for name, value in stack.parts.items():
        ax.barh(row, value, THICK, left=start, color=SHADES[name])
        if value > least_labelled:
            color = INK if name in ("copy", "take") else "white"
            ax.text(start + value / 2, row, f"{name} {value:.1f}", ha="center", va="center", color=color, fontsize=9)
        start += value


def _name_colors(ax: Axes, stacks: list[Stack]) -> None:
    """Draw a legend below the bars, because the narrow parts have no room for their names."""
    names = dict.fromkeys(name for stack in stacks for name in stack.parts)
    patches = [Patch(color=SHADES[name], label=name) for name in names] + [Patch(color=TRACK, label="idle")]
    place = {"loc": "upper left", "bbox_to_anchor": (-0.008, 0), "ncols": len(patches), "columnspacing": 1.4}
    ax.legend(handles=patches, frameon=False, fontsize=9, labelcolor=INK, handlelength=0.9, handleheight=0.9, **place)
