"""The style of the pictures: one accent colour for Penstock, grey for the others, labels next to what they name."""

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from drawing.origin import describe_origin
from drawing.shown import Picture
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from reports.reading import Record

ACCENT, GREY, INK, FAINT, ALARM = "#0b6bcb", "#b4bcc6", "#1f2933", "#6b7785", "#e07a1f"
SHADES = {"decode": ACCENT, "read": "#6ba6e2", "copy": "#c2dbf4", "step": "#6b7785", "take": GREY, "wait": ALARM}
WIDTH, RIGHT, EDGE = 8.0, 0.25, 0.2  # inches: total, free on the right, free on the left
TITLE, LINE = 0.72, 0.18  # inches: the title, and each line of the subtitle
DPI = 150
STYLE: Any = {
    "font.family": "DejaVu Sans",  # part of matplotlib, so the same on all machines
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def new_figure(picture: Picture, height: float, margins: tuple[float, float]) -> tuple[Figure, Axes]:
    """Return a figure with titles and axes of `height` inches; `margins` are free inches on the left and below."""
    head, (left, below) = TITLE + LINE * len(picture.subtitle.splitlines()), margins
    whole = height + head + below
    with mpl.rc_context(STYLE):
        figure = plt.figure(figsize=(WIDTH, whole))
        figure.text(EDGE / WIDTH, 1 - 0.18 / whole, picture.title, va="top", fontweight="bold", fontsize=14)
        figure.text(
            EDGE / WIDTH, 1 - 0.52 / whole, picture.subtitle, va="top", color=FAINT, fontsize=9, linespacing=1.4
        )
        return figure, figure.add_axes((left / WIDTH, below / whole, (WIDTH - left - RIGHT) / WIDTH, height / whole))


def save(figure: Figure, path: Path, record: Record) -> None:
    """Write a figure as PNG; the same record gives the same bytes."""
    with mpl.rc_context(STYLE):
        figure.savefig(path, dpi=DPI, metadata=describe_origin(record))
    plt.close(figure)
