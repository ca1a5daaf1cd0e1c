"""What an encoded image is, found from its bytes: kept as it is, made an RGB JPEG, made smaller, or unusable."""

import io
import warnings
from dataclasses import dataclass

from PIL import Image, ImageFile, UnidentifiedImageError

from prep.dataset import Options
from prep.jpeg import JpegHeader, decode, read_header, shrink, target_size
from prep.ledger import EXIF_ORIENTATION, PROGRESSIVE, REPAIRED, SUSPECT, TRAILING_BYTES

# ImageNet's largest is about 30 megapixels; more than this is a decompression bomb (Pillow's own bound).
MAX_PIXELS = 89_478_485
REENCODE_QUALITY = 95  # only for what is no RGB or grey JPEG: 23 images of ImageNet
ORIENTATION = 0x0112  # EXIF 2.32, table 4


class UnusableImageError(ValueError):
    """The bytes are no image that can be trained on; the message says why."""


@dataclass(frozen=True)
class StoredImage:
    """An RGB or grey JPEG as it is stored: its size in pixels, and what was found, as (event, reason)."""

    data: bytes
    width: int
    height: int
    findings: tuple[tuple[str, str], ...] = ()


def as_jpeg(data: bytes, options: Options) -> StoredImage:
    """The JPEG to store for some encoded bytes: the same bytes wherever they are an RGB or grey JPEG.

    Other formats and colour spaces (PNG under a .JPEG name, CMYK) become RGB JPEGs of quality 95, 4:4:4.
    `options.decode_check` decodes in full: only that finds damaged data. With a size or a quality in the options
    the JPEG is made smaller where that saves bytes.

    Raises:
        UnusableImageError: empty, no image, too many pixels, or damaged.
    """
    if not data:
        raise UnusableImageError("0 bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                return _store(image, data, options)
    except UnusableImageError:
        raise
    except UnidentifiedImageError as error:
        raise UnusableImageError("not an image") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        raise UnusableImageError(f"damaged: {error}") from error


def _store(image: ImageFile.ImageFile, data: bytes, options: Options) -> StoredImage:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UnusableImageError(f"{width}x{height} pixels is over the bound of {MAX_PIXELS:,}")
    is_jpeg = image.format in ("JPEG", "MPO")
    header = read_header(data, options.decode_check) if is_jpeg else None
    findings = _find_orientation(image)
    if header and header.is_common and image.mode in ("RGB", "L"):
        findings += _find_in_header(header)
        check = options.decode_check or header.is_cut
    else:
        kind = " ".join(filter(None, (image.format, image.mode, header and header.coding)))
        data, check = _encode_anew(image), False
        findings.append((REPAIRED, f"{kind} made RGB JPEG"))
    target = target_size(width, height, options)
    complaint = ""
    if target != (width, height) or options.quality:
        data, (width, height), complaint = shrink(data, (width, height), target, options.quality)
    elif check:
        _, complaint = decode(data, "GRAY")  # every code of the JPEG is read, for less than the colours would cost
    if complaint:
        findings.append((SUSPECT, complaint))
    return StoredImage(data, width, height, tuple(findings))


def _find_orientation(image: ImageFile.ImageFile) -> list[tuple[str, str]]:
    if "exif" not in image.info:
        return []
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # Pillow's EXIF reader raises nearly anything on damaged tags; no decoder here reads them
        return []
    return [(EXIF_ORIENTATION, str(orientation))] if orientation in range(2, 9) else []


def _find_in_header(header: JpegHeader) -> list[tuple[str, str]]:
    findings = [(PROGRESSIVE, "")] if header.is_progressive else []
    if header.trailing_bytes:
        findings.append((TRAILING_BYTES, f"{header.trailing_bytes:,} bytes after the end of the image"))
    return findings


def _encode_anew(image: Image.Image) -> bytes:
    encoded = io.BytesIO()
    eight_bit = image.point(lambda value: value / 257) if image.mode.startswith("I;16") else image  # else all is white
    eight_bit.convert("RGB").save(encoded, "JPEG", quality=REENCODE_QUALITY, subsampling=0)
    return encoded.getvalue()
