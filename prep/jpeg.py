"""JPEGs by libjpeg-turbo: what a header says, a strict full decode, and making a JPEG smaller."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from prep.dataset import Options

END_OF_IMAGE = b"\xff\xd9"
START_OF_SCAN = 0xDA
# ITU-T T.81, table B.1: start-of-frame markers; the others are lossless, hierarchical or arithmetic.
CODINGS = {0xC0: "baseline", 0xC1: "extended", 0xC2: "progressive"}
START_OF_FRAME = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # less DHT, JPG and DAC
MAX_SCANS = 500  # a progressive file of thousands takes minutes to decode, whatever its size
SHRINK_QUALITY = 90  # where a size is asked for and no quality


@dataclass(frozen=True)
class JpegHeader:
    """What a JPEG's markers tell: `coding` and `is_common` decide whether every decoder can be trusted with it."""

    coding: str
    is_common: bool  # Huffman-coded, YCbCr or grey
    is_cut: bool  # has no end-of-image marker
    trailing_bytes: int  # after that marker

    @property
    def is_progressive(self) -> bool:
        return self.coding == "progressive"


def read_header(data: bytes, thorough: bool) -> JpegHeader:
    """Read a JPEG's markers; `thorough` looks for its end though the last bytes look like one.

    Raises:
        ValueError: there is no scan in it, or too many.
    """
    frame, scan = _find_frame_and_scan(data)
    coding, colours = CODINGS.get(frame, f"coding {frame:#x}"), _find_colours(data)
    if coding == "progressive" and data.count(bytes([0xFF, START_OF_SCAN]), scan) > MAX_SCANS:
        raise ValueError(f"more than {MAX_SCANS} scans")
    is_common = frame in CODINGS and colours in ("YCbCr", "Gray")
    # A scan cannot hold an end marker: in it 0xFF is followed by 0 or by a restart.
    end = data.find(END_OF_IMAGE, scan) if thorough or not data.endswith(END_OF_IMAGE) else len(data) - 2
    trailing_bytes = len(data) - end - len(END_OF_IMAGE) if end >= 0 else 0
    return JpegHeader(coding if is_common else f"{coding} {colours}", is_common, end < 0, trailing_bytes)


def _find_colours(data: bytes) -> str:
    try:
        return simplejpeg.decode_jpeg_header(data)[2]
    except ValueError:
        return "colours unknown"


def _find_frame_and_scan(data: bytes) -> tuple[int, int]:
    """The start-of-frame marker and the offset of the first scan: ITU-T T.81, B.1.1.4."""
    frame, position = 0, 2
    while position + 4 <= len(data):
        marker = data[position + 1]
        if data[position] != 0xFF or marker == 0xFF:  # fill bytes
            position += 1
        elif marker == START_OF_SCAN:
            return frame, position
        else:
            frame = marker if marker in START_OF_FRAME else frame
            position += 2 + int.from_bytes(data[position + 2 : position + 4])
    raise ValueError("no scan")


def decode(data: bytes, colours: str, width: int = 0, height: int = 0) -> tuple[np.ndarray[Any, Any], str]:
    """Decode a whole JPEG to "RGB" (H, W, 3) or "GRAY" (H, W, 1), at `width` x `height` pixels or more.

    Returns the pixels and what libjpeg-turbo warned of, if anything. Pillow, the reference decoder, has the
    last word on whether such data can be used.

    Raises:
        OSError: the data is damaged so that no decoder takes it.
    """
    try:
        return simplejpeg.decode_jpeg(data, colours, min_width=width, min_height=height), ""
    except ValueError as error:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(image.convert("L" if colours == "GRAY" else "RGB"))
        return pixels.reshape(*pixels.shape[:2], -1), str(error)


def target_size(width: int, height: int, options: Options) -> tuple[int, int]:
    """(width, height) that fits the options' bounds: never larger, the aspect kept to the nearest pixel."""
    scale = min(1.0, (options.max_side or width + height) / max(width, height))
    scale = min(scale, (options.short_side or width + height) / min(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def shrink(
    data: bytes, size: tuple[int, int], target: tuple[int, int], quality: int | None
) -> tuple[bytes, tuple[int, int], str]:
    """A JPEG scaled down to `target` (width, height) by pixel area and encoded anew with 4:2:0 chroma.

    Returns the bytes, their size in pixels and what the decoder warned of; the original where that is no longer.
    """
    colours = "GRAY" if simplejpeg.decode_jpeg_header(data)[2] == "Gray" else "RGB"
    pixels, complaint = decode(data, colours, *(target if target != size else (0, 0)))
    if target != (pixels.shape[1], pixels.shape[0]):
        pixels = _scale_down(pixels, target)
    subsampling = "Gray" if colours == "GRAY" else "420"
    smaller = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality or SHRINK_QUALITY, colours, subsampling)
    if len(smaller) < len(data):
        return smaller, target, complaint
    return data, size, complaint


def _scale_down(pixels: np.ndarray[Any, Any], target: tuple[int, int]) -> np.ndarray[Any, Any]:
    import cv2  # noqa: PLC0415 - 0.2 s that only this needs

    cv2.setNumThreads(1)  # the parallelism is in the worker processes
    return cv2.resize(pixels, target, interpolation=cv2.INTER_AREA).reshape(target[1], target[0], -1)
