"""Recognize by their first bytes files that are found in place of an image or a tar, and say what to do about them."""

import re

FIRST_BYTES = 512  # enough to recognize anything here
LOGIN = "fetch it again (its address may need a login)"

# A pattern of the first bytes, without white space before them and in lower case; what it is; what to do.
TEXTS = (
    (rb"version https://git-lfs", "a Git LFS pointer", "run `git lfs pull` in its repository"),
    (rb"<svg|(<\?xml|<!doctype svg|<!--).*<svg", "an SVG drawing", "save it as JPEG or PNG"),
    (rb"<!doctype html|(<!--.*)?<(html|head|body|script)\b", "an HTML page", LOGIN),
    (rb"<\?xml|<error>", "an XML page, as servers send for an error", LOGIN),
    (rb'[{\[]\s*["{\[]', "JSON, as servers send for an error", LOGIN),
)
PICTURES = (  # that Pillow does not open
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
KNOWN = (  # that Pillow opens, mostly
    (rb"\xff\xd8", "a JPEG"),
    (rb"\x89png", "a PNG"),
    (rb"(ii|mm)[*+\0]", "a TIFF"),
    (rb"gif8", "a GIF"),
    (rb"riff....webp", "a WebP"),
    (rb"bm", "a BMP"),
)


def describe_text(start: bytes) -> tuple[str, str] | None:
    """Return what a file of text is and what to do, where its first bytes tell; None where they do not."""
    start = start[:FIRST_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next(((kind, fix) for pattern, kind, fix in TEXTS if re.match(pattern, start, re.DOTALL)), None)


def describe_no_image(data: bytes | memoryview) -> str:
    """Return why bytes that Pillow cannot identify are unusable, in words for the ledger."""
    start = bytes(data[:FIRST_BYTES])
    if not start.strip(b"\0"):
        return f"not an image: its first {len(start):,} bytes are zeros, fetch it again"
    if found := describe_text(start):
        return f"not an image but {found[0]}: {found[1]}"
    lowered = start.lower()
    for pattern, kind in PICTURES:
        if re.match(pattern, lowered, re.DOTALL):
            return f"not an image that is read here but {kind}: save it as JPEG or PNG"
    for pattern, kind in KNOWN:
        if re.match(pattern, lowered, re.DOTALL):
            return f"not an image that can be read: it starts as {kind}, and is damaged or of a kind that Pillow lacks"
    return "not an image"
