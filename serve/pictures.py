"""Labelled pictures, still encoded, whatever layout they come from; and how a picture is decoded.

`serve/image_sources.py` and `serve/shards.py` make a `Source`. Its N images have a fixed order.
"""

import io
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from prep.errors import InputError, one_line

MAX_PIXELS = 89_478_485  # as in prep: a decompression bomb of a few KiB would need gigabytes
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "PPM", "JPEG2000")
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
    notes: tuple[str, ...] = ()  # what was assumed or left out, one sentence each
    # The labels that have images; None: unknown, so that all classes count.
    present: frozenset[int] | None = None

    @property
    def num_present(self) -> int:
        """The number of classes that have images."""
        return len(self.class_names) if self.present is None else len(self.present)


def decode_image(content: bytes) -> Image.Image | None:
    """Decode a picture to RGB, ignoring its EXIF orientation as in evaluation; return None if that fails."""
    try:
        return read_picture(content)
    except InputError:
        return None


def read_picture(content: bytes, upright: bool = False) -> Image.Image:
    """Decode the first frame of a picture to RGB.

    Args:
        upright: apply the EXIF orientation, as the app does; evaluation ignores it.

    Raises:
        InputError: it cannot be decoded completely, or has too many pixels.
    """
    if not content:
        raise InputError("the file is empty (0 bytes): copy it again")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise InputError(
                    f"{opened.width:,} x {opened.height:,} pixels are more than {MAX_PIXELS:,}: make it smaller"
                )
            opened.load()
            if upright:
                ImageOps.exif_transpose(opened, in_place=True)
            return to_rgb(opened)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"it has more than {MAX_PIXELS:,} pixels: make it smaller") from error
    except UnidentifiedImageError as error:
        raise InputError("it is not a picture of a format that is read here: save it as JPEG or PNG") from error
    except Exception as error:  # Pillow's decoders raise almost any exception on damaged bytes
        raise InputError(f"it is damaged ({one_line(str(error)) or type(error).__name__}): save it again") from error


def to_rgb(picture: Image.Image) -> Image.Image:
    """Return a picture as a viewer shows it, RGB: 16-bit values scaled to 8 bits, transparent pixels over white.

    The alpha channel of a BMP is ignored if it is 0 everywhere: programs that write 32-bit BMPs leave it unset.

    Raises:
        InputError: the range of its values is not defined (32 bits, floating point, LAB, HSV), as in preparation.
    """
    if picture.mode.startswith("I;16"):
        # Pillow's convert would clip 16-bit values at 255; the upper byte is the value scaled to 8 bits.
        return _take_upper_bytes(picture)
    if picture.mode == "I" and picture.format == "PPM":  # Pillow scales its values to 16 bits
        return _take_upper_bytes(picture)
    if picture.mode in ("I", "F", "LAB", "HSV"):
        raise InputError(f"values of mode {picture.mode} have no defined white: save the picture as RGB with 8 bits")
    if not picture.has_transparency_data:
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    layer = picture if picture.mode == "RGBA" else picture.convert("RGBA")
    alpha = layer.getchannel("A")
    if picture.format == "BMP" and alpha.getextrema() == (0, 0):
        return layer.convert("RGB")
    paper = Image.new("RGB", layer.size, PAPER)
    paper.paste(layer, mask=alpha)
    return paper


def _take_upper_bytes(picture: Image.Image) -> Image.Image:
    values_HW = np.asarray(picture)
    return Image.fromarray((values_HW >> 8).astype(np.uint8)).convert("RGB")
