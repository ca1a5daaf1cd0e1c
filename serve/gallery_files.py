"""Write a gallery: the format that the file's suffix names, and several files or pages if there are many rows.

Viewers and browsers refuse or shrink pictures of more than about 16,000 pixels, WebP of more than 16,383. The suffix is
checked before a model is loaded, so this module imports nothing heavy at its top.
"""

# ruff: noqa: PLC0415 - Pillow and matplotlib are needed only after the flags were checked

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prep.errors import InputError, explain_interruption, list_some
from prep.files import write_whole

if TYPE_CHECKING:
    from PIL import Image

    from serve.gallery import Caption, Row

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".pdf": "PDF"}
OPTIONS = {"JPEG": {"quality": 90, "subsampling": 0}, "WEBP": {"quality": 90}}
MAX_FILE_HEIGHT, MAX_PAGE_HEIGHT = 16_000, 1640  # pixels; a page of a PDF has the proportions of A4
PIXELS_PER_INCH = 140  # of a page of a PDF: 8.2 inches wide


def check_suffix(path: Path) -> None:
    """Check that the suffix names a format.

    Raises:
        InputError: it does not.
    """
    if path.suffix.lower() not in FORMATS:
        found = path.suffix or "none"
        raise InputError(f"--output_path must end in one of {', '.join(FORMATS)}, got {found} ({path})")


def check_numbered(path: Path) -> None:
    """Check that no folder has the name of a numbered file, `x-1.png`, which is needed if the rows do not fit into one.

    Raises:
        InputError: one has.
    """
    folders = [each for each in list_numbered(path) if each.is_dir()]
    if folders:
        raise InputError(f"{folders[0]} is a folder, and a gallery of several files needs its name: move it away")


def list_numbered(path: Path) -> list[Path]:
    """Return what has the name of a numbered file of a gallery, by number."""
    name = re.compile(rf"{re.escape(path.stem)}-([1-9]\d*){re.escape(path.suffix)}")
    found = [(name.fullmatch(each.name), each) for each in (path.parent.iterdir() if path.parent.is_dir() else ())]
    return [each for _, each in sorted((int(match[1]), each) for match, each in found if match)]


def describe_left(path: Path, written: Sequence[Path]) -> str:
    """Return a sentence that names the files of an earlier gallery which this one did not replace; empty if none is."""
    candidates = [path, *list_numbered(path)]
    left = [each for each in candidates if each not in written and each.is_file()]
    return f"not of this run, and left as they were: {list_some([str(each) for each in left])}" if left else ""


def write_gallery(rows: Sequence[Row], class_names: Sequence[str], caption: Caption, path: Path) -> list[Path]:
    """Write rows under their caption, and return the files.

    A PDF has several pages. Other formats get one file, `x.png`, or `x-1.png`, `x-2.png` … if the rows do not fit into
    16,000 pixels. All files are encoded before the first is written, and each appears under its name when complete.

    Args:
        path: with a suffix of `FORMATS`; its folder is made if necessary.
    """
    kind = FORMATS[path.suffix.lower()]
    pages = draw_pages(rows, class_names, caption, MAX_PAGE_HEIGHT if kind == "PDF" else MAX_FILE_HEIGHT)
    if kind == "PDF" or len(pages) == 1:
        contents = {path: _encode(pages, kind)}
    else:
        names = [path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(1, len(pages) + 1)]
        contents = {name: _encode([page], kind) for name, page in zip(names, pages, strict=True)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with explain_interruption(lambda: _describe_written(contents)):
        for name, content in contents.items():
            write_whole(name, content)
    return list(contents)


def _describe_written(contents: Mapping[Path, bytes]) -> str:
    """Return what is true after Ctrl-C while files were written."""
    complete = [str(name) for name, content in contents.items() if name.is_file() and name.read_bytes() == content]
    if len(complete) == len(contents):
        return f"{', '.join(complete)} is complete"
    return (
        f"{len(complete)} of {len(contents)} files are complete: {', '.join(complete)}"
        if complete
        else "nothing was written"
    )


def draw_pages(rows: Sequence[Row], class_names: Sequence[str], caption: Caption, max_height: int) -> list[Image.Image]:
    """Return the rows in pictures of at most `max_height` pixels (more if one row needs it), each under the caption."""
    from dataclasses import replace

    from serve.gallery import ROW, complete_caption, draw_head, draw_page

    # The number of pages is in the title, so try one page first; the head's height stays the same.
    complete = complete_caption(rows, class_names, caption)
    per_page = max(1, (max_height - draw_head(complete).height) // ROW)
    parts = [rows[start : start + per_page] for start in range(0, len(rows), per_page)]
    if len(parts) == 1:
        return [draw_page(draw_head(complete), rows, class_names)]
    titles = [f"{caption.title} (part {number} of {len(parts)})" for number in range(1, len(parts) + 1)]
    heads = [draw_head(replace(complete, title=title)) for title in titles]
    return [draw_page(head, part, class_names) for head, part in zip(heads, parts, strict=True)]


def _encode(pages: Sequence[Image.Image], kind: str) -> bytes:
    content = io.BytesIO()
    if kind == "PDF":
        pages[0].save(content, kind, save_all=True, append_images=pages[1:], resolution=PIXELS_PER_INCH)
    else:
        pages[0].save(content, kind, **OPTIONS.get(kind, {}))
    return content.getvalue()
