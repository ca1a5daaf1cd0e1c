"""The gallery: one row per picture, with what the model predicted, and the places that support it and the true class.

Between `serve/selection.py` and the commands. It reads the chosen pictures again, computes their Grad-CAM maps, and
draws the rows under a caption with the measured accuracy. H, W are the crop's side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from prep.errors import InputError
from serve.accuracy_check import count_recorded, describe_accuracy
from serve.artifact import Served
from serve.cam import GradCam
from serve.pictures import Source, decode_image
from serve.predict import Prediction, count_hits
from serve.preprocess import show_crop, to_tensor

TILE, GAP, TEXT = 224, 16, 400  # pixels: side of a picture, between pictures, width of a row's text
WIDTH = 4 * GAP + 3 * TILE + TEXT + GAP
INK, GREY, GREEN, RED, PAPER = "#1a1a1a", "#6b6b6b", "#1a7f37", "#b3261e", "#ffffff"
OPACITY = 0.5  # of a map over its picture
MOST_LINES = 6  # of a sentence in the caption; a class name has two
HEADINGS = ("what the model sees", "CAM of the prediction", "CAM of the true class")


@dataclass(frozen=True)
class Row:
    """One picture of the gallery."""

    prediction: Prediction
    crop: Image.Image  # what the network saw
    predicted_HW: np.ndarray  # Grad-CAM of the guess, 0 to 1
    true_HW: np.ndarray  # Grad-CAM of the label, 0 to 1


@dataclass(frozen=True)
class Caption:
    """The text above the rows."""

    title: str
    figures: Sequence[str]
    warnings: Sequence[str] = ()  # reasons not to trust the model


# The rows and the caption


def make_rows(served: Served, source: Source, cam: GradCam, chosen: Sequence[Prediction]) -> list[Row]:
    """Return the chosen pictures, read again, with their maps, in the order of `chosen`."""
    crops = read_crops(served, source, chosen)
    tensors = {row: to_tensor(crop, served.preprocessing) for row, crop in crops.items()}
    return [to_row(each, crops[each.row], cam(tensors[each.row], (each.guess, each.label))) for each in chosen]


def to_row(prediction: Prediction, crop: Image.Image, maps_THW: torch.Tensor) -> Row:
    """Return a row from the maps of the guess and of the label, in this order."""
    predicted_HW, true_HW = maps_THW.numpy()
    return Row(prediction, crop, predicted_HW, true_HW)


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
    served: Served, source: Source, predictions: list[Prediction], doubts: list[str], cam: GradCam
) -> Caption:
    """Return the caption: the measured accuracy, the recorded one, and where the maps come from."""
    count = count_hits(predictions)
    top5 = 100 * sum(each.in_top5 for each in predictions) / len(predictions)
    figures = [f"measured on {source.name}: top-1 {describe_accuracy(count)}, top-5 {top5:.2f}%"]
    if served.recorded is not None:
        recorded = describe_accuracy(count_recorded(served.recorded))
        figures.append(f"recorded by the artifact on {served.recorded.split}: top-1 {recorded}")
    num_damaged = sum(each.guess < 0 for each in predictions)
    if num_damaged:
        figures.append(f"{num_damaged:,} images cannot be decoded and count as wrong")
    stage = cam.stage
    figures.append(
        f"maps: Grad-CAM of {stage.name}, {stage.height} x {stage.width} places, each scaled from 0 to its own maximum"
    )
    return Caption(served.name, figures, doubts)


# Drawing


def draw_gallery(rows: Sequence[Row], class_names: Sequence[str], caption: Caption) -> Image.Image:
    """Draw all rows under their caption, and return the picture, RGB."""
    head = _draw_head(caption)
    picture = Image.new("RGB", (WIDTH, head.height + len(rows) * (TILE + GAP)), PAPER)
    picture.paste(head, (0, 0))
    for number, row in enumerate(rows):
        _draw_row(picture, head.height + number * (TILE + GAP), row, class_names)
    return picture


def overlay_map(crop: Image.Image, map_HW: np.ndarray) -> Image.Image:
    """Return a map over its picture, both at the size of a tile.

    The picture is grey, so that all colour is the map's: blue is 0, red is 1.
    """
    colors_HWC = mpl.colormaps["turbo"](_enlarge(map_HW))[..., :3]
    tile = Image.blend(
        to_tile(crop.convert("L")).convert("RGB"), Image.fromarray(np.rint(255 * colors_HWC).astype(np.uint8)), OPACITY
    )
    if not map_HW.any():
        ImageDraw.Draw(tile).text((8, TILE - 26), "no place supports it", PAPER, load_font(15, True))
    return tile


def to_tile(crop: Image.Image) -> Image.Image:
    """Return a picture at the size of a tile; small ones are enlarged without smoothing, so that pixels are visible."""
    small = crop.width < TILE // 2
    return crop.resize((TILE, TILE), Image.Resampling.NEAREST if small else Image.Resampling.BICUBIC)


def _enlarge(map_HW: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(map_HW.astype(np.float32)).resize((TILE, TILE), Image.Resampling.BILINEAR))


def _draw_head(caption: Caption) -> Image.Image:
    # Break the text into lines first, because their number is the head's height.
    blocks = [(caption.title, 22, INK, True)]
    blocks += [(figure, 16, GREY, False) for figure in caption.figures]
    blocks += [(f"WARNING: {each}", 18, RED, True) for each in caption.warnings]
    lines = [
        (line, size, color, bold)
        for words, size, color, bold in blocks
        for line in wrap_text(words, load_font(size, bold), WIDTH - 2 * GAP, MOST_LINES)
    ]
    height = GAP + sum(round(size * 1.45) for _, size, _, _ in lines) + 2 * GAP + 20

    # Draw the lines, and below them the headings of the three columns of pictures.
    head = Image.new("RGB", (WIDTH, height), PAPER)
    draw, top = ImageDraw.Draw(head), GAP
    for words, size, color, bold in lines:
        draw.text((GAP, top), words, color, load_font(size, bold))
        top += round(size * 1.45)
    for number, heading in enumerate(HEADINGS):
        draw.text((GAP + number * (TILE + GAP), height - 28), heading, INK, load_font(15, True))
    return head


def _draw_row(picture: Image.Image, top: int, row: Row, class_names: Sequence[str]) -> None:
    # Three pictures; a right prediction has no third one, its two maps would be the same.
    tiles = [to_tile(row.crop), overlay_map(row.crop, row.predicted_HW)]
    if not row.prediction.is_right:
        tiles.append(overlay_map(row.crop, row.true_HW))
    for number, tile in enumerate(tiles):
        picture.paste(tile, (GAP + number * (TILE + GAP), top))

    # The text next to them.
    draw = ImageDraw.Draw(picture)
    if row.prediction.is_right:
        left = GAP + 2 * (TILE + GAP)
        draw.text((left, top + TILE // 2 - 10), "right: the same class", GREY, load_font(16))
    _write_classes(draw, (2 * GAP + 3 * (TILE + GAP), top), row.prediction, class_names)


def _write_classes(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], prediction: Prediction, names: Sequence[str]
) -> None:
    """Write the predicted and the true class, each with a bar of its confidence, and the picture's key."""
    left, top = place
    guess = GREEN if prediction.is_right else RED
    blocks = [("predicted", names[prediction.guess], prediction.confidence, guess)]
    if not prediction.is_right:
        blocks.append(("true class", names[prediction.label], prediction.true_confidence, GREEN))
    for heading, name, share, color in blocks:
        draw.text((left, top), f"{heading}, {100 * share:.1f}%", GREY, load_font(15))
        top += 22
        for line in wrap_text(name, load_font(19, True), TEXT - GAP, 2):
            draw.text((left, top), line, color, load_font(19, True))
            top += 26
        draw.rectangle((left, top + 2, left + TEXT - GAP, top + 10), "#e6e6e6")
        draw.rectangle((left, top + 2, left + round(share * (TEXT - GAP)), top + 10), color)
        top += 24
    draw.text((left, top), wrap_text(prediction.key, load_font(13), TEXT - GAP, 1)[0], GREY, load_font(13))


def wrap_text(words: str, letters: ImageFont.FreeTypeFont, width: int, most: int) -> list[str]:
    """Return at most `most` lines, each no wider than `width` pixels; text that does not fit ends in an ellipsis."""
    lines, rest = [], " ".join(words.split())
    while rest and len(lines) < most:
        # The longest start of the rest that fits; at least one character, so that the loop ends.
        length = next(n for n in range(len(rest), 0, -1) if letters.getlength(rest[:n]) <= width or n == 1)
        if length < len(rest) and len(lines) == most - 1:
            return [*lines, rest[: max(1, length - 2)].rstrip() + "…"]
        # Break at the last space, inside a word only if it is longer than a line.
        space = rest.rfind(" ", 0, length + 1)
        cut = space if length < len(rest) and space > 0 else length
        lines.append(rest[:cut])
        rest = rest[cut:].lstrip()
    return lines or [""]


@cache
def load_font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which comes with matplotlib and covers most scripts."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / name), size)
