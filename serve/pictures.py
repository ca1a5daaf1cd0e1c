"""Labelled pictures, still encoded, whatever layout they come from; and how a picture is decoded.

`serve/image_sources.py` and `serve/shards.py` make a `Source`. Its N images have a fixed order.
"""

import io
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

MAX_PIXELS = 89_478_485  # as in prep: a decompression bomb of a few KiB would need gigabytes
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
PAPER = (255, 255, 255)  # behind transparent pixels, as in prep


@dataclass(frozen=True)
class Encoded:
    """One image file."""

    row: int  # 0 to N - 1
    key: str
    label: int  # index into the source's class names
    content: bytes


@dataclass(frozen=True)
class Source:
    """A set of labelled pictures that can be read repeatedly; `read` yields those whose row is in its argument."""

    name: str
    class_names: tuple[str, ...]
    num_images: int
    read: Callable[[Container[int]], Iterator[Encoded]]


def decode_image(content: bytes) -> Image.Image | None:
    """Decode a picture to RGB, ignoring its EXIF orientation as in evaluation; return None if that fails."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                return None
            opened.load()
            return to_rgb(opened)
    except Exception:  # Pillow's decoders raise almost any exception on damaged bytes
        return None


def to_rgb(picture: Image.Image) -> Image.Image:
    """Return a picture as a viewer shows it, RGB: 16-bit values scaled to 8 bits, transparent pixels over white."""
    if picture.mode.startswith("I;16"):
        # Pillow's convert would clip 16-bit values at 255; the upper byte is the value scaled to 8 bits.
        values_HW = np.asarray(picture)
        return Image.fromarray((values_HW >> 8).astype(np.uint8)).convert("RGB")
    if not picture.has_transparency_data:
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    layer = picture if picture.mode == "RGBA" else picture.convert("RGBA")
    paper = Image.new("RGB", layer.size, PAPER)
    paper.paste(layer, mask=layer.getchannel("A"))
    return paper
