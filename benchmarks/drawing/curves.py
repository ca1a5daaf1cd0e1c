"""Draw images/s by a setting: connected points with their spread, each with its figure."""

from typing import Any

from drawing.shown import Picture, Point
from drawing.style import ACCENT, FAINT, INK, new_figure
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from reports.words import format_number

HEIGHT, LEFT, BELOW = 2.9, 0.25, 0.6  # inches
TOP, RIGHT = 1.25, 1.2  # limits of the axes, times the highest and the rightmost point: room for their figures


def draw_curve(picture: Picture) -> Figure:
    """Draw a curve; both axes start at 0, so that twice as high is twice as fast, and the points have their figures."""
    points: list[Point] = list(picture.marks)  # pyright: ignore[reportAssignmentType]
    figure, ax = new_figure(picture, HEIGHT, (LEFT, BELOW))
    ax.plot([point.x for point in points], [point.median for point in points], color=ACCENT, linewidth=2)
    for point in points:
        _draw_point(ax, point)
    ax.set_ylim(0, max(point.high for point in points) * TOP)
    ax.set_xlim(0, points[-1].x * RIGHT)
    ax.set_yticks([])
    ax.set_xticks([point.x for point in points], [f"{point.x:,.0f}" for point in points])
    ax.set_xlabel(picture.axis, color=FAINT)
    ax.tick_params(axis="x", colors=FAINT, length=3)
    ax.spines["left"].set_visible(False)
    if picture.cores:
        _mark_cores(ax, picture.cores)
    return figure


def _draw_point(ax: Axes, point: Point) -> None:
    """Draw a point with its figure above it; a point with a label has both on its right, where the curve falls."""
    spread = ([point.median - point.low], [point.high - point.median])
    ax.errorbar(point.x, point.median, spread, fmt="none", ecolor=INK, elinewidth=1.2, capsize=3, zorder=3)
    ax.plot(point.x, point.median, "o", color=ACCENT, markersize=5.5, zorder=4)
    offset, side = ((8, 3), "left") if point.label else ((0, 7), "center")
    place: dict[str, Any] = {"textcoords": "offset points", "ha": side, "color": INK, "fontsize": 9.5}
    text = "\n".join(filter(None, (point.label, format_number(point.median))))
    ax.annotate(text, (point.x, point.high), offset, **place)


def _mark_cores(ax: Axes, cores: int) -> None:
    ax.axvline(cores, ymax=0.2, color=FAINT, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
    place: dict[str, Any] = {"textcoords": "offset points", "color": FAINT, "fontsize": 9}
    ax.annotate(f"{cores} cores", (cores, 0), (5, 24), **place)
