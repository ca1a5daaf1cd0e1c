"""The picture: a row for each image, with what the model took it for, and where it saw that and where the truth.

The last stage of `serve/gradcam_viz.py`. H, W are the crop's side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from serve.judge import Verdict

TILE, GAP, TEXT = 224, 16, 400  # pixels: side of a picture, between pictures, width of a row's words
WIDTH = 4 * GAP + 3 * TILE + TEXT + GAP
INK, GREY, GREEN, RED, PAPER = "#1a1a1a", "#6b6b6b", "#1a7f37", "#b3261e", "#ffffff"
OPACITY = 0.5  # of a map over its picture
MOST_LINES = 6  # of a sentence above; two are for a name
HEADINGS = ("what the model sees", "CAM of the prediction", "CAM of the true class")


@dataclass(frozen=True)
class Row:
    """One picture of the gallery."""

    verdict: Verdict
    crop: Image.Image  # what the network saw
    predicted_HW: np.ndarray  # Grad-CAM of the guess, 0 to 1
    true_HW: np.ndarray  # and of the label


@dataclass(frozen=True)
class Caption:
    """What stands above."""

    title: str
    figures: Sequence[str]
    warnings: Sequence[str] = ()  # why it should not have been drawn


def draw_gallery(rows: Sequence[Row], class_names: Sequence[str], caption: Caption) -> Image.Image:
    """All rows under their caption, RGB."""
    head = _draw_head(caption)
    picture = Image.new("RGB", (WIDTH, head.height + len(rows) * (TILE + GAP)), PAPER)
    picture.paste(head, (0, 0))
    for number, row in enumerate(rows):
        _draw_row(picture, head.height + number * (TILE + GAP), row, class_names)
    return picture


def overlay(crop: Image.Image, map_HW: np.ndarray) -> Image.Image:
    """A map from 0 to 1 over its picture, blue to red, at a tile's size; the picture in grey, so that colour is map."""
    colors_HWC = mpl.colormaps["turbo"](_enlarge(map_HW))[..., :3]
    tile = Image.blend(
        to_tile(crop.convert("L")).convert("RGB"), Image.fromarray(np.rint(255 * colors_HWC).astype(np.uint8)), OPACITY
    )
    if not map_HW.any():
        ImageDraw.Draw(tile).text((8, TILE - 26), "no place speaks for it", PAPER, font(15, True))
    return tile


def to_row(verdict: Verdict, crop: Image.Image, maps_THW: torch.Tensor) -> Row:
    """A row from the maps of the guess and of the label, in this order."""
    predicted_HW, true_HW = maps_THW.numpy()
    return Row(verdict, crop, predicted_HW, true_HW)


def to_tile(crop: Image.Image) -> Image.Image:
    """Small pictures as they are, in visible pixels; others smoothly."""
    small = crop.width < TILE // 2
    return crop.resize((TILE, TILE), Image.Resampling.NEAREST if small else Image.Resampling.BICUBIC)


def _enlarge(map_HW: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(map_HW.astype(np.float32)).resize((TILE, TILE), Image.Resampling.BILINEAR))


def _draw_head(caption: Caption) -> Image.Image:
    blocks = [(caption.title, 22, INK, True)]
    blocks += [(figure, 16, GREY, False) for figure in caption.figures]
    blocks += [(f"WARNING: {each}", 18, RED, True) for each in caption.warnings]
    lines = [
        (line, size, color, bold)
        for words, size, color, bold in blocks
        for line in fit(words, font(size, bold), WIDTH - 2 * GAP, MOST_LINES)
    ]
    height = GAP + sum(round(size * 1.45) for _, size, _, _ in lines) + 2 * GAP + 20
    head = Image.new("RGB", (WIDTH, height), PAPER)
    draw, top = ImageDraw.Draw(head), GAP
    for words, size, color, bold in lines:
        draw.text((GAP, top), words, color, font(size, bold))
        top += round(size * 1.45)
    for number, heading in enumerate(HEADINGS):
        draw.text((GAP + number * (TILE + GAP), height - 28), heading, INK, font(15, True))
    return head


def _draw_row(picture: Image.Image, top: int, row: Row, class_names: Sequence[str]) -> None:
    tiles = [to_tile(row.crop), overlay(row.crop, row.predicted_HW)]
    if not row.verdict.is_right:
        tiles.append(overlay(row.crop, row.true_HW))
    for number, tile in enumerate(tiles):
        picture.paste(tile, (GAP + number * (TILE + GAP), top))
    draw = ImageDraw.Draw(picture)
    if row.verdict.is_right:
        left = GAP + 2 * (TILE + GAP)
        draw.text((left, top + TILE // 2 - 10), "right: the same class", GREY, font(16))
    _write_beside(draw, (2 * GAP + 3 * (TILE + GAP), top), row.verdict, class_names)


def _write_beside(draw: ImageDraw.ImageDraw, place: tuple[int, int], verdict: Verdict, names: Sequence[str]) -> None:
    left, top = place
    guess = GREEN if verdict.is_right else RED
    blocks = [("predicted", names[verdict.guess], verdict.confidence, guess)]
    if not verdict.is_right:
        blocks.append(("true class", names[verdict.label], verdict.true_confidence, GREEN))
    for heading, name, share, color in blocks:
        draw.text((left, top), f"{heading}, {100 * share:.1f}%", GREY, font(15))
        top += 22
        for line in fit(name, font(19, True), TEXT - GAP, 2):
            draw.text((left, top), line, color, font(19, True))
            top += 26
        draw.rectangle((left, top + 2, left + TEXT - GAP, top + 10), "#e6e6e6")
        draw.rectangle((left, top + 2, left + round(share * (TEXT - GAP)), top + 10), color)
        top += 24
    draw.text((left, top), fit(verdict.key, font(13), TEXT - GAP, 1)[0], GREY, font(13))


def fit(words: str, letters: ImageFont.FreeTypeFont, width: int, most: int) -> list[str]:
    """Lines no wider than so many pixels, at most so many; what does not fit ends in an ellipsis."""
    lines, rest = [], " ".join(words.split())
    while rest and len(lines) < most:
        length = next(n for n in range(len(rest), 0, -1) if letters.getlength(rest[:n]) <= width or n == 1)
        if length < len(rest) and len(lines) == most - 1:
            return [*lines, rest[: max(1, length - 2)].rstrip() + "…"]
        space = rest.rfind(" ", 0, length + 1)
        cut = space if length < len(rest) and space > 0 else length
        lines.append(rest[:cut])
        rest = rest[cut:].lstrip()
    return lines or [""]


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and has most of the world's letters."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / name), size)
