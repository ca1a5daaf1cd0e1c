"""The charts of a report: calibration, and the training curves of a run. For `serve/report.py`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

from prep.calibration import Bin, expected_calibration_error
from prep.errors import InputError

mpl.use("Agg")
from matplotlib import pyplot as plt

# title, unit, and the lines: kind of entry, metric, name
PANELS = (
    ("Accuracy", "top-1, percent", (("train", "top1", "train"), ("validation", "ema_top1", "validation, EMA"))),
    ("Loss", "nats", (("train", "loss", "train"), ("validation", "ema_loss", "validation, EMA"))),
)


def draw_calibration(bins: Sequence[Bin], path: Path) -> None:
    """Accuracy over confidence; a dot's area is the share of the images."""
    figure, ax = plt.subplots(figsize=(6, 5), layout="constrained")
    num_images = sum(each.num_images for each in bins)
    filled = [each for each in bins if each.num_images]
    xs = [100 * each.confidence_sum / each.num_images for each in filled]
    ys = [100 * each.num_hits / each.num_images for each in filled]
    ax.plot([0, 100], [0, 100], ":", color="grey", label="as sure as right")
    ax.plot(xs, ys, color="C0", alpha=0.5)
    ax.scatter(xs, ys, [20 + 600 * each.num_images / max(1, num_images) for each in filled], color="C0", alpha=0.8)
    error = f"expected calibration error {expected_calibration_error(bins):.2f}%"
    ax.set(title=error, xlabel="confidence, percent", ylabel="accuracy, percent", xlim=(0, 102), ylim=(-2, 105))
    ax.grid(alpha=0.3)
    ax.legend(loc="lower right")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def read_run(run: Path) -> list[dict[str, Any]]:
    """What a training run logged.

    Raises:
        InputError: nothing, or it is damaged.
    """
    path = run / "metrics.jsonl"
    try:
        entries = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): leave --run out") from error
    if not entries:
        raise InputError(f"{path} holds no metrics: give the folder of a run that has logged something")
    return entries


def draw_curves(entries: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy and loss over epochs."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for ax, (title, unit, lines) in zip(axes.flat, PANELS, strict=True):
        for kind, metric, name in lines:
            points = [(each["epoch"], each[metric]) for each in entries if each["kind"] == kind and metric in each]
            if points:
                ax.plot(*zip(*points, strict=True), marker=".", label=name)
        ax.set(title=title, xlabel="epoch", ylabel=unit)
        ax.grid(alpha=0.3)
        if ax.get_legend_handles_labels()[0]:
            ax.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)
