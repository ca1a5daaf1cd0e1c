"""Any file that a visitor sends, to a picture as a person expects to see it; or one sentence that says why not.

The first stage of `serve/app.py`. Nothing is decoded before the header has been read, and no bytes go to a decoder of a
format that is not named here. `serve/source.py` decodes for measuring, which is stricter about what a picture means:
there the EXIF orientation is ignored, as in evaluation; here a photograph stands upright.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from prep.errors import InputError
from serve.source import MAX_PIXELS, to_rgb

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
ANIMATED = ("GIF", "PNG", "WEBP")  # a phone's JPEG may hold a second picture too, but nothing in it moves
MAX_SIDE_RATIO = 100  # a strip this thin would grow to gigabytes when its short side is resized
TOO_LARGE = f"more than the {MAX_PIXELS // 1_000_000} megapixels that are taken here. Make it smaller."
WANTED = "Send a JPEG, PNG, WebP, GIF or BMP."


@dataclass(frozen=True)
class Photo:
    """A picture, RGB and upright, and what was done to it that its owner might wonder at."""

    picture: Image.Image
    notes: tuple[str, ...] = ()


def open_photo(path: Path) -> Photo:
    """The picture in a file.

    Raises:
        InputError: there is none, or it is too large; the message is for the visitor.
    """
    if path.stat().st_size == 0:
        raise InputError("This file is empty (0 bytes). Choose it again, or choose another.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's of sizes and of damaged EXIF: both are dealt with here
            with Image.open(path, formats=FORMATS) as opened:
                _check_size(opened)
                return _stand_upright(opened)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"This picture has {TOO_LARGE}") from error
    except UnidentifiedImageError as error:
        raise InputError(f"This file is not a picture that can be read here. {WANTED}") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        raise InputError(
            "This picture is damaged: it ends too early, or its bytes make no sense. Save it anew."
        ) from error


def _check_size(opened: Image.Image) -> None:
    width, height = opened.size
    if width * height > MAX_PIXELS:
        raise InputError(f"This picture is {width:,} × {height:,} pixels, {TOO_LARGE}")
    if max(width, height) > MAX_SIDE_RATIO * min(width, height):
        raise InputError(f"This picture is {width:,} × {height:,} pixels, which is too thin a strip. Crop it.")


def _stand_upright(opened: Image.Image) -> Photo:
    notes = []
    if opened.format in ANIMATED and getattr(opened, "is_animated", False):
        notes.append("This picture is animated: what you see is its first frame.")
        opened.seek(0)
    ImageOps.exif_transpose(opened, in_place=True)  # a copy of the largest picture would be a third of a gigabyte
    return Photo(to_rgb(opened), tuple(notes))
