"""Line charts as SVG, in the colours of the page: training curves and calibration.

For `serve/report_page.py`. report_chart.j2 draws a `Chart`; its classes are coloured by report.css, so that a chart is
right in light, in dark and on paper. All coordinates below are in pixels of the SVG unless a name says otherwise.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from prep.calibration import Bin
from serve.templates import load_template

WIDTH, HEIGHT = 480, 320
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 44  # margins around the plot
NUM_TICKS = 5
SMALLEST_DOT, LARGEST_DOT = 3.0, 13.0  # radii
Points = Sequence[tuple[float, float]]  # (x, y) in data units


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str  # in the legend
    style: str  # class in report.css: first, second or guide
    points: Points
    shares: Sequence[float] = ()  # 0 to 1: draw a dot of this area at each point


@dataclass(frozen=True)
class Axis:
    """One axis: its label, and the range that is shown."""

    label: str
    low: float
    high: float


@dataclass(frozen=True)
class Chart:
    """A chart in SVG coordinates, for report_chart.j2."""

    words: str  # describe it to a reader who cannot see it
    x_label: str
    y_label: str
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    lines: Sequence[tuple[str, str]]  # style, points of a polyline
    dots: Sequence[tuple[float, float, float, str]]  # x, y, radius, style
    legend: Sequence[tuple[str, str]]  # style, name


def draw_chart(series: Sequence[Series], x_axis: Axis, y_axis: Axis, words: str) -> Markup:
    """Return lines and their axes as an SVG element."""

    def place_x(value: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (value - x_axis.low) / (x_axis.high - x_axis.low), 1)

    def place_y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - y_axis.low) / (y_axis.high - y_axis.low), 1)

    chart = Chart(
        words=words,
        x_label=x_axis.label,
        y_label=y_axis.label,
        x_ticks=[(place_x(value), format_tick(value)) for value in choose_ticks(x_axis.low, x_axis.high)],
        y_ticks=[(place_y(value), format_tick(value)) for value in choose_ticks(y_axis.low, y_axis.high)],
        lines=[(each.style, " ".join(f"{place_x(x)},{place_y(y)}" for x, y in each.points)) for each in series],
        dots=[
            (
                place_x(x),
                place_y(y),
                round(SMALLEST_DOT + (LARGEST_DOT - SMALLEST_DOT) * math.sqrt(share), 1),
                each.style,
            )
            for each in series
            for (x, y), share in zip(each.points, each.shares, strict=False)
        ],
        legend=[(each.style, each.name) for each in series],
    )
    frame = {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "top": TOP,
        "foot": HEIGHT - BOTTOM,
    }
    return Markup(load_template("serve", "report_chart.j2").render(chart=chart, **frame))


def choose_ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers from `low` to `high`, both included if they are round."""
    step = _round_step((high - low) / NUM_TICKS)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _round_step(least: float) -> float:
    """Return the smallest of 1, 2, 5, 10 … times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def format_tick(value: float) -> str:
    """Return a tick's number without trailing zeros."""
    return f"{value:.6g}"


# The charts of a report


def draw_calibration(bins: Sequence[Bin], error_percent: float) -> Markup:
    """Draw accuracy over confidence; the area of a dot is the share of the images in its bin. Empty bins have none."""
    num_images = sum(each.num_images for each in bins)
    filled = [each for each in bins if each.num_images]
    points = [(100 * each.confidence_sum / each.num_images, 100 * each.num_hits / each.num_images) for each in filled]
    shares = [each.num_images / num_images for each in filled]
    series = [
        Series("confidence equals accuracy", "guide", [(0, 0), (100, 100)]),
        Series("this model; a larger dot holds more images", "first", points, shares),
    ]
    words = f"Accuracy over confidence, {len(filled)} bins; expected calibration error {error_percent:.2f}%"
    return draw_chart(series, Axis("confidence, %", 0, 100), Axis("accuracy, %", 0, 100), words)


def draw_curves(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, Markup]]:
    """Draw accuracy and loss of training and of the EMA's validation over epochs: (title, chart) each.

    A metric that the run did not log has no line, and a chart without lines is left out.
    """
    charts = []
    for title, unit, metric in (("Accuracy", "top-1, %", "top1"), ("Loss", "nats", "loss")):
        found = [
            Series("training", "second", _read_points(entries, "train", metric)),
            Series("validation, EMA", "first", _read_points(entries, "validation", f"ema_{metric}")),
        ]
        series = [each for each in found if each.points]
        if series:
            xs, ys = zip(*(point for each in series for point in each.points), strict=True)
            axes = _make_axis("epoch", xs), _make_axis(unit, ys)
            lasts = ", ".join(f"{each.name} {each.points[-1][1]:.4g}" for each in series)
            charts.append((title, draw_chart(series, *axes, f"{title} over epochs; at the end: {lasts} ({unit})")))
    return charts


def _read_points(entries: Sequence[Mapping[str, Any]], kind: str, metric: str) -> Points:
    found = [(entry["epoch"], entry[metric]) for entry in entries if entry["kind"] == kind and metric in entry]
    return [(x, y) for x, y in found if x is not None and y is not None and math.isfinite(x) and math.isfinite(y)]


def _make_axis(label: str, values: Sequence[float]) -> Axis:
    """Return an axis that shows all values, from 0 up if that does not leave most of it empty."""
    low, high = min(values), max(values)
    if 0 < low < 0.5 * high:
        low = 0.0
    # A single value needs a range as well.
    margin = 0.05 * (high - low) or max(0.5, 0.05 * abs(high))
    return Axis(label, low if low == 0 else low - margin, high + margin)
