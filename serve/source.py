"""Labelled pictures of any layout, still encoded: what `serve/shards.py` and `serve/folders.py` make, and decoding.

N images in the order in which they are read.
"""

import io
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

MAX_PIXELS = 89_478_485  # as at preparation: a bomb of a few KiB would take gigabytes
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
PAPER = (255, 255, 255)  # behind what is transparent, as at preparation


@dataclass(frozen=True)
class Encoded:
    """One file."""

    row: int  # 0 to N - 1
    key: str
    label: int  # position in the source's class names
    content: bytes


@dataclass(frozen=True)
class Source:
    """A set of labelled pictures that can be read again and again; `read` takes the rows that are wanted."""

    name: str
    class_names: tuple[str, ...]
    num_images: int
    read: Callable[[Container[int]], Iterator[Encoded]]


def decode(content: bytes) -> Image.Image | None:
    """A picture as RGB, its EXIF orientation ignored as in evaluation; None where it cannot be decoded."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                return None
            opened.load()
            return to_rgb(opened)
    except Exception:  # Pillow's decoders raise nearly anything on damaged bytes
        return None


def to_rgb(picture: Image.Image) -> Image.Image:
    """Return a picture as a viewer shows it: 16 bits scaled, not cut off, and white behind what is transparent."""
    if picture.mode.startswith("I;16"):
        values_HW = np.asarray(picture)
        return Image.fromarray((values_HW >> 8).astype(np.uint8)).convert("RGB")
    if not picture.has_transparency_data:
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    layer = picture if picture.mode == "RGBA" else picture.convert("RGBA")
    paper = Image.new("RGB", layer.size, PAPER)
    paper.paste(layer, mask=layer.getchannel("A"))
    return paper
