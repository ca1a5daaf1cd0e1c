"""Read what a training run has logged, and plot it over epochs.

`train/curves.py` and `serve/report.py` both do, so it is next to what all packages share. Matplotlib is imported when
something is drawn.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prep.errors import InputError
from prep.json_lines import read_json_lines

METRICS = "metrics.jsonl"  # in a run folder
STYLE = "prep.penstock"  # of all pictures: penstock.mplstyle


@dataclass(frozen=True)
class Line:
    """One metric of one kind of log entry."""

    kind: str  # train or validation
    metric: str
    name: str  # in the legend
    style: str = "-"  # of matplotlib


@dataclass(frozen=True)
class Panel:
    """One plot over epochs."""

    title: str
    unit: str  # label of the y axis
    lines: tuple[Line, ...]


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return a run's entries in order. An incomplete last line is skipped, with a warning on standard error.

    Raises:
        InputError: the file has no entries, or a line before the last one is damaged.
    """
    path = folder / METRICS
    lines = read_json_lines(path, "kind", "epoch")
    if lines.skipped:
        print(f"warning: {lines.skipped}", file=sys.stderr)
    if not lines.entries:
        raise InputError(f"{path} holds no metrics: give a run folder of train/main.py that has logged something")
    return lines.entries


def draw_panels(panels: Sequence[Panel], runs: Mapping[str, Sequence[dict[str, Any]]], out: Path) -> None:
    """Draw panels, two in a row, with one color per run, into a PNG file.

    Args:
        runs: the entries of each run, by the name for the legend; "" for a single run without a name.
    """
    import matplotlib as mpl  # noqa: PLC0415  (costs seconds: only when something is drawn)

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    num_rows = len(panels) // 2
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(num_rows, 2, figsize=(12, 4 * num_rows), layout="constrained")
        for ax, panel in zip(axes.flat, panels, strict=True):
            _draw_panel(ax, panel, runs)
        figure.savefig(out, dpi=120)
    plt.close(figure)


def _draw_panel(ax: Any, panel: Panel, runs: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    for color, (name, entries) in enumerate(runs.items()):
        for line in panel.lines:
            points = [(e["epoch"], e[line.metric]) for e in entries if e["kind"] == line.kind and line.metric in e]
            if points:
                label = f"{name} {line.name}".strip() if len(panel.lines) > 1 else name
                style = {"color": f"C{color}", "marker": ".", "markersize": 4}
                ax.plot(*zip(*points, strict=True), line.style, label=label, **style)
    ax.set(title=panel.title, xlabel="epoch", ylabel=panel.unit)
    ax.grid(alpha=0.3)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=8)
