"""What an encoded image is, found from its bytes: kept as it is, made an RGB JPEG, or unusable."""

import io
import warnings
from dataclasses import dataclass

from PIL import Image, ImageFile, UnidentifiedImageError

# ImageNet's largest is about 30 megapixels; more than this is a decompression bomb (Pillow's own bound).
MAX_PIXELS = 89_478_485
REENCODE_QUALITY = 95  # only for what is no RGB or grey JPEG: 23 images of ImageNet


class UnusableImageError(ValueError):
    """The bytes are no image that can be trained on; the message says why."""


@dataclass(frozen=True)
class Jpeg:
    """An RGB or grey JPEG: its bytes, its stored size in pixels, and what was done to it, if anything."""

    data: bytes
    width: int
    height: int
    note: str = ""


def as_jpeg(data: bytes, decode_check: bool = True) -> Jpeg:
    """The JPEG to store for some encoded bytes: the same bytes wherever they are an RGB or grey JPEG.

    Other formats and colour spaces (PNG under a .JPEG name, CMYK) become RGB JPEGs of quality 95, 4:4:4.
    `decode_check` decodes in full: only that finds a truncated file.

    Raises:
        UnusableImageError: empty, no image, too many pixels, or damaged.
    """
    if not data:
        raise UnusableImageError("0 bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                return _as_jpeg(image, data, decode_check)
    except UnusableImageError:
        raise
    except UnidentifiedImageError as error:
        raise UnusableImageError("not an image") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        raise UnusableImageError(f"damaged: {error}") from error


def _as_jpeg(image: ImageFile.ImageFile, data: bytes, decode_check: bool) -> Jpeg:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UnusableImageError(f"{width}x{height} pixels is over the bound of {MAX_PIXELS:,}")
    if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
        if decode_check:
            image.load()
        return Jpeg(data, width, height)
    encoded = io.BytesIO()
    eight_bit = image.point(lambda value: value / 257) if image.mode.startswith("I;16") else image  # else all is white
    eight_bit.convert("RGB").save(encoded, "JPEG", quality=REENCODE_QUALITY, subsampling=0)
    return Jpeg(encoded.getvalue(), width, height, f"{image.format} {image.mode} made RGB JPEG")
