"""`python train/curves.py RUN… --out curves.png`: accuracy, loss and learning rate of runs, over each other."""

import argparse
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

from prep.errors import InputError
from prep.json_lines import read_json_lines
from train.run_folder import METRICS

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

# title, y axis, and the lines: kind of entry, metric, name, style
PANELS = (
    ("EMA top-1", "percent", (("validation", "ema_top1", "EMA", "-"),)),
    ("Accuracy", "top-1, percent", (("train", "top1", "train", ":"), ("validation", "top1", "validation", "-"))),
    ("Learning rate", "", (("train", "lr", "lr", "-"),)),
    ("Loss", "nats", (("train", "loss", "train", ":"), ("validation", "loss", "validation", "-"))),
)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """A run's entries, in order. A last line that is not whole is passed over, in a line on standard error.

    Raises:
        InputError: there are none, or another line is damaged.
    """
    path = run / METRICS
    lines = read_json_lines(path, "kind", "epoch")
    if lines.skipped:
        print(f"warning: {lines.skipped}", file=sys.stderr)
    if not lines.entries:
        raise InputError(f"{path} holds no metrics: give a run folder of train/main.py that has logged something")
    return lines.entries


def draw(runs: dict[str, list[dict[str, Any]]], out: Path) -> None:
    """Four panels over epochs, one colour a run."""
    figure, axes = plt.subplots(2, 2, figsize=(12, 8), layout="constrained")
    for ax, (title, unit, lines) in zip(axes.flat, PANELS, strict=True):
        for color, (run, entries) in enumerate(runs.items()):
            for kind, metric, name, style in lines:
                points = [(e["epoch"], e[metric]) for e in entries if e["kind"] == kind and metric in e]
                if points:
                    label = f"{run} {name}" if len(lines) > 1 else run
                    ax.plot(*zip(*points, strict=True), style, color=f"C{color}", label=label, marker=".", markersize=4)
        _label(ax, title, unit)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    plt.close(figure)


def _label(ax: Axes, title: str, unit: str) -> None:
    ax.set(title=title, xlabel="epoch", ylabel=unit)
    ax.grid(alpha=0.3)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=8)


def main() -> None:
    """Read the runs, draw, say where."""
    parser = argparse.ArgumentParser(prog="train/curves.py", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders of train/main.py")
    parser.add_argument("--out", type=Path, default=Path("curves.png"), metavar="PNG")
    arguments = parser.parse_args()
    draw({run.name: read_metrics(run) for run in arguments.runs}, arguments.out)
    print(f"curves of {len(arguments.runs)} run(s): {arguments.out}")


if __name__ == "__main__":
    try:
        main()
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
