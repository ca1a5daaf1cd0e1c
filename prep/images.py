"""What an encoded image is, found from its bytes: kept as it is, made an RGB JPEG, made smaller, or unusable."""

import io
import warnings
from dataclasses import dataclass, replace

from PIL import Image, ImageFile, UnidentifiedImageError

from prep.dataset import Options
from prep.jpeg import Bytes, JpegHeader, can_shrink, decode, read_header, shrink, target_size
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

    data: Bytes
    width: int
    height: int
    findings: tuple[tuple[str, str], ...] = ()


def as_jpeg(data: Bytes, options: Options) -> StoredImage:
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
        # What is encoded anew has nothing after its end, so that is not searched for, which would take time.
        header = read_header(data, thorough=options.decode_check and not options.quality)
        if header and header.is_common and not header.has_exif:
            return _store(data, header, [], options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                return _store_by_pillow(image, data, header, options)
    except (UnusableImageError, ModuleNotFoundError):  # a missing decoder says nothing about the image
        raise
    except UnidentifiedImageError as error:
        raise UnusableImageError("not an image") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        raise UnusableImageError(f"damaged: {error}") from error


def _store_by_pillow(
    image: ImageFile.ImageFile, data: Bytes, header: JpegHeader | None, options: Options
) -> StoredImage:
    """What the header alone does not settle: tags, other formats and colour spaces."""
    _check_pixels(image.size)
    findings = _find_orientation(image)
    if header and header.is_common:
        return _store(data, header, findings, options)
    kind = " ".join(filter(None, (image.format, image.mode, header and header.coding)))
    findings.append((REPAIRED, f"{kind} made RGB JPEG"))
    stored = _encode_anew(image)
    fresh = read_header(stored, thorough=False)
    assert fresh
    return _store(stored, fresh, findings, replace(options, decode_check=False))


def _store(data: Bytes, header: JpegHeader, findings: list[tuple[str, str]], options: Options) -> StoredImage:
    """A JPEG that is kept, or made smaller."""
    _check_pixels(header.size)
    size, target, complaint = header.size, target_size(*header.size, options), ""
    if target != size or (options.quality and can_shrink(data, header, options.quality)):
        data, size, complaint = shrink(data, header, target, options.quality)
    elif options.decode_check or header.is_cut:
        _, complaint = decode(data, "GRAY")  # every code of the JPEG is read, for less than the colours would cost
    if header.is_progressive:
        findings.append((PROGRESSIVE, ""))
    if header.trailing_bytes:
        findings.append((TRAILING_BYTES, f"{header.trailing_bytes:,} bytes after the end of the image"))
    if complaint:
        findings.append((SUSPECT, complaint))
    return StoredImage(data, *size, tuple(findings))


def _check_pixels(size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise UnusableImageError(f"{size[0]}x{size[1]} pixels is over the bound of {MAX_PIXELS:,}")


def _find_orientation(image: ImageFile.ImageFile) -> list[tuple[str, str]]:
    if "exif" not in image.info:
        return []
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # Pillow's EXIF reader raises nearly anything on damaged tags; no decoder here reads them
        return []
    return [(EXIF_ORIENTATION, str(orientation))] if orientation in range(2, 9) else []


def _encode_anew(image: Image.Image) -> bytes:
    encoded = io.BytesIO()
    eight_bit = image.point(lambda value: value / 257) if image.mode.startswith("I;16") else image  # else all is white
    eight_bit.convert("RGB").save(encoded, "JPEG", quality=REENCODE_QUALITY, subsampling=0)
    return encoded.getvalue()
