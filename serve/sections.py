"""The sections of a report: what was measured, as HTML, and its pictures beside the page. For `serve/report.py`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.artifact import Served
from serve.cam import GradCam
from serve.charts import draw_calibration, draw_curves
from serve.choose import Choice, choose
from serve.explain import explain, read_crops
from serve.gallery import Caption, draw_gallery, to_tile
from serve.judge import Verdict
from serve.page import paragraph, picture, table
from serve.source import Source
from serve.summary import ClassCount, bin_confidences, count_classes, find_confusions

NUM_CLASSES, NUM_PAIRS, NUM_EXAMPLES = 10, 10, 4  # shown of each


@dataclass(frozen=True)
class Measured:
    """A model, pictures, and what it said of them."""

    served: Served
    source: Source
    verdicts: list[Verdict]
    caption: Caption


def show_figures(measured: Measured) -> str:
    """Accuracy with its interval, and what speaks against the model."""
    warnings = [paragraph(f"Warning: {each}", "warning") for each in measured.caption.warnings]
    return "".join([*map(paragraph, measured.caption.figures), *warnings])


def show_classes(measured: Measured) -> str:
    """The worst classes beside the best; all of them where they are few."""
    counts = count_classes(measured.verdicts)
    parts = [("worst", counts[:NUM_CLASSES]), ("best", counts[: -NUM_CLASSES - 1 : -1])]
    if len(counts) <= 2 * NUM_CLASSES:
        parts = [("class, the worst first", counts)]
    tables = [table((name, "top-1, %", "images"), _list(part, measured.source)) for name, part in parts]
    return f'<div class="beside">{"".join(tables)}</div>'


def _list(counts: Sequence[ClassCount], source: Source) -> list[tuple[object, ...]]:
    return [(source.class_names[each.label], f"{each.top1:.1f}", each.num_images) for each in counts]


def show_confusions(measured: Measured, out: Path) -> str:
    """The most frequent pairs, and pictures of them: what the model saw, the surest first."""
    names, parts = measured.source.class_names, []
    pairs = find_confusions(measured.verdicts, NUM_PAIRS)
    shown = [each for _, _, found in pairs for each in found[:NUM_EXAMPLES]]
    crops = read_crops(measured.served, measured.source, shown)
    for label, guess, found in pairs:
        words = f"{names[label]} taken for {names[guess]}: {len(found):,} image{'s' * (len(found) > 1)}"
        pictures = []
        for each in found[:NUM_EXAMPLES]:
            path = out / f"example-{each.row}.png"
            to_tile(crops[each.row]).save(path)
            pictures.append(
                picture(path, f"{names[label]}, predicted {names[guess]} with {100 * each.confidence:.0f}%")
            )
        parts.append(f'<div class="examples">{paragraph(words)}{"".join(pictures)}</div>')
    return (
        f'<div class="pairs">{"".join(parts)}</div>'
        if parts
        else paragraph("None: every picture that can be decoded is right.")
    )


def show_calibration(measured: Measured, out: Path) -> str:
    """Whether it is as sure as it is right."""
    draw_calibration(bin_confidences(measured.verdicts), out / "calibration.png")
    return picture(out / "calibration.png", "accuracy over confidence")


def show_training(entries: Sequence[dict[str, Any]], out: Path) -> str:
    """The curves of the run."""
    draw_curves(entries, out / "curves.png")
    return picture(out / "curves.png", "accuracy and loss over epochs")


def show_gallery(measured: Measured, cam: GradCam, choice: Choice, out: Path) -> str:
    """The surest mistakes with their maps."""
    if all(each.is_right or each.guess < 0 for each in measured.verdicts):
        return paragraph("None: every picture that can be decoded is right.")
    rows = explain(measured.served, measured.source, cam, choose(measured.verdicts, choice))
    draw_gallery(rows, measured.source.class_names, measured.caption).save(out / "gallery.png")
    return f'<div class="wide">{picture(out / "gallery.png", f"{len(rows)} mistakes with Grad-CAM")}</div>'
