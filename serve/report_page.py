"""The page of a report, and its table of predictions, from what was measured.

For `serve/report.py`. The HTML is in report.html.j2, with report.css and report.js in it. The page holds its pictures
and loads nothing; it is complete without its script, which sorts and filters the table of classes.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from prep.calibration import Bin, expected_calibration_error
from serve.accuracy_check import count_recorded, describe_accuracy
from serve.artifact import Served
from serve.pictures import Source
from serve.predict import Prediction, count_hits
from serve.report_charts import draw_calibration
from serve.report_counts import ClassCount, bin_confidences, count_classes, count_matrix
from serve.report_matrix import Matrix, make_matrix
from serve.report_pictures import Mistake, Pair
from serve.templates import load_template, read_file

CHOICES = 5  # of top-5
COLUMNS = (
    "row",
    "key",
    "label",
    "label_name",
    "predicted",
    "predicted_name",
    "confidence",
    "true_confidence",
    "in_top5",
)


@dataclass(frozen=True)
class Measured:
    """A model, pictures, and its predictions for them."""

    served: Served
    source: Source
    predictions: list[Prediction]
    doubts: Sequence[str] = ()  # reasons not to trust the model

    @property
    def num_classes(self) -> int:
        """The number of classes that have a name."""
        return len(self.source.class_names)


# The page, with the fields that the template uses


@dataclass(frozen=True)
class Headline:
    """A figure in large type."""

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class ClassRow:
    """A class in the table; numbers as they are shown, "–" for a class without images."""

    label: int
    name: str
    num_images: int
    top1: str
    top5: str
    wrong_guess: str
    num_wrong_guess: int


@dataclass(frozen=True)
class Calibration:
    """The chart of confidence and accuracy, and its figures: (confidences, images, mean confidence, accuracy)."""

    error: str
    meaning: str
    chart: Markup
    bins: Sequence[tuple[str, int, str, str]]


@dataclass(frozen=True)
class Page:
    """Everything on the page."""

    title: str
    summary: str
    headlines: Sequence[Headline]
    warnings: Sequence[str]
    notes: Sequence[str]
    facts: Sequence[tuple[str, str]]
    classes: Sequence[ClassRow]
    has_top5: bool
    matrix: Matrix
    pairs: Sequence[Pair]
    calibration: Calibration
    curves: Sequence[tuple[str, Markup]]
    gallery: Sequence[Mistake]
    maps: str  # where the maps of the gallery come from


def write_page(page: Page) -> str:
    """Return the page as HTML."""
    parts = {name: Markup(read_file("serve", f"report.{name}")) for name in ("css", "js")}
    return f"{load_template('serve', 'report.html.j2').render(page=page, **parts)}\n"


# The parts


def make_headlines(measured: Measured) -> list[Headline]:
    """Return the figures in large type: top-1, top-5 if there are more than five classes, calibration, images."""
    count = count_hits(measured.predictions)
    low, high = count.interval()
    figures = [Headline("Top-1 accuracy", f"{count.top1:.2f}%", f"99% interval {100 * low:.2f} to {100 * high:.2f}%")]
    if measured.num_classes > CHOICES:
        figures.append(
            Headline("Top-5 accuracy", f"{percent_in_top5(measured):.2f}%", "true class among the first five")
        )
    error = expected_calibration_error(bin_confidences(measured.predictions))
    num_damaged = sum(each.guess < 0 for each in measured.predictions)
    num_seen = len({each.label for each in measured.predictions})
    damaged = f"; {num_damaged:,} cannot be decoded and count as wrong" if num_damaged else ""
    return [
        *figures,
        Headline("Calibration error", f"{error:.2f}%", "mean gap between confidence and accuracy"),
        Headline("Images", f"{count.num_images:,}", f"of {num_seen:,} classes{damaged}"),
    ]


def percent_in_top5(measured: Measured) -> float:
    """Return the share of images whose true class is among the five most probable ones, in percent."""
    return 100 * sum(each.in_top5 for each in measured.predictions) / len(measured.predictions)


def describe_result(measured: Measured) -> str:
    """Return what the figures mean, and how they compare with the recorded accuracy, in plain words."""
    count = count_hits(measured.predictions)
    words = f"Of 100 images the model names {describe_share(count.top1)} correctly."
    if measured.num_classes > CHOICES:
        words += (
            f" For {describe_share(percent_in_top5(measured))} the true class is among its five most probable classes."
        )
    recorded = measured.served.recorded
    if recorded is None:
        return f"{words} The model comes without a recorded accuracy to compare with."
    if measured.source.num_present < measured.served.num_classes:
        return f"{words} The recorded accuracy is of all classes and is not compared: only a part of them has images."
    low, high = count.interval()
    agrees = low <= recorded.top1 / 100 <= high
    recorded_words = f"the accuracy that the artifact records on {recorded.split} of {recorded.dataset or 'its data'}"
    return (
        f"{words} This {'agrees' if agrees else 'does not agree'} with {recorded_words}: top-1 "
        f"{describe_accuracy(count_recorded(recorded))}."
    )


def describe_share(percent: float) -> str:
    """Return a percentage as a number of 100 images, in words; only 0 and 100% are none and all."""
    if percent in (0, 100):
        return "all" if percent else "none"
    number = round(percent)
    return f"about {number}" if 0 < number < 100 else ("more than 99" if number else "fewer than 1")


def make_class_rows(measured: Measured) -> list[ClassRow]:
    """Return all classes, the worst first."""
    names = measured.source.class_names

    def to_row(count: ClassCount) -> ClassRow:
        top1, top5 = ("–" if value is None else f"{value:.1f}" for value in (count.top1, count.top5))
        wrong = "" if count.wrong_guess is None else names[count.wrong_guess]
        return ClassRow(count.label, names[count.label], count.num_images, top1, top5, wrong, count.num_wrong_guess)

    return [to_row(each) for each in count_classes(measured.predictions, measured.num_classes)]


def make_confusion_matrix(measured: Measured) -> Matrix:
    """Return the confusion matrix of all classes."""
    return make_matrix(count_matrix(measured.predictions, measured.num_classes), measured.source.class_names)


def make_calibration(measured: Measured) -> Calibration:
    """Return the calibration chart and its figures."""
    bins = bin_confidences(measured.predictions)
    error = expected_calibration_error(bins)
    return Calibration(
        error=f"{error:.2f}%",
        meaning=describe_calibration(bins),
        chart=draw_calibration(bins, error),
        bins=[
            (
                f"{100 * each.low:.0f} to {100 * each.high:.0f}%",
                each.num_images,
                f"{100 * each.confidence_sum / each.num_images:.1f}%",
                f"{100 * each.num_hits / each.num_images:.1f}%",
            )
            for each in bins
            if each.num_images
        ],
    )


def describe_calibration(bins: Sequence[Bin]) -> str:
    """Return whether the model claims more or less than it achieves, in words."""
    num_images = sum(each.num_images for each in bins)
    if not num_images:
        return "No image was decoded, so there is no confidence to judge."
    confidence = 100 * sum(each.confidence_sum for each in bins) / num_images
    accuracy = 100 * sum(each.num_hits for each in bins) / num_images
    gap = confidence - accuracy
    verdict = "which is close to" if abs(gap) < 1 else ("which is more than" if gap > 0 else "which is less than")
    return f"The model's mean confidence is {confidence:.1f}%, {verdict} its accuracy of {accuracy:.1f}%."


def write_predictions(measured: Measured) -> bytes:
    """Return predictions.csv, UTF-8: one line per image that was read, in the order of the data.

    An image that cannot be decoded has no predicted class and no confidences.
    """
    names = measured.source.class_names
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for each in measured.predictions:
        known = (each.row, each.key, each.label, names[each.label])
        if each.guess < 0:
            writer.writerow((*known, "", "", "", "", 0))
            continue
        confidences = (f"{each.confidence:.6f}", f"{each.true_confidence:.6f}")
        writer.writerow((*known, each.guess, names[each.guess], *confidences, int(each.in_top5)))
    return text.getvalue().encode(errors="backslashreplace")
