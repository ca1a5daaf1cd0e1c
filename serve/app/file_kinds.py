"""Recognise files that people send although the app cannot read them, and say what to do instead.

Only the first bytes are read, and nothing is decoded. The words are for visitors of the page.
"""

import re

NUM_BYTES = 1024  # that are read from a file to recognise its kind

HEIC = (
    "This is a HEIC photo. On an iPhone choose Settings, Camera, Formats, Most Compatible for new photos, "
    "or send a screenshot of this one."
)
RAW = "This is a camera's raw file. Export the photo as JPEG, and send that."
PDF = "This is a PDF document. Send the picture in it as JPEG or PNG, or a screenshot."
SVG = "This is an SVG drawing. Send a PNG of it, or a screenshot."
VIDEO = "This is a video. Pause it and send a screenshot."
SOUND = "This is a sound recording. Send a photo."
ARCHIVE = "This is a ZIP archive or an office document. Take the photo out of it, and send that."
WEB_PAGE = "This is a web page, not a photo. Save the picture itself, and send that."
PHOTOSHOP = "This is a Photoshop document. Export it as JPEG or PNG, and send that."
OTHER_PICTURE = "This is a {kind} picture, which cannot be read here. Save it as JPEG or PNG, and send that."

HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"))
AVIF_BRANDS = frozenset((b"avif", b"avis"))
STARTS: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", ARCHIVE),
    (b"PK\x05\x06", ARCHIVE),  # an empty archive
    (b"Rar!\x1a\x07", ARCHIVE),
    (b"7z\xbc\xaf\x27\x1c", ARCHIVE),
    (b"\x1f\x8b", ARCHIVE),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", ARCHIVE),  # office documents before 2007
    (b"8BPS", PHOTOSHOP),
    (b"FUJIFILMCCD-RAW", RAW),
    (b"IIRO", RAW),  # Olympus
    (b"IIRS", RAW),
    (b"IIU\0", RAW),  # Panasonic
    (b"FOVb", RAW),  # Sigma
    (b"\x1aE\xdf\xa3", VIDEO),  # WebM, Matroska
    (b"FLV\x01", VIDEO),
    (b"\0\0\x01\xba", VIDEO),  # MPEG
    (b"\0\0\x01\xb3", VIDEO),
    (b"OggS", SOUND),
    (b"ID3", SOUND),
    (b"fLaC", SOUND),
    (b"\0\0\0\x0cjP  ", OTHER_PICTURE.format(kind="JPEG 2000")),
    (b"\0\0\0\x0cJXL ", OTHER_PICTURE.format(kind="JPEG XL")),
    (b"\xff\x0a", OTHER_PICTURE.format(kind="JPEG XL")),
    (b"%!PS", OTHER_PICTURE.format(kind="PostScript")),
    (b"\0\0\x01\0", OTHER_PICTURE.format(kind="Windows icon")),
)


def explain_kind(start: bytes) -> str | None:
    """Return a sentence about a file that cannot be read here; None if its kind is unknown, or can be read.

    Args:
        start: the first `NUM_BYTES` bytes of the file, or all if it is shorter.
    """
    if start[4:8] == b"ftyp":
        return _explain_container(start)
    if start[:4] == b"RIFF" and start[8:12] in (b"AVI ", b"WAVE"):
        return VIDEO if start[8:12] == b"AVI " else SOUND
    if start[:4] in (b"II*\0", b"MM\0*") and start[8:10] == b"CR":  # Canon's CR2 is a TIFF with this mark
        return RAW
    for magic, words in STARTS:
        if start.startswith(magic):
            return words
    if b"%PDF-" in start:  # readers accept the mark anywhere in the first 1024 bytes
        return PDF
    return _explain_text(start)


def _explain_container(start: bytes) -> str | None:
    """Return the sentence for a file of the ISO base media format, by its major and compatible brands."""
    size = min(int.from_bytes(start[:4], "big"), len(start))
    brands = {start[8:12], *(start[place : place + 4] for place in range(16, size - 3, 4))}
    if brands & AVIF_BRANDS:  # AVIF files also name mif1, as HEIC files do
        return None
    if brands & HEIC_BRANDS:
        return HEIC
    return RAW if start[8:11] == b"crx" else VIDEO  # crx: Canon's CR3


def _explain_text(start: bytes) -> str | None:
    """Return the sentence for SVG and HTML, which start with a tag after white space and comments."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not text.startswith(b"<"):
        return None
    found = re.search(rb"<(?:!doctype\s+)?(svg|html)\b", text)
    return None if found is None else SVG if found[1] == b"svg" else WEB_PAGE
