"""Recognize what a file is, by its suffix and its first bytes; explain what to do about files that cannot be used.

Sources use it to find images in folders. The decoder and the tar reader use it to name what they found instead of an
image or a tar, such as an HTML page that a server sent instead of the file.
"""

import re
import stat
from pathlib import Path

from prep.errors import InputError


def _suffixes(text: str) -> frozenset[str]:
    return frozenset(text.split())


# torchvision's suffixes, and those of other images that Pillow may read.
IMAGE_SUFFIXES = _suffixes(".jpg .jpeg .png .ppm .bmp .pgm .tif .tiff .webp .jpe .jfif .jp2 .gif .avif .heic .heif")
# Files with these suffixes are not images. Any other file is opened if it matters.
OTHER_SUFFIXES = _suffixes(
    ".txt .csv .tsv .json .jsonl .xml .yaml .yml .md .rst .html .log .ini .py .ipynb .sh .m .mat .npy .npz .pkl .pt"
    " .pth .h5 .hdf5 .parquet .arrow .tar .tgz .gz .bz2 .xz .zst .zip .7z .rar .db .pdf .mp4 .avi .mov .idx .seg .lock"
)
IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")

LFS_START = b"version https://git-lfs.github.com/spec/"
LFS_POINTER_BYTES = range(100, 200)  # possible sizes of a Git LFS pointer

FIRST_BYTES = 512  # enough to recognize every kind below
LOGIN = "fetch it again (its address may need a login)"

# (pattern of the first bytes in lower case without leading white space, what the file is, what to do)
TEXTS = (
    (re.escape(LFS_START), "a Git LFS pointer", "run `git lfs pull` in its repository"),
    (rb"<svg|(<\?xml|<!doctype svg|<!--).*<svg", "an SVG drawing", "save it as JPEG or PNG"),
    (rb"<!doctype html|(<!--.*)?<(html|head|body|script)\b", "an HTML page", LOGIN),
    (rb"<\?xml|<error>", "an XML page, as servers send for an error", LOGIN),
    (rb'[{\[]\s*["{\[]', "JSON, as servers send for an error", LOGIN),
)
# Images, videos and archives that Pillow cannot open.
UNSUPPORTED = (
    (rb"\x76\x2f\x31\x01", "OpenEXR"),
    (rb"#\?(radiance|rgbe)", "Radiance HDR"),
    (rb"\xff\x0a|\0\0\0\x0cjxl ", "JPEG XL"),
    (rb"....ftyp(heic|heix|hevc|mif1|msf1)", "HEIC"),
    (rb"....ftyp", "a video (MP4)"),
    (rb"\x1a\x45\xdf\xa3", "a video (WebM)"),
    (rb"%pdf", "PDF"),
    (rb"pk\x03\x04", "a zip archive"),
    (rb"\x1f\x8b", "gzip"),
)
# Formats that Pillow can open, at least in most variants.
SUPPORTED = (
    (rb"\xff\xd8", "a JPEG"),
    (rb"\x89png", "a PNG"),
    (rb"(ii|mm)[*+\0]", "a TIFF"),
    (rb"gif8", "a GIF"),
    (rb"riff....webp", "a WebP"),
    (rb"bm", "a BMP"),
)


# Images


def looks_like_image(path: Path) -> bool:
    """Check whether a file seems to be an image: by its suffix, or by its first bytes if the suffix is unknown."""
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return True
    return suffix not in OTHER_SUFFIXES and starts_like_image(path)


def starts_like_image(path: Path) -> bool:
    """Check whether a file starts with the bytes of an image format."""
    start = read_start(path)
    is_webp, is_bmp = start[:4] == b"RIFF" and start[8:12] == b"WEBP", start[:2] == b"BM" and start[6:10] == bytes(4)
    return start.startswith(IMAGE_STARTS) or is_webp or is_bmp


def read_start(path: Path) -> bytes:
    """Return the first 200 bytes of a regular file, or no bytes if it cannot be read or is not a regular file."""
    try:
        # Opening a pipe would wait for a writer, and opening a device may trigger an action.
        if not stat.S_ISREG(path.stat().st_mode):
            return b""
        with path.open("rb") as file:
            return file.read(LFS_POINTER_BYTES.stop)
    except OSError:
        return b""


# Git LFS


def is_lfs_pointer(start: bytes) -> bool:
    """Check whether a file that starts with these bytes is a Git LFS pointer, left by a clone without its files."""
    return start.startswith(LFS_START)


def check_no_pointer(root: Path, name: str, size_bytes: int) -> None:
    """Check that a file below `root` is not a Git LFS pointer; its size decides whether it has to be opened.

    Raises:
        InputError: it is a pointer.
    """
    if size_bytes in LFS_POINTER_BYTES and is_lfs_pointer(read_start(root / name)):
        raise InputError(f"{root / name} is a Git LFS pointer, not the file itself: run `git lfs pull` in {root}")


# Files found in place of an image or a tar


def describe_text(start: bytes) -> tuple[str, str] | None:
    """Return what a text file is and what to do about it, or None if its first bytes do not show it."""
    start = start[:FIRST_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next(((kind, fix) for pattern, kind, fix in TEXTS if re.match(pattern, start, re.DOTALL)), None)


def describe_no_image(data: bytes | memoryview) -> str:
    """Return why bytes that Pillow cannot identify are unusable; the ledger records this text."""
    start = bytes(data[:FIRST_BYTES])
    if not start.strip(b"\0"):
        return f"not an image: its first {len(start):,} bytes are zeros, fetch it again"
    if found := describe_text(start):
        return f"not an image but {found[0]}: {found[1]}"
    lowered = start.lower()
    for pattern, kind in UNSUPPORTED:
        if re.match(pattern, lowered, re.DOTALL):
            return f"not an image that is read here but {kind}: save it as JPEG or PNG"
    for pattern, kind in SUPPORTED:
        if re.match(pattern, lowered, re.DOTALL):
            return f"not an image that can be read: it starts as {kind}, and is damaged or of a kind that Pillow lacks"
    return "not an image"
