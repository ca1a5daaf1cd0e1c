"""Generated JPEGs with their segments as SHARD.seg has them, spliced, decoded and cut to windows."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from helpers.restart_jpegs import Kind, write_jpeg
from loaders.splice import Spans, find_spans, fits, splice_jpeg
from prep.segments import encode_segments, find_segments, lengths_of, parse_records

Window = tuple[int, int, int, int]  # top, left, height, width


@dataclass(frozen=True)
class Restarted:
    """A JPEG with its segments, as they are in SHARD.seg."""

    kind: Kind
    data: bytes
    record: np.ndarray
    lengths: np.ndarray

    def spans(self, *windows: Window, damaged: bool = False) -> Spans:
        """The spans of a batch that has this image once for each window."""
        number = len(windows)
        return find_spans(
            np.repeat(self.record[None], number),
            np.full(number, self.kind.height),
            np.full(number, self.kind.width),
            np.array(windows, np.int64).reshape(-1, 4),
            np.full(number, damaged),
        )

    def fits(self) -> bool:
        """Whether the record can belong to the image."""
        sides_and_size = (np.array([each]) for each in (self.kind.height, self.kind.width, len(self.data)))
        return bool(fits(self.record[None], *sides_and_size)[0])

    def splice(self, spans: Spans, i: int = 0) -> bytes:
        return splice_jpeg(self.data, self.record, self.lengths, spans, i)


def list_segments(kind: Kind, data: bytes) -> Restarted:
    """Write and read the segments of a JPEG."""
    content = encode_segments([find_segments(data)])
    record = parse_records(content, "x.seg", 1)[0]
    return Restarted(kind, data, record, lengths_of(content, record))


def restart(kind: Kind) -> Restarted:
    """Write the JPEG of a kind, and list its segments."""
    restarted = list_segments(kind, write_jpeg(kind))
    assert restarted.record["interval"] == kind.interval
    return restarted


def decode(data: bytes) -> np.ndarray:
    """Pillow's pixels, [H, W] or [H, W, 3]; an incomplete file is an error."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def decode_strictly(data: bytes) -> np.ndarray:
    """simplejpeg's pixels, [H, W] or [H, W, 3]; a warning of libjpeg-turbo is an error."""
    with Image.open(io.BytesIO(data)) as image:
        is_grey = image.mode == "L"
    pixels_HWC = simplejpeg.decode_jpeg(data, "GRAY" if is_grey else "RGB")
    return pixels_HWC[:, :, 0] if is_grey else pixels_HWC


def cut(pixels: np.ndarray, window: Any) -> np.ndarray:
    """Return a window's pixels, all of which must exist."""
    top, left, height, width = (int(each) for each in window)
    assert min(top, left) >= 0 and top + height <= pixels.shape[0] and left + width <= pixels.shape[1]
    return pixels[top : top + height, left : left + width]
