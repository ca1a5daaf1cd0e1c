"""JPEGs with libjpeg-turbo: read a header, decode strictly in full, and make a JPEG smaller."""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from prep.dataset import Options

START_OF_IMAGE, START_OF_SCAN, END_OF_IMAGE = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
SEGMENT = struct.Struct(">BBH")  # 0xFF, the marker, and the length of what follows it
FRAME = struct.Struct(">BHHB")  # of a frame header: bits per sample, height, width, number of components
SAMPLE_BITS, NUM_COMPONENTS = 8, (1, 3, 4)  # those that libjpeg-turbo supports, in Pillow and in DALI
APP1 = 0xE1  # EXIF, or XMP, which may also contain an orientation
# ITU-T T.81, table B.1: start-of-frame markers; the others are lossless, hierarchical or arithmetic.
CODINGS = {0xC0: "baseline", 0xC1: "extended", 0xC2: "progressive"}
START_OF_FRAME = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # without DHT, JPG and DAC
MAX_SCANS = 500  # a progressive file with thousands takes minutes to decode, even if it is small
Bytes = bytes | memoryview
SHRINK_QUALITY = 90  # if the options give a size and no quality


class UnsupportedJpegError(ValueError):
    """Raised for a JPEG with samples or components that no decoder here supports; the message says which."""


@dataclass(frozen=True)
class JpegHeader:
    """The facts in a JPEG's markers; `is_common`: every decoder reads it in the same way."""

    size: tuple[int, int]  # width, height in pixels as stored
    coding: str
    subsampling: str  # of the chroma, as simplejpeg names it: "444", "420", ..., "Gray"
    is_common: bool  # Huffman-coded, YCbCr or grey
    has_exif: bool
    is_cut: bool  # has no end-of-image marker
    trailing_bytes: int  # after that marker

    @property
    def is_progressive(self) -> bool:
        return self.coding == "progressive"


def _turbo() -> Any:
    """Return simplejpeg, imported at its first use: verifying or adopting shards may not need a decoder."""
    import simplejpeg  # noqa: PLC0415

    return simplejpeg


def read_header(data: Bytes, thorough: bool) -> JpegHeader | None:
    """Read a JPEG's markers; return None if the bytes are not a JPEG or are damaged before the first scan.

    Args:
        thorough: search for the end marker even if the last bytes are one: bytes may follow an earlier end.

    Raises:
        UnsupportedJpegError: it does not have 8 bits per sample, or has a number of components that no decoder reads.
        ValueError: it has too many scans.
    """
    # Read the frame header, and refuse files made to take minutes.
    try:
        markers, scan = _find_markers(data)
        height, width, colours, subsampling = _turbo().decode_jpeg_header(data)
        size = int(width), int(height)
    except UnsupportedJpegError:
        raise
    except ValueError:
        return None
    frame = next((marker for marker in markers if marker in START_OF_FRAME), 0)
    coding = CODINGS.get(frame, f"coding {frame:#x}")
    is_progressive = coding == "progressive"
    if is_progressive and bytes(data).count(START_OF_SCAN, scan) > MAX_SCANS:
        raise ValueError(f"more than {MAX_SCANS} scans")

    # Find the end of the image.
    end = len(data) - len(END_OF_IMAGE)
    if thorough or data[end:] != END_OF_IMAGE:
        end = _find_end(data, scan)
    trailing_bytes = len(data) - end - len(END_OF_IMAGE) if end >= 0 else 0

    is_common = frame in CODINGS and colours in ("YCbCr", "Gray")
    kind = coding if is_common else f"{coding} {colours}"
    return JpegHeader(size, kind, subsampling, is_common, APP1 in markers, end < 0, trailing_bytes)


def _find_end(data: Bytes, scan: int) -> int:
    """Return the offset of the first end marker after `scan`, or -1.

    Within a scan 0xFF is followed by 0 or a restart marker, so that the first end marker found is the real one.
    """
    codes = np.frombuffer(data, np.uint8, offset=scan)
    found = np.flatnonzero(codes[1:] == END_OF_IMAGE[1])  # four times as fast as bytes.find
    found = found[codes[found] == END_OF_IMAGE[0]]
    return scan + int(found[0]) if len(found) else -1


def _find_markers(data: Bytes) -> tuple[list[int], int]:
    """Return the markers before the first scan, and the scan's offset.

    Raises:
        UnsupportedJpegError: its frame header has values that no decoder supports.
        ValueError: the bytes are not a JPEG, or have no scan.
    """
    markers, scan = [], 0
    for marker, position in walk_markers(data):
        if marker == START_OF_SCAN[1]:
            scan = position
        else:
            markers.append(marker)
        if marker in START_OF_FRAME:
            _check_frame(data, position)
    return markers, scan


def walk_markers(data: Bytes) -> Iterator[tuple[int, int]]:
    """Yield each marker of a JPEG with its offset, up to and with that of the first scan (ITU-T T.81, B.1.1.4).

    Raises:
        ValueError: the bytes are not a JPEG, or have no scan.
    """
    if data[:2] != START_OF_IMAGE:
        raise ValueError("not a JPEG")
    position = 2
    while position + SEGMENT.size <= len(data):
        start, marker, length = SEGMENT.unpack_from(data, position)
        if start != 0xFF or marker == 0xFF:  # fill bytes
            position += 1
            continue
        yield marker, position
        if marker == START_OF_SCAN[1]:
            return
        position += 2 + length
    raise ValueError("no scan")


def _check_frame(data: Bytes, position: int) -> None:
    """Check a frame header (ITU-T T.81, B.2.2): bits per sample, size, components.

    Raises:
        UnsupportedJpegError: no decoder here supports a value.
    """
    if position + SEGMENT.size + FRAME.size > len(data):
        return
    bits, height, width, num_components = FRAME.unpack_from(data, position + SEGMENT.size)
    if bits != SAMPLE_BITS:
        raise UnsupportedJpegError(f"{bits} bits per sample: {SAMPLE_BITS} expected")
    if num_components not in NUM_COMPONENTS:
        raise UnsupportedJpegError(f"{num_components} colour components: 1, 3 or 4 expected")
    if not height or not width:
        raise UnsupportedJpegError(f"{width}x{height} pixels in its header: at least 1x1 expected")


def check_frame(data: Bytes) -> None:
    """Check a JPEG's frame header; other damage is ignored.

    Raises:
        UnsupportedJpegError: as in `read_header`.
    """
    try:
        _find_markers(data)
    except UnsupportedJpegError:
        raise
    except ValueError:
        return


def decode(data: Bytes, colours: str, width: int = 0, height: int = 0) -> tuple[np.ndarray[Any, Any], str]:
    """Decode a JPEG in full, to at least `width` x `height` pixels.

    Returns the pixels and the warning of libjpeg-turbo, empty if there is none. After a warning, Pillow, the reference
    decoder, decides whether the data can be used.

    Args:
        colours: "RGB" for pixels [H, W, 3], "GRAY" for [H, W, 1].

    Raises:
        OSError: the data is too damaged for any decoder.
    """
    try:
        return _turbo().decode_jpeg(data, colours, min_width=width, min_height=height), ""
    except ValueError as error:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(image.convert("L" if colours == "GRAY" else "RGB"))
        return pixels.reshape(*pixels.shape[:2], -1), str(error)


def target_size(width: int, height: int, options: Options) -> tuple[int, int]:
    """Return (width, height) within the options' bounds: never larger, with the same aspect to the nearest pixel."""
    scale = min(1.0, (options.max_side or width + height) / max(width, height))
    scale = min(scale, (options.short_side or width + height) / min(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def can_shrink(data: Bytes, header: JpegHeader, quality: int) -> bool:
    """Check whether re-encoding at a quality may save bytes.

    It cannot if the chroma is already subsampled and no quantization step is finer than those of the quality.
    """
    if header.subsampling not in ("420", "Gray"):
        return True
    wanted = _quantization(quality)
    with Image.open(io.BytesIO(data)) as image:
        tables = image.quantization  # type: ignore[attr-defined]  # only JPEGs have it
    return any(
        step < least
        for number, table in tables.items()
        for step, least in zip(table, wanted[min(number, 1)], strict=True)
    )


@cache
def _quantization(quality: int) -> dict[int, list[int]]:
    """Return libjpeg's quantization tables of a quality: 0 for luma, 1 for chroma."""
    encoded = _turbo().encode_jpeg(np.zeros((16, 16, 3), np.uint8), quality, "RGB", "420")
    with Image.open(io.BytesIO(encoded)) as image:
        return image.quantization  # type: ignore[attr-defined]


def shrink(
    data: Bytes, header: JpegHeader, target: tuple[int, int], quality: int | None
) -> tuple[Bytes, tuple[int, int], str]:
    """Scale a JPEG down to `target` (width, height) by pixel area and re-encode it with 4:2:0 chroma.

    Returns the bytes, their size in pixels and the decoder's warning; the original bytes if the new ones are not fewer.
    """
    colours = "GRAY" if header.subsampling == "Gray" else "RGB"
    pixels, complaint = decode(data, colours, *(target if target != header.size else (0, 0)))
    if target != (pixels.shape[1], pixels.shape[0]):
        pixels = _scale_down(pixels, target)
    subsampling = "Gray" if colours == "GRAY" else "420"
    smaller = _turbo().encode_jpeg(np.ascontiguousarray(pixels), quality or SHRINK_QUALITY, colours, subsampling)
    if len(smaller) < len(data):
        return smaller, target, complaint
    return data, header.size, complaint


def _scale_down(pixels: np.ndarray[Any, Any], target: tuple[int, int]) -> np.ndarray[Any, Any]:
    import cv2  # noqa: PLC0415 - takes 0.2 s, and only this function needs it

    cv2.setNumThreads(1)  # the parallelism is in the worker processes
    return cv2.resize(pixels, target, interpolation=cv2.INTER_AREA).reshape(target[1], target[0], -1)
