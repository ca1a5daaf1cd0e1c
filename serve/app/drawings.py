"""Example pictures drawn by code: four objects, or four digits for a model of digits. For `serve/app/examples.py`."""

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

SIDE, FINE = 448, 2  # pixels; drawn twice as large, for smooth edges
Draw = ImageDraw.ImageDraw


def draw_examples(folder: Path, class_names: Sequence[str] | None = None) -> list[Path]:
    """Write the example pictures, named after what they show, and return their paths.

    Args:
        class_names: classes of the model; if all of them are digits, digits are drawn.
    """
    if class_names and DIGIT_NAMES.issuperset(class_names):
        return draw_digits(folder)
    paths = []
    for name, (sky, ground, draw) in DRAWINGS.items():
        picture = _draw_background(sky, ground)
        draw(ImageDraw.Draw(picture))
        paths.append(folder / f"{name}.jpg")
        picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(paths[-1], quality=92)
    return paths


def _draw_background(sky: tuple[int, int, int], ground: tuple[int, int, int]) -> Image.Image:
    """Return a gradient from one colour at the top to another at the bottom."""
    column = Image.linear_gradient("L").resize((FINE * SIDE, FINE * SIDE))
    return Image.composite(Image.new("RGB", column.size, ground), Image.new("RGB", column.size, sky), column)


def _draw_balloon(draw: Draw) -> None:
    colors = ("#c8453b", "#f2c14e", "#c8453b", "#f2c14e", "#c8453b")
    for number, color in enumerate(colors):
        inset = number * 52
        draw.ellipse((200 + inset, 90, 696 - inset, 610), color)
    draw.polygon(((262, 480), (634, 480), (500, 690), (396, 690)), "#c8453b")
    for x in (404, 448, 492):
        draw.line((x, 690, 448 + (x - 448) // 2, 770), "#4a3b2a", 5)
    draw.rounded_rectangle((402, 765, 494, 840), 14, "#7a5230")


def _draw_traffic_light(draw: Draw) -> None:
    draw.rectangle((428, 700, 468, 896), "#3a3f44")
    draw.rounded_rectangle((316, 70, 580, 720), 60, "#23282d")
    for top, color in ((110, "#e5382f"), (310, "#5a4a1c"), (510, "#1f4a2c")):
        draw.ellipse((358, top, 538, top + 180), color)
    draw.ellipse((400, 140, 450, 180), "#ff9a90")


def _draw_orange(draw: Draw) -> None:
    draw.ellipse((170, 700, 726, 820), "#b9a58a")
    for step in range(90):
        inset = step * 2.4
        shade = (226 + step // 4, 112 + step, 14 + step // 2)
        draw.ellipse((180 + inset * 0.7, 230 + inset * 0.5, 716 - inset * 1.3, 766 - inset * 1.5), shade)
    draw.polygon(((440, 250), (540, 130), (650, 150), (560, 240)), "#3f7d3a")
    draw.line((440, 262, 448, 205), "#5b4327", 14)


def _draw_umbrella(draw: Draw) -> None:
    draw.pieslice((120, 150, 776, 806), 180, 360, "#b8433a")
    for left in (120, 284, 448, 612):
        draw.ellipse((left, 436, left + 164, 520), "#cfdbe4")
    for x in (284, 448, 612):
        draw.line((448, 150, x, 480), "#8f2f28", 5)
    draw.line((448, 110, 448, 760), "#4a3b2a", 14)
    draw.arc((448, 700, 560, 820), 0, 180, "#4a3b2a", 14)


DRAWINGS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int], Callable[[Draw], None]]] = {
    "balloon": ((120, 176, 226), (222, 236, 246), _draw_balloon),
    "traffic light": ((176, 196, 212), (226, 224, 216), _draw_traffic_light),
    "orange": ((240, 232, 216), (214, 198, 172), _draw_orange),
    "umbrella": ((207, 219, 228), (207, 219, 228), _draw_umbrella),
}


# Digits for a model of digits, drawn as the data set of handwritten digits was scanned: 8 x 8 pixels.

DIGIT_NAMES = frozenset(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"))
PAGE, SCANNED, SHOWN, PEN = 64, 8, 256, 11  # pixels: of the drawing, of its scan, as shown; width of the stroke
Line = tuple[tuple[int, int], ...]
STROKES: dict[str, tuple[Line, ...]] = {
    "two": (((18, 16), (30, 7), (43, 14), (42, 26), (18, 54), (46, 54)),),
    "three": (((18, 10), (42, 10), (28, 28), (42, 40), (36, 53), (18, 54)),),
    "four": (((28, 6), (14, 38), (48, 38)), ((38, 24), (36, 58))),
    "seven": (((16, 9), (45, 9), (28, 57)), ((20, 32), (46, 32))),
}


def draw_digits(folder: Path) -> list[Path]:
    """Write four digits as PNGs, named after what they show, and return their paths."""
    paths = []
    for name, strokes in STROKES.items():
        picture = Image.new("L", (PAGE, PAGE))
        for points in strokes:
            ImageDraw.Draw(picture).line(points, 255, PEN, "curve")
        scan = picture.resize((SCANNED, SCANNED), Image.Resampling.BOX)
        paths.append(folder / f"{name}.png")
        scan.resize((SHOWN, SHOWN), Image.Resampling.BICUBIC).save(paths[-1])
    return paths
