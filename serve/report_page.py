"""The parts of a report, from predictions to one HTML page: class tables, confusions, charts, the gallery.

For `serve/report.py`; the page's HTML is in report.html.j2. It contains its pictures, has no script, and loads nothing
from the network. A picture that cannot be decoded counts as wrong in its class; it has no prediction, so it is in no
confusion and in no calibration bin.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from prep.calibration import Bin, expected_calibration_error, sort_into_bins
from prep.curves import STYLE, Line, Panel, draw_panels
from serve.artifact import Served
from serve.cam import GradCam
from serve.gallery import Caption, draw_gallery, make_rows, read_crops, to_tile
from serve.pictures import Source
from serve.predict import Prediction
from serve.selection import Choice, select_predictions
from serve.templates import load_template, to_data_uri

NUM_CLASSES, NUM_PAIRS, NUM_EXAMPLES = 10, 10, 4  # shown in a table, in the list of confusions, and per confusion
# The panels of the training curves.
PANELS = (
    Panel(
        "Accuracy",
        "top-1, percent",
        (Line("train", "top1", "train", ":"), Line("validation", "ema_top1", "validation, EMA")),
    ),
    Panel("Loss", "nats", (Line("train", "loss", "train", ":"), Line("validation", "ema_loss", "validation, EMA"))),
)


@dataclass(frozen=True)
class Measured:
    """A model, pictures, and its predictions for them."""

    served: Served
    source: Source
    predictions: list[Prediction]
    caption: Caption


# The page, with the fields that the template uses


@dataclass(frozen=True)
class Picture:
    """A PNG in the page."""

    uri: str
    words: str  # describe it to a reader who cannot see it


@dataclass(frozen=True)
class ClassTable:
    """A table of classes: (name, top-1 in percent, number of images) per row."""

    heading: str
    rows: Sequence[tuple[str, str, int]]


@dataclass(frozen=True)
class Pair:
    """One confusion, with pictures of it."""

    words: str
    examples: Sequence[Picture]


@dataclass(frozen=True)
class Page:
    """Everything on the page."""

    title: str
    figures: Sequence[str]
    warnings: Sequence[str]
    tables: Sequence[ClassTable]
    pairs: Sequence[Pair]
    calibration: Picture
    curves: Picture | None  # None: no training run was given
    gallery: Picture | None  # None: there are no mistakes


def write_page(page: Page) -> str:
    """Return the page as HTML."""
    return f"{load_template('serve', 'report.html.j2').render(page=page)}\n"


def _read_picture(path: Path, words: str) -> Picture:
    return Picture(to_data_uri(path.read_bytes(), "PNG"), words)


# Classes and confusions


@dataclass(frozen=True)
class ClassCount:
    """The hits of one class."""

    label: int
    num_hits: int
    num_images: int

    @property
    def top1(self) -> float:
        """Top-1 accuracy in percent."""
        return 100 * self.num_hits / self.num_images


def count_classes(predictions: Sequence[Prediction]) -> list[ClassCount]:
    """Return the hits of each class that has images, by accuracy, the worst class first; ties by label."""
    images = Counter(each.label for each in predictions)
    hits = Counter(each.label for each in predictions if each.is_right)
    counts = [ClassCount(label, hits[label], count) for label, count in images.items()]
    return sorted(counts, key=lambda each: (each.top1, each.label))


def make_class_tables(measured: Measured) -> list[ClassTable]:
    """Return a table of the worst classes and one of the best; a single table of all classes if there are few."""
    counts = count_classes(measured.predictions)
    parts = [("worst", counts[:NUM_CLASSES]), ("best", counts[: -NUM_CLASSES - 1 : -1])]
    if len(counts) <= 2 * NUM_CLASSES:
        parts = [("class, worst first", counts)]
    names = measured.source.class_names
    return [
        ClassTable(heading, [(names[each.label], f"{each.top1:.1f}", each.num_images) for each in part])
        for heading, part in parts
    ]


def find_confusions(predictions: Sequence[Prediction], most: int) -> list[tuple[int, int, list[Prediction]]]:
    """Return the most frequent (label, wrong guess) pairs, each with its predictions, most confident first.

    Pairs that are equally frequent are sorted by label.
    """
    pairs: dict[tuple[int, int], list[Prediction]] = {}
    for each in predictions:
        if not each.is_right and each.guess >= 0:
            pairs.setdefault((each.label, each.guess), []).append(each)
    ordered = sorted(pairs.items(), key=lambda item: (-len(item[1]), item[0]))[:most]
    return [(*pair, sorted(found, key=lambda each: -each.confidence)) for pair, found in ordered]


def make_pairs(measured: Measured, out: Path) -> list[Pair]:
    """Return the most frequent confusions with pictures of what the model saw, which are also written to `out`."""
    names, pairs = measured.source.class_names, []

    # Read the pictures of all pairs in one pass over the data.
    confusions = find_confusions(measured.predictions, NUM_PAIRS)
    shown = [each for _, _, found in confusions for each in found[:NUM_EXAMPLES]]
    crops = read_crops(measured.served, measured.source, shown)

    # Write each picture as a file, and put it into the page.
    for label, guess, found in confusions:
        examples = []
        for each in found[:NUM_EXAMPLES]:
            path = out / f"example-{each.row}.png"
            to_tile(crops[each.row]).save(path)
            words = f"{names[label]}, predicted {names[guess]} with {100 * each.confidence:.0f}%"
            examples.append(_read_picture(path, words))
        words = f"{names[label]} predicted as {names[guess]}: {len(found):,} image{'s' * (len(found) > 1)}"
        pairs.append(Pair(words, examples))
    return pairs


# Charts and the gallery


def bin_confidences(predictions: Sequence[Prediction]) -> list[Bin]:
    """Return the calibration bins of the pictures that were decoded."""
    guessed = [each for each in predictions if each.guess >= 0]
    confidences_N = np.array([each.confidence for each in guessed])
    return sort_into_bins(confidences_N, np.array([each.is_right for each in guessed], dtype=bool))


def draw_calibration(bins: Sequence[Bin], path: Path) -> Picture:
    """Draw accuracy over confidence; the area of a dot is the share of the images in its bin."""
    plt = _import_pyplot()
    with plt.style.context(STYLE):
        figure, ax = plt.subplots(figsize=(6, 5), layout="constrained")

        # One point per bin: its mean confidence and its accuracy. Empty bins have none.
        num_images = sum(each.num_images for each in bins)
        filled = [each for each in bins if each.num_images]
        xs = [100 * each.confidence_sum / each.num_images for each in filled]
        ys = [100 * each.num_hits / each.num_images for each in filled]
        ax.plot([0, 100], [0, 100], ":", color="grey", label="perfectly calibrated")
        ax.plot(xs, ys, color="C0", alpha=0.5)
        ax.scatter(xs, ys, [20 + 600 * each.num_images / max(1, num_images) for each in filled], color="C0", alpha=0.8)

        # Axes in percent, with a margin so that points at 0 and 100% are complete.
        error = f"expected calibration error {expected_calibration_error(bins):.2f}%"
        ax.set(title=error, xlabel="confidence, percent", ylabel="accuracy, percent", xlim=(0, 102), ylim=(-2, 105))
        ax.grid(alpha=0.3)
        ax.legend(loc="lower right")
        figure.savefig(path, dpi=110)
    plt.close(figure)
    return _read_picture(path, "accuracy over confidence")


def draw_curves(entries: Sequence[dict[str, Any]], path: Path) -> Picture:
    """Draw accuracy and loss of training and of the EMA's validation over epochs."""
    draw_panels(PANELS, {"": entries}, path)
    return _read_picture(path, "accuracy and loss over epochs")


def _import_pyplot() -> Any:
    mpl.use("Agg")  # draws to files, without a display
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the backend is chosen

    return plt


def make_gallery(measured: Measured, cam: GradCam, choice: Choice, path: Path) -> Picture | None:
    """Draw the most confident mistakes with their maps; return None if there are no mistakes."""
    if all(each.is_right or each.guess < 0 for each in measured.predictions):
        return None
    rows = make_rows(measured.served, measured.source, cam, select_predictions(measured.predictions, choice))
    draw_gallery(rows, measured.source.class_names, measured.caption).save(path)
    return _read_picture(path, f"{len(rows)} mistakes with Grad-CAM")
