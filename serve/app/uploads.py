"""A visitor's file: decode it to the picture that a person expects, or say why not; delete it after a few minutes.

The header is checked before any pixel is decoded, and only decoders of the formats named here see the bytes.
`serve/pictures.py` decodes for measuring, where the EXIF orientation is ignored, as in evaluation; here a photograph is
turned upright.
"""

import threading
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from prep.errors import InputError
from serve.pictures import MAX_PIXELS, to_rgb

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
ANIMATED = ("GIF", "PNG", "WEBP")  # a phone's JPEG may hold a second picture too, but it is not an animation
MAX_SIDE_RATIO = 100  # a thinner strip would grow to gigabytes when its short side is resized
TOO_LARGE = f"more than the {MAX_PIXELS // 1_000_000} megapixels that are accepted here. Make it smaller."
WANTED = "Send a JPEG, PNG, WebP, GIF or BMP."

KEEP_SECONDS = 300
KEEP_BYTES = 1 << 30  # of all uploads together
CLEAN_SECONDS = 10  # between two passes of the cleaner


@dataclass(frozen=True)
class Photo:
    """A picture, RGB and upright, with notes for the visitor on what was changed."""

    picture: Image.Image
    notes: tuple[str, ...] = ()


def open_photo(path: Path) -> Photo:
    """Return the picture in a file.

    Raises:
        InputError: the file is not a picture, is damaged or too large; the message is for the visitor.
    """
    if path.stat().st_size == 0:
        raise InputError("This file is empty (0 bytes). Choose it again, or choose another.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large sizes and damaged EXIF; both are handled here
            with Image.open(path, formats=FORMATS) as opened:
                _check_size(opened)
                return _turn_upright(opened)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"This picture has {TOO_LARGE}") from error
    except UnidentifiedImageError as error:
        raise InputError(f"This file is not a picture that can be read here. {WANTED}") from error
    except Exception as error:  # Pillow's decoders raise almost any exception on damaged bytes
        raise InputError(
            "This picture is damaged: it ends too early, or its bytes make no sense. Save it again."
        ) from error


def _check_size(opened: Image.Image) -> None:
    width, height = opened.size
    if width * height > MAX_PIXELS:
        raise InputError(f"This picture is {width:,} × {height:,} pixels, {TOO_LARGE}")
    if max(width, height) > MAX_SIDE_RATIO * min(width, height):
        raise InputError(f"This picture is {width:,} × {height:,} pixels, which is too thin a strip. Crop it.")


def _turn_upright(opened: Image.Image) -> Photo:
    notes = []
    if opened.format in ANIMATED and getattr(opened, "is_animated", False):
        notes.append("This picture is animated: what you see is its first frame.")
        opened.seek(0)
    ImageOps.exif_transpose(opened, in_place=True)  # a copy of the largest picture would need 0.3 GB
    return Photo(to_rgb(opened), tuple(notes))


def start_cleaner(folder: Path) -> None:
    """Start a thread that deletes old uploads in a folder every 10 seconds, until this process ends.

    Gradio's `delete_cache` does not know of an interrupted upload and never deletes it.
    """

    def repeat() -> None:
        while True:
            time.sleep(CLEAN_SECONDS)
            with suppress(OSError):  # a file was added or deleted meanwhile: the next pass sees it
                delete_old_uploads(folder)

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
