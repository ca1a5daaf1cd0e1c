"""Turn encoded images into the JPEGs to store: kept unchanged, converted to RGB JPEG, made smaller, or rejected."""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from prep.dataset import Options
from prep.errors import InputError
from prep.file_kinds import describe_no_image
from prep.jpeg import (
    Bytes,
    JpegHeader,
    UnsupportedJpegError,
    can_shrink,
    check_frame,
    decode,
    read_header,
    shrink,
    target_size,
)
from prep.ledger import EXIF_ORIENTATION, NO_RESTARTS, PROGRESSIVE, REPAIRED, SUSPECT, TRAILING_BYTES
from prep.restarts import add_restarts, decode_as_stored
from prep.segments import Segments

# ImageNet's largest is about 30 megapixels; more than this is a decompression bomb (Pillow's own bound).
MAX_PIXELS = 89_478_485
REENCODE_QUALITY = 95  # only for images that are not RGB or grey JPEGs: 23 of ImageNet
ORIENTATION = 0x0112  # EXIF 2.32, table 4
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # TIFF 6.0
WHITE_IS_ZERO = 0  # a value of PHOTOMETRIC
OPAQUE = 255  # of an alpha channel
PAPER = (255, 255, 255)  # the background of transparent pixels, as in serve/


class UnusableImageError(ValueError):
    """Raised for bytes that are not an image to train on; the message says why."""


@dataclass(frozen=True)
class StoredImage:
    """An RGB or grey JPEG to store: its bytes, its size in pixels, and findings as (event, reason)."""

    data: Bytes
    width: int
    height: int
    findings: tuple[tuple[str, str], ...] = ()
    segments: Segments | None = None  # with `options.restarts`; None if it has none


def as_jpeg(data: Bytes, options: Options) -> StoredImage:
    """Return the JPEG to store for an encoded image: the same bytes if they are an RGB or grey JPEG.

    Other formats and colour spaces (PNG under a .JPEG name, CMYK) become RGB JPEGs of quality 95, 4:4:4.
    `options.decode_check` decodes in full, which is the only way to find damaged data. With a size or a quality in the
    options the JPEG is made smaller if that saves bytes.

    Raises:
        UnusableImageError: the bytes are empty, are not an image, have too many pixels, or are damaged.
        InputError: `options.restarts`, and there is nothing to transcode with.
    """
    if not data:
        raise UnusableImageError("0 bytes")
    try:
        # A JPEG that is re-encoded loses the bytes after its end, so a search for them is not needed.
        header = read_header(data, thorough=options.decode_check and not options.quality)
        if header and header.is_common and not header.has_exif:
            return _store(data, header, [], options)
        # EXIF tags, other formats and colour spaces need Pillow.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                return _store_by_pillow(image, data, header, options)
    except (UnusableImageError, InputError, ModuleNotFoundError):  # a missing program says nothing about the image
        raise
    except UnsupportedJpegError as error:
        raise UnusableImageError(str(error)) from error
    except UnidentifiedImageError as error:
        raise UnusableImageError(describe_no_image(data)) from error
    except Exception as error:  # Pillow's decoders may raise any error on damaged bytes
        raise UnusableImageError(f"damaged: {error}") from error


def _store_by_pillow(
    image: ImageFile.ImageFile, data: Bytes, header: JpegHeader | None, options: Options
) -> StoredImage:
    """Store an image that the JPEG header alone does not describe: EXIF tags, other formats and colour spaces."""
    _check_pixels(image.size)
    findings = _find_orientation(image)
    if header and header.is_common:
        return _store(data, header, findings, options)

    # Convert to RGB JPEG. The pixels are then known to decode, so that the check is not repeated.
    kind = " ".join(filter(None, (image.format, image.mode, header and header.coding)))
    rgb, notes = to_rgb(image)
    findings.append((REPAIRED, ", ".join((f"{kind} made RGB JPEG", *notes))))
    stored = _encode_jpeg(rgb)
    fresh = read_header(stored, thorough=False)
    assert fresh
    return _store(stored, fresh, findings, replace(options, decode_check=False))


def _store(data: Bytes, header: JpegHeader, findings: list[tuple[str, str]], options: Options) -> StoredImage:
    """Keep a JPEG or make it smaller; check that it decodes, and add what its header and the decoder report."""
    _check_pixels(header.size)
    size, target, complaint = header.size, target_size(*header.size, options), ""
    decoded = segments = None
    # Decode once in any case: to make it smaller, or to check it.
    if target != size or (options.quality and can_shrink(data, header, options.quality)):
        data, size, complaint = shrink(data, header, target, options.quality)
    elif options.restarts:
        decoded = decode_as_stored(data)
        complaint = decoded[1]
    elif options.decode_check or header.is_cut:
        _, complaint = decode(data, "GRAY")  # grey reads every code too, and costs less than colours

    # Transcode what will be stored.
    if options.restarts:
        restarted = add_restarts(data, decoded)
        data, segments = restarted.data, restarted.segments
        if restarted.obstacle:
            findings.append((NO_RESTARTS, restarted.obstacle))

    # List the findings.
    if header.is_progressive:
        findings.append((PROGRESSIVE, ""))
    if header.trailing_bytes:
        findings.append((TRAILING_BYTES, f"{header.trailing_bytes:,} bytes after the end of the image"))
    if complaint:
        findings.append((SUSPECT, complaint))
    return StoredImage(data, *size, tuple(findings), segments)


def _check_pixels(size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise UnusableImageError(f"{size[0]}x{size[1]} pixels is over the bound of {MAX_PIXELS:,}")


def _find_orientation(image: ImageFile.ImageFile) -> list[tuple[str, str]]:
    """Return a finding if the EXIF tags ask for a rotation, which no reader here applies."""
    if "exif" not in image.info:
        return []
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # Pillow's EXIF reader may raise any error on damaged tags, which no decoder here reads
        return []
    return [(EXIF_ORIENTATION, str(orientation))] if orientation in range(2, 9) else []


def describe_undecodable(data: Bytes, error: Exception) -> str:
    """Return in words for users why an image does not decode; `error` is the decoder's."""
    try:
        check_frame(data)
    except UnsupportedJpegError as found:
        return str(found)
    return describe_no_image(data) if isinstance(error, UnidentifiedImageError) else str(error)


def to_rgb(image: ImageFile.ImageFile) -> tuple[Image.Image, list[str]]:
    """Return the first frame of an image as RGB, 8 bits per value, and notes on what the conversion changed.

    Transparent pixels get a white background. Values are scaled only if the format defines their range.

    Raises:
        UnusableImageError: the range of its values is not defined (32 bits, floating point), so that the result could
            be all black or all white.
    """
    rgb, notes = _to_opaque_rgb(image)
    if (num_frames := _count_frames(image)) > 1:  # counted last: it may leave the image at another frame
        notes.append(f"the first of {num_frames:,} frames")
    return rgb, notes


def _to_opaque_rgb(image: ImageFile.ImageFile) -> tuple[Image.Image, list[str]]:
    """Return the current frame as RGB on white, and a note if that changed it."""
    kind = f"{image.format} {image.mode}"
    image.load()
    # Modes without an alpha channel.
    if image.mode == "F" or image.mode.startswith("I"):
        return _scale_to_eight_bits(image, kind), []
    if image.mode in ("LAB", "HSV"):
        raise UnusableImageError(f"mode {kind}, which is not converted here: save it as an RGB image")
    if not image.has_transparency_data and image.mode not in ("La", "RGBa"):
        return image.convert("RGB"), []
    # Put the image on white, unless its alpha channel has no effect or leaves nothing.
    layer = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
    alpha = layer.getchannel("A")
    least, most = alpha.getextrema()
    if least == OPAQUE:
        return layer.convert("RGB"), []
    if most == 0:
        raise UnusableImageError(f"every pixel of this {kind} is transparent: save it without alpha")
    paper = Image.new("RGB", layer.size, PAPER)
    paper.paste(layer, mask=alpha)
    return paper, ["white behind what is transparent"]


def _count_frames(image: ImageFile.ImageFile) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # Pillow walks through all frames to count them, and any of them may be damaged
        return 1


def _scale_to_eight_bits(image: ImageFile.ImageFile, kind: str) -> Image.Image:
    """Return a grey image of more than 8 bits as RGB, if the format says which value is white."""
    if image.format == "PPM" and image.mode == "I":
        largest, is_inverted = 65535, False  # Pillow scales to this, whatever the maximum in the file
    elif image.format in ("PNG", "JPEG2000") and image.mode.startswith("I;16"):
        largest, is_inverted = 65535, False
    elif image.format == "TIFF" and image.mode.startswith("I;16"):
        largest = 2 ** _first(_read_tag(image, BITS_PER_SAMPLE), 16) - 1
        is_inverted = _first(_read_tag(image, PHOTOMETRIC), 1) == WHITE_IS_ZERO
    else:
        raise UnusableImageError(f"mode {kind}: which of its values is white is not known, save it with 8 bits")
    values_HW = np.asarray(image).astype(np.uint32)
    values_HW = np.minimum(values_HW * 255 // largest, 255).astype(np.uint8)
    return Image.fromarray(255 - values_HW if is_inverted else values_HW).convert("RGB")


def _read_tag(image: Image.Image, tag: int) -> object:
    return image.tag_v2.get(tag)  # type: ignore[attr-defined] # only TIFFs have it


def _first(value: object, default: int) -> int:
    if isinstance(value, Sequence):
        value = value[0] if value else default
    return value if isinstance(value, int) else default


def _encode_jpeg(image: Image.Image) -> bytes:
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=REENCODE_QUALITY, subsampling=0)
    return encoded.getvalue()
