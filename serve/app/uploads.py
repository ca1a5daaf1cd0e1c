"""A visitor's file: decode it to the picture that a person expects, or say why not; delete it after a few minutes.

The header is checked before any pixel is decoded, and only decoders of the formats named here see the bytes.
`serve/pictures.py` decodes for measuring, where the EXIF orientation is ignored, as in evaluation; here a photograph is
turned upright.
"""

import io
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError, features

from prep.errors import InputError
from serve.app.file_kinds import NUM_BYTES, RAW, explain_kind
from serve.pictures import MAX_PIXELS, to_rgb

# AVIF only if this Pillow was built with it; a wheel from PyPI is.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", *(("AVIF",) if features.check("avif") else ()))
ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")  # a phone's JPEG may hold a second picture too, but it is not an animation
MODES = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I;16", "I;16B", "I;16L"))
MAX_SIDE_RATIO = 100  # a thinner strip would grow to gigabytes when its short side is resized
MEGAPIXELS = MAX_PIXELS // 1_000_000
LIMIT = f"the limit is {MEGAPIXELS}. Send a smaller copy, or a screenshot of it."
WANTED = f"Send a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file.".replace("WEBP", "WebP")
DAMAGED = "This picture is damaged: it ends too early, or its bytes make no sense. Save it again."
CUT_NOTE = "The file ends early: its lower part may be missing."
CUT_PROGRESSIVE_NOTE = "The file ends early: its fine detail may be missing."  # progressive: the detail comes last
END_OF_JPEG = b"\xff\xd9"
MAX_MISSING = 0.25  # of the rows of a JPEG that ends early
# libjpeg fills what is missing with zero coefficients, which is middle grey in every channel (127 in inverted CMYK).
FILLED = (127, 128)
NEW_SUBFILE_TYPE, DNG_VERSION = 254, 50706  # tags of TIFF

KEEP_SECONDS = 280  # with the seconds between two passes, less than the five minutes that the page promises
KEEP_BYTES = 1 << 30  # of all uploads together
CLEAN_SECONDS = 10  # between two passes of the cleaner


class SizeError(InputError):
    """A picture whose header announces more pixels, or a thinner strip, than is accepted here."""


@dataclass(frozen=True)
class Photo:
    """A picture, RGB and upright, with notes for the visitor on what was changed."""

    picture: Image.Image
    notes: tuple[str, ...] = ()


def open_photo(source: Path | BinaryIO) -> Photo:
    """Return the picture in a file, or in a binary stream that can seek.

    Raises:
        SizeError: it has too many pixels, or is too thin a strip.
        InputError: it is not a picture, or is damaged; the message is for the visitor.
    """
    if isinstance(source, Path):
        with source.open("rb") as file:
            return open_photo(file)
    start = source.read(NUM_BYTES)
    if not start:
        raise InputError("This file is empty (0 bytes). Choose it again, or choose another.")
    source.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large sizes and damaged EXIF; both are handled here
            return _decode(source)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise SizeError(f"This photo has more than {2 * MEGAPIXELS} megapixels; {LIMIT}") from error
    except UnidentifiedImageError as error:
        words = explain_kind(start) or f"This file is not a picture that can be read here. {WANTED}"
        raise InputError(words) from error
    except Exception as error:  # Pillow's decoders raise almost any exception on damaged bytes
        raise InputError(DAMAGED) from error


def _decode(source: BinaryIO) -> Photo:
    """Decode an encoded picture; repair a JPEG that lacks its last bytes."""
    with Image.open(source, formats=FORMATS) as opened:
        _check_header(opened)
        kind = opened.format
        try:
            opened.load()
        except OSError:
            if kind not in ("JPEG", "MPO"):
                raise
        else:
            return _turn_upright(opened, ())
    del opened  # free its pixels before the second attempt
    return _decode_cut_jpeg(source)


def _decode_cut_jpeg(source: BinaryIO) -> Photo:
    """Decode a JPEG whose end is missing, as browsers do, if at least three quarters of its rows are there.

    `ImageFile.LOAD_TRUNCATED_IMAGES` would do the same, but for all threads at the same time. Here the marker of the
    end is added to the bytes of this one file; libjpeg fills what is missing with grey.

    Raises:
        InputError: more is missing, or the bytes are damaged in another way.
    """
    source.seek(0)
    with Image.open(io.BytesIO(source.read() + END_OF_JPEG), formats=("JPEG", "MPO")) as opened:
        opened.load()
        if _count_filled_rows(opened) > MAX_MISSING * opened.height:
            raise InputError(DAMAGED)
        return _turn_upright(opened, (CUT_PROGRESSIVE_NOTE if "progressive" in opened.info else CUT_NOTE,))


def _count_filled_rows(picture: Image.Image) -> int:
    """Return the number of rows at the lower edge that are uniformly the grey with which libjpeg fills."""
    for number in range(picture.height):
        top = picture.height - 1 - number
        ranges = picture.crop((0, top, picture.width, top + 1)).getextrema()
        pairs = ranges if isinstance(ranges[0], tuple) else (ranges,)  # one channel: one pair
        if any(low != high or low not in FILLED for low, high in pairs):  # pyright: ignore[reportGeneralTypeIssues]
            return number
    return picture.height


def _check_header(opened: Image.Image) -> None:
    """Check the size and the kind of a picture before its pixels are decoded.

    Raises:
        SizeError: it is too large, or too thin a strip.
        InputError: it is the preview in a camera's raw file, or has colours that cannot be shown.
    """
    width, height = opened.size
    if width * height > MAX_PIXELS:
        raise SizeError(f"This photo has {width * height / 1e6:,.0f} megapixels; {LIMIT}")
    if max(width, height) > MAX_SIDE_RATIO * min(width, height):
        raise SizeError(f"This picture is {width:,} × {height:,} pixels, which is too thin a strip. Crop it.")
    tags = getattr(opened, "tag_v2", {})  # of TIFF; raw files are TIFF whose first picture is a small preview
    if DNG_VERSION in tags or tags.get(NEW_SUBFILE_TYPE, 0) == 1:
        raise InputError(RAW)
    if opened.mode not in MODES:
        raise InputError(f"This picture stores its colours as {opened.mode}, which cannot be shown. Save it as PNG.")


def _turn_upright(opened: Image.Image, notes: tuple[str, ...]) -> Photo:
    """Return the decoded picture as RGB, turned as its EXIF orientation says; note which frame or page it is."""
    if opened.format in ANIMATED and getattr(opened, "is_animated", False):
        notes = (*notes, "This picture is animated: what you see is its first frame.")
        opened.seek(0)
    if opened.format == "TIFF" and getattr(opened, "n_frames", 1) > 1:
        notes = (*notes, "This file has several pages: what you see is its first page.")
        opened.seek(0)
    ImageOps.exif_transpose(opened, in_place=True)  # a copy of the largest picture would need 0.3 GB
    return Photo(to_rgb(opened), notes)


def start_cleaner(folder: Path, also: Callable[[], None] | None = None) -> None:
    """Start a thread that deletes old uploads in a folder every 10 seconds, until this process ends.

    Gradio's `delete_cache` does not know of an interrupted upload and never deletes it.

    Args:
        also: is called in each pass.
    """

    def repeat() -> None:
        while True:
            time.sleep(CLEAN_SECONDS)
            with suppress(OSError):  # a file was added or deleted meanwhile: the next pass sees it
                delete_old_uploads(folder)
            if also is not None:
                also()

    threading.Thread(target=repeat, daemon=True, name="cleaner").start()


def delete_old_uploads(folder: Path, keep_seconds: float = KEEP_SECONDS, keep_bytes: int = KEEP_BYTES) -> None:
    """Delete the files below a folder that are older than `keep_seconds`, and the oldest ones beyond `keep_bytes`."""
    # Newest first, so that the oldest files are the ones beyond the limit.
    files = [(path.stat(), path) for path in folder.rglob("*") if path.is_file()]
    files.sort(key=lambda each: -each[0].st_mtime)
    oldest, size_bytes = time.time() - keep_seconds, 0
    for facts, path in files:
        size_bytes += facts.st_size
        if facts.st_mtime < oldest or size_bytes > keep_bytes:
            path.unlink(missing_ok=True)

    # Each upload has its own folder: delete those that are old and empty.
    for each in folder.iterdir():
        if each.is_dir() and each.stat().st_mtime < oldest:
            with suppress(OSError):  # it is not empty
                each.rmdir()
