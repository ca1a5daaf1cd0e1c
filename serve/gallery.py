"""The gallery: one row per picture, with what the model predicted, and the places that support the classes.

Between `serve/selection.py` and the commands. It reads the chosen pictures again, computes their maps, checks them by
the deletion test, and draws the rows under a caption with the measured accuracy. `serve/gallery_files.py` writes the
result. H, W are the crop's side.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageDraw

from prep.errors import InputError
from serve.accuracy_check import count_recorded, describe_accuracy
from serve.artifact import Served
from serve.deletion import Deletion, describe_deletions, measure_deletion
from serve.lettering import describe_missing, draw_line, draw_text, prepare_text, wrap_text
from serve.map_progress import MapProgress
from serve.maps import MapMaker
from serve.overlay import TILE, draw_legend, overlay_map, to_tile
from serve.pictures import Source, decode_image
from serve.predict import Prediction, count_hits
from serve.preprocess import show_crop, to_tensor

GAP, TEXT = 16, 400  # pixels: between pictures, width of a row's text
WIDTH = 4 * GAP + 3 * TILE + TEXT + GAP
HEADING = 22  # pixels: height of the words above a picture
ROW = HEADING + TILE + GAP
INK, GREY, BLUE, VERMILION, PAPER = "#1a1a1a", "#5f5f5f", "#0a5ca8", "#b8400a", "#ffffff"
RED, TRACK = "#b3261e", "#e6e6e6"  # warnings; behind a bar
MOST_LINES = 6  # of a sentence in the caption; a class name has two


@dataclass(frozen=True)
class Row:
    """One picture of the gallery."""

    prediction: Prediction
    crop: Image.Image  # what the network saw
    predicted_HW: np.ndarray  # map of the guess, 0 to 1
    other_HW: np.ndarray | None  # map of the label, or of the second guess if the guess is right; None: not computed
    deletion: Deletion | None = None  # of the map of the guess; None: not measured


@dataclass(frozen=True)
class Caption:
    """The text above the rows."""

    title: str
    figures: Sequence[str]
    warnings: Sequence[str] = ()  # reasons not to trust the model


# The rows and the caption


def make_rows(served: Served, source: Source, cam: MapMaker, chosen: Sequence[Prediction]) -> list[Row]:
    """Return the chosen pictures, read again, with their maps and the deletion test, in the order of `chosen`.

    A method that takes many passes per picture shows its progress.
    """
    crops = read_crops(served, source, chosen)
    rows = []
    with MapProgress(cam, len(chosen)) as progress:
        for each in chosen:
            image_CHW = to_tensor(crops[each.row], served.preprocessing)
            other = choose_other_class(each) if cam.has_classes else None
            maps_THW = cam(image_CHW, [each.guess] if other is None else [each.guess, other])
            row = to_row(each, crops[each.row], maps_THW)
            rows.append(replace(row, deletion=measure_deletion(served, image_CHW, each.guess, maps_THW[0], each.row)))
            progress.add()
    return rows


def choose_other_class(prediction: Prediction) -> int | None:
    """Return the class of the third column: the label of a mistake, the second guess of a right prediction."""
    if not prediction.is_right:
        return prediction.label
    return prediction.second if prediction.second >= 0 else None


def to_row(prediction: Prediction, crop: Image.Image, maps_THW: torch.Tensor) -> Row:
    """Return a row from the map of the guess and, if there is one, that of the other class, in this order."""
    predicted_HW, *others = maps_THW.numpy()
    return Row(prediction, crop, predicted_HW, others[0] if others else None)


def read_crops(served: Served, source: Source, chosen: Sequence[Prediction]) -> dict[int, Image.Image]:
    """Return what the network saw of the chosen pictures, by row.

    Raises:
        InputError: a picture can no longer be decoded.
    """
    crops: dict[int, Image.Image] = {}
    for encoded in source.read({each.row for each in chosen}):
        picture = decode_image(encoded.content)
        if picture is None:
            raise InputError(f"{encoded.key} was decoded before, but cannot be decoded now: run the same command again")
        crops[encoded.row] = show_crop(picture, served.preprocessing)
    return crops


def make_caption(
    served: Served, source: Source, predictions: list[Prediction], doubts: list[str], cam: MapMaker
) -> Caption:
    """Return the caption: the measured accuracy, the recorded one, where the maps come from, and what was assumed."""
    count = count_hits(predictions)
    top5 = 100 * sum(each.in_top5 for each in predictions) / len(predictions)
    figures = [f"measured on {source.name}: top-1 {describe_accuracy(count)}, top-5 {top5:.2f}%"]
    if served.recorded is not None:
        recorded = describe_accuracy(count_recorded(served.recorded))
        figures.append(f"recorded by the artifact on {served.recorded.split}: top-1 {recorded}")
    num_damaged = sum(each.guess < 0 for each in predictions)
    if num_damaged:
        figures.append(f"{num_damaged:,} images cannot be decoded and count as wrong")
    figures.append(cam.describe())
    return Caption(served.name, [*figures, *served.notes, *source.notes], doubts)


def complete_caption(rows: Sequence[Row], class_names: Sequence[str], caption: Caption) -> Caption:
    """Return a caption with what is known of the shown rows: the deletion test, and names that no font can draw."""
    deletions = [row.deletion for row in rows if row.deletion is not None]
    shown = {label for row in rows for label in (row.prediction.guess, row.prediction.label, row.prediction.second)}
    missing = describe_missing([*(class_names[label] for label in sorted(shown) if label >= 0), *caption.figures])
    added = [*([describe_deletions(deletions)] if deletions else []), *([missing] if missing else [])]
    return replace(caption, figures=[*caption.figures, *added])


# Drawing


def draw_page(head: Image.Image, rows: Sequence[Row], class_names: Sequence[str]) -> Image.Image:
    """Draw rows under a head, and return the picture, RGB."""
    picture = Image.new("RGB", (WIDTH, head.height + len(rows) * ROW), PAPER)
    picture.paste(head, (0, 0))
    for number, row in enumerate(rows):
        _draw_row(picture, head.height + number * ROW, row, class_names)
    return picture


def draw_head(caption: Caption) -> Image.Image:
    """Draw the caption and the legend of the colours, and return the picture, RGB."""
    # Break the text into lines first, because their number is the head's height.
    blocks = [(caption.title, 22, INK, True)]
    blocks += [(figure, 16, GREY, False) for figure in caption.figures]
    blocks += [(f"WARNING: {each}", 18, RED, True) for each in caption.warnings]
    lines = []
    for words, size, color, bold in blocks:
        drawable, font = prepare_text(words, size, bold)
        lines += [(line, font, color) for line in wrap_text(drawable, font, WIDTH - 2 * GAP, MOST_LINES)]
    height = GAP + sum(round(font.size * 1.45) for _, font, _ in lines) + 3 * GAP

    # Draw the lines, and the legend below them.
    head = Image.new("RGB", (WIDTH, height), PAPER)
    draw, top = ImageDraw.Draw(head), GAP
    for words, font, color in lines:
        draw_text(draw, (GAP, top), words, color, font)
        top += round(font.size * 1.45)
    draw_legend(head, (GAP, top + 8), GREY)
    return head


def _draw_row(picture: Image.Image, top: int, row: Row, class_names: Sequence[str]) -> None:
    """Draw what the network saw, the two maps with their headings, and the text next to them."""
    other = "second guess" if row.prediction.is_right else "true class"
    columns = [
        ("what the model sees", to_tile(row.crop)),
        ("map of the prediction", overlay_map(row.crop, row.predicted_HW)),
    ]
    if row.other_HW is not None:
        columns.append((f"map of the {other}", overlay_map(row.crop, row.other_HW)))
    draw = ImageDraw.Draw(picture)
    for number, (heading, tile) in enumerate(columns):
        left = GAP + number * (TILE + GAP)
        draw_line(draw, (left, top), heading, INK, 14)
        picture.paste(tile, (left, top + HEADING))
    if row.other_HW is None:
        draw_line(draw, (GAP + 2 * (TILE + GAP), top), "no map of another class", GREY, 14)
    _write_classes(draw, (2 * GAP + 3 * (TILE + GAP), top), row, class_names)


def _write_classes(draw: ImageDraw.ImageDraw, place: tuple[int, int], row: Row, names: Sequence[str]) -> None:
    """Write the predicted and the other class, each with a bar of its confidence, the deletion test, and the key."""
    left, top = place
    each = row.prediction
    blocks = [
        ("right" if each.is_right else "predicted", each.guess, each.confidence, BLUE if each.is_right else VERMILION)
    ]
    if not each.is_right:
        blocks.append(("true class", each.label, each.true_confidence, BLUE))
    elif each.second >= 0:
        blocks.append(("second guess", each.second, each.second_confidence, GREY))
    for heading, label, share, color in blocks:
        draw_line(draw, (left, top), f"{heading}, {100 * share:.1f}%", GREY, 15)
        top += 22
        name, font = prepare_text(names[label], 19, bold=True)
        for line in wrap_text(name, font, TEXT - GAP, 2):
            draw_text(draw, (left, top), line, color, font)
            top += 26
        draw.rectangle((left, top + 2, left + TEXT - GAP, top + 10), TRACK)
        draw.rectangle((left, top + 2, left + round(share * (TEXT - GAP)), top + 10), color)
        top += 24
    for words in (_describe_deletion(row.deletion), each.key):
        if words:
            drawable, font = prepare_text(words, 13)
            draw_text(draw, (left, top), wrap_text(drawable, font, TEXT - GAP, 1)[0], GREY, font)
            top += 20


def _describe_deletion(deletion: Deletion | None) -> str:
    if deletion is None:
        return ""
    before, warmest, elsewhere = (
        f"{100 * each:.0f}%" for each in (deletion.before, deletion.warmest, deletion.elsewhere)
    )
    return f"warmest 20% hidden: {before} to {warmest}; elsewhere: to {elsewhere}"
