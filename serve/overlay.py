"""A map over its picture: colours that leave the picture recognizable, and their legend.

The picture is grey, so that all colour is the map's. The map is transparent where it is 0 and nearly opaque at its
maximum; its colours go from dark violet through orange to light yellow, whose lightness increases evenly, so that they
keep their order for colour-blind readers and in print. H, W are the crop's side.
"""

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw

from serve.lettering import draw_label, draw_line

TILE = 224  # pixels; side of a picture in the gallery
LEGEND_WIDTH, LEGEND_HEIGHT = 160, 12
COLORS, DARKEST, LIGHTEST = "inferno", 0.30, 0.97  # the part of the colour map that is used; below it is nearly black
OPACITY = 0.78  # of the maximum
SOFTNESS = 0.75  # exponent of a map's value in its opacity: below 1, the middle of a map is clearly visible


def color_map(map_HW: np.ndarray) -> Image.Image:
    """Return a map of 0 to 1 in the gallery's colours, RGBA [H, W]: transparent where it is 0."""
    values_HW = np.clip(np.nan_to_num(map_HW), 0, 1)
    colors_HWC = mpl.colormaps[COLORS](DARKEST + (LIGHTEST - DARKEST) * values_HW)
    colors_HWC[..., 3] = OPACITY * values_HW**SOFTNESS
    return Image.fromarray(np.rint(255 * colors_HWC).astype(np.uint8))


def overlay_map(crop: Image.Image, map_HW: np.ndarray) -> Image.Image:
    """Return a map over its picture in grey, both at the size of a tile, RGB; an empty map is said in words."""
    tile = to_tile(crop.convert("L")).convert("RGB")
    layer = color_map(enlarge_map(map_HW))
    tile.paste(layer.convert("RGB"), mask=layer.getchannel("A"))
    if not map_HW.any():
        draw_label(tile, "no place supports it")
    return tile


def to_tile(crop: Image.Image) -> Image.Image:
    """Return a picture at the size of a tile; small ones are enlarged without smoothing, so that pixels are visible."""
    small = crop.width < TILE // 2
    return crop.resize((TILE, TILE), Image.Resampling.NEAREST if small else Image.Resampling.BICUBIC)


def enlarge_map(map_HW: np.ndarray) -> np.ndarray:
    """Return a map at the size of a tile, by the cubic interpolation of `serve/maps.py`; color_map clips it."""
    return np.asarray(Image.fromarray(map_HW.astype(np.float32)).resize((TILE, TILE), Image.Resampling.BICUBIC))


def draw_legend(picture: Image.Image, place: tuple[int, int], color: str) -> None:
    """Draw the colours from 0 to a map's maximum over grey, with words on both sides; `place` is the upper left."""
    left, top = place
    ramp_HW = np.tile(np.linspace(0, 1, LEGEND_WIDTH, dtype=np.float32), (LEGEND_HEIGHT, 1))
    bar = Image.new("RGB", (LEGEND_WIDTH, LEGEND_HEIGHT), "#909090")
    layer = color_map(ramp_HW)
    bar.paste(layer.convert("RGB"), mask=layer.getchannel("A"))
    draw = ImageDraw.Draw(picture)
    draw_line(draw, (left, top - 2), "0", color, 14)
    picture.paste(bar, (left + 16, top))
    draw_line(draw, (left + 24 + LEGEND_WIDTH, top - 2), "maximum of each map", color, 14)
