"""The picture of a record: classes per batch and displacement between epochs, one row per loader."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from drawing.style import ACCENT, ALARM, FAINT, INK
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

ROW_INCHES, WIDTH_INCHES, DPI = 1.9, 10.0, 160
CLASSES, DISPLACEMENT = "classes in a batch", "displacement between epochs"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": FAINT,
    "xtick.color": FAINT,
    "text.color": INK,
    "axes.labelcolor": INK,
}


def draw_certificates(record: dict[str, Any], path: Path) -> None:
    """Write the picture of a record as a PNG."""
    loaders = record["loaders"]
    with mpl.rc_context(STYLE):
        engine = ConstrainedLayoutEngine(hspace=0.06, wspace=0.04)
        figure = Figure((WIDTH_INCHES, ROW_INCHES * len(loaders) + 1.0), layout=engine)
        rows = figure.subplots(len(loaders), 2, squeeze=False, sharex="col")
        for axes, facts in zip(rows, loaders.values(), strict=True):
            found = {each["name"]: each for each in facts["certificates"]}
            colour = ALARM if "buffer" in facts else ACCENT
            draw_classes(axes[0], found[CLASSES], colour)
            draw_displacements(axes[1], found[DISPLACEMENT], colour)
            axes[0].set_ylabel(
                facts["loader"] + (f"\nbuffer {facts['buffer']:,}" if "buffer" in facts else ""), color=colour
            )
            axes[0].yaxis.label.set_fontweight("bold")
        label_axes(rows, record)
        rows[0][1].legend(frameon=False, loc="upper right")
        figure.savefig(path, dpi=DPI, facecolor="white")


def label_axes(rows: Any, record: dict[str, Any]) -> None:
    """Write a title above each column of axes and the unit below it."""
    data = record["dataset"]
    titles = (
        f"Different classes in a batch of {record['batch_size']:,}",
        "How far an image moves between two epochs",
    )
    for axes, title in zip(rows[0], titles, strict=True):
        axes.set_title(title, loc="left", fontweight="bold", pad=22)
    rows[-1][0].set_xlabel(f"classes, of {data['num_classes']:,} ({data['name']}, {data['num_images']:,} images)")
    rows[-1][1].set_xlabel("displacement, as a share of the epoch")
    for axes in rows.flat:
        axes.set_yticks([])


def draw_classes(axes: Axes, certificate: dict[str, Any], colour: str) -> None:
    """Draw the histogram of classes per batch, and the normal curve of the expected mean and deviation."""
    figures = certificate["figures"]
    if not figures:
        return
    shares = np.array(figures["histogram"]) / sum(figures["histogram"])
    mean, deviation = figures["expected_mean"], max(figures["expected_deviation"], 0.2)
    axes.bar(np.arange(len(shares)), shares, width=1.0, color=colour, alpha=0.75)
    places = np.linspace(max(0.0, mean - 4 * deviation), mean + 4 * deviation, 200)
    curve = np.exp(-(((places - mean) / deviation) ** 2) / 2) / (deviation * np.sqrt(2 * np.pi))
    axes.plot(places, curve, color=INK, linewidth=1.4, label="uniform permutation")
    axes.set_xlim(left=0)
    write_verdict(axes, certificate, f"mean {figures['observed_mean']:.1f}, expected {mean:.1f}", colour)


def draw_displacements(axes: Axes, certificate: dict[str, Any], colour: str) -> None:
    """Draw the density of displacements, and the triangle of a uniform permutation."""
    figures = certificate["figures"]
    if not figures:
        return
    counts = np.array(figures["histogram"])
    width = 1 / len(counts)
    places = (np.arange(len(counts)) + 0.5) * width
    axes.bar(places, counts / counts.sum() / width, width=width, color=colour, alpha=0.75)
    axes.plot([0, 1], [2, 0], color=INK, linewidth=1.4, label="uniform permutation")
    axes.set_xlim(0, 1)
    write_verdict(axes, certificate, f"mean {figures['observed_mean']:.3f}, expected 0.333", colour)


def write_verdict(axes: Axes, certificate: dict[str, Any], words: str, colour: str) -> None:
    """Write one line above the axes: the verdict and the figures."""
    passed = "pass" if certificate["passed"] else "FAIL"
    axes.text(0, 1.03, f"{passed}: {words}", transform=axes.transAxes, color=colour, va="bottom")
