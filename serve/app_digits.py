"""Digits to try a model of digits with, drawn as its data was scanned: 8 x 8 pixels. For `serve/app_examples.py`."""

from pathlib import Path

from PIL import Image, ImageDraw

NAMES = frozenset(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"))
SIDE, SCANNED, SHOWN, PEN = 64, 8, 256, 11  # pixels: of the drawing, of its scan, as shown; of the stroke
Line = tuple[tuple[int, int], ...]
STROKES: dict[str, tuple[Line, ...]] = {
    "two": (((18, 16), (30, 7), (43, 14), (42, 26), (18, 54), (46, 54)),),
    "three": (((18, 10), (42, 10), (28, 28), (42, 40), (36, 53), (18, 54)),),
    "four": (((28, 6), (14, 38), (48, 38)), ((38, 24), (36, 58))),
    "seven": (((16, 9), (45, 9), (28, 57)), ((20, 32), (46, 32))),
}


def draw_digits(folder: Path) -> list[Path]:
    """Write them as PNGs, named after what they show."""
    paths = []
    for name, strokes in STROKES.items():
        picture = Image.new("L", (SIDE, SIDE))
        for points in strokes:
            ImageDraw.Draw(picture).line(points, 255, PEN, "curve")
        scan = picture.resize((SCANNED, SCANNED), Image.Resampling.BOX)
        paths.append(folder / f"{name}.png")
        scan.resize((SHOWN, SHOWN), Image.Resampling.BICUBIC).save(paths[-1])
    return paths
