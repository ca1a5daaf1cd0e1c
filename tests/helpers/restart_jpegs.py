"""Generated JPEGs with restart markers, of every kind: colours, subsampling, sizes, intervals, three encoders.

Pillow and OpenCV write with libjpeg-turbo what cameras write. The third encoder, `write_random`, is our own: it writes
random coefficients with any sampling factors, also those that the libraries only read.
"""

import io
import random
import struct
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from hypothesis import strategies as st
from PIL import Image, ImageFile

Factors = tuple[tuple[int, int], ...]  # horizontal and vertical, of each component

# The kinds of JPEG, and those that each encoder can write.
FACTORS: dict[str, Factors] = {
    "grey": ((1, 1),),
    "grey of 2x2": ((2, 2),),  # as some cameras write it: the factors of a single component mean nothing
    "444": ((1, 1), (1, 1), (1, 1)),
    "422": ((2, 1), (1, 1), (1, 1)),
    "420": ((2, 2), (1, 1), (1, 1)),
    "440": ((1, 2), (1, 1), (1, 1)),
    "411": ((4, 1), (1, 1), (1, 1)),
    "441": ((1, 4), (1, 1), (1, 1)),
    "410": ((4, 2), (1, 1), (1, 1)),
    "444 of 2x1": ((2, 1), (2, 1), (2, 1)),
    "422 of 2x2": ((2, 2), (1, 2), (1, 2)),
    "440 of 2x2": ((2, 2), (2, 1), (2, 1)),
    "chroma of two sizes": ((2, 2), (2, 1), (1, 1)),
    "finer chroma": ((1, 1), (2, 1), (1, 2)),
}
PILLOW = {"444": 0, "422": 1, "420": 2}
OPENCV = {
    "444": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    "422": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "420": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    "440": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440,
    "411": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411,
}
USUAL = ("grey", *OPENCV)  # what every decoder reads
BLOCK, QUANTUM = 8, 16  # pixels of a block's side; the step of all coefficients that `write_random` writes
MAXBLOCK = 1 << 23  # bytes: Pillow's own buffer is too small for noise

JFIF = b"JFIF\0\1\1\0\0\1\0\1\0\0"
ADOBE_RGB, ADOBE_YCC = (b"Adobe\0\x64\0\0\0\0" + bytes([transform]) for transform in range(2))
SOI, EOI = b"\xff\xd8", b"\xff\xd9"
DQT, DHT, SOF0, SOF1, SOF2, SOF9, SOS, DRI, APP0, APP1, APP14, COM = (
    *(0xDB, 0xC4, 0xC0, 0xC1, 0xC2, 0xC9, 0xDA, 0xDD),
    *(0xE0, 0xE1, 0xEE, 0xFE),
)


@dataclass(frozen=True)
class Kind:
    """All that a generated JPEG depends on."""

    colours: str  # of FACTORS
    height: int
    width: int
    interval: int  # MCUs between two restart markers; 0: no markers
    encoder: str = "opencv"  # or "pillow", "random"
    quality: int = 90
    seed: int = 0

    @property
    def mcu_size(self) -> tuple[int, int]:
        """Height and width of an MCU in pixels."""
        factors = FACTORS[self.colours]
        if len(factors) == 1:
            return BLOCK, BLOCK
        return BLOCK * max(v for _, v in factors), BLOCK * max(h for h, _ in factors)

    @property
    def num_mcus(self) -> tuple[int, int]:
        """Rows of MCUs, and MCUs of a row."""
        return -(-self.height // self.mcu_size[0]), -(-self.width // self.mcu_size[1])


def divisors(number: int) -> list[int]:
    return [i for i in range(1, number + 1) if number % i == 0]


def encoders_of(colours: str) -> list[str]:
    """The encoders that can write a kind."""
    able = {"pillow": colours == "grey" or colours in PILLOW, "opencv": colours in USUAL, "random": True}
    return [name for name, is_able in able.items() if is_able]


@st.composite
def kinds(draw: st.DrawFn, colours: tuple[str, ...] = tuple(FACTORS), most: int = 120) -> Kind:
    """JPEGs that can be cut into segments, of up to `most` pixels a side."""
    chosen = draw(st.sampled_from(colours))
    height, width = draw(st.integers(1, most)), draw(st.integers(1, most))
    encoder = draw(st.sampled_from(encoders_of(chosen)))
    kind = Kind(chosen, height, width, 0, encoder, draw(st.sampled_from([5, 50, 90, 100])), draw(st.integers(0, 9)))
    interval = draw(st.sampled_from(divisors(kind.num_mcus[1])))
    return Kind(chosen, height, width, interval, encoder, kind.quality, kind.seed)


def write_jpeg(kind: Kind, **options: Any) -> bytes:
    """Return the JPEG of a kind. `options`: more of Pillow's."""
    if kind.encoder == "random":
        size = kind.height, kind.width
        return write_random(size, FACTORS[kind.colours], kind.interval, kind.seed)
    pixels_HWC = draw_pixels(kind.height, kind.width, kind.seed)
    if kind.encoder == "opencv":
        flags = [cv2.IMWRITE_JPEG_QUALITY, kind.quality, cv2.IMWRITE_JPEG_RST_INTERVAL, kind.interval]
        if kind.colours != "grey":
            flags += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, OPENCV[kind.colours]]
        pixels = pixels_HWC[:, :, 0] if kind.colours == "grey" else pixels_HWC
        return cv2.imencode(".jpg", pixels, flags)[1].tobytes()
    image, encoded = Image.fromarray(pixels_HWC), io.BytesIO()
    image = image.convert("L") if kind.colours == "grey" else image
    before, ImageFile.MAXBLOCK = ImageFile.MAXBLOCK, MAXBLOCK
    options = {"subsampling": PILLOW.get(kind.colours, 0), "restart_marker_blocks": kind.interval, **options}
    try:
        image.save(encoded, "JPEG", quality=kind.quality, **options)
    finally:
        ImageFile.MAXBLOCK = before
    return encoded.getvalue()


def draw_pixels(height: int, width: int, seed: int) -> np.ndarray:
    """Return an image with smooth parts, edges and noise: uint8 [height, width, 3]."""
    rng = np.random.default_rng([height, width, seed])
    coarse = rng.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    noise = rng.integers(-128, 128, (height, width, 3)) * (rng.random((height, width, 1)) < 0.3)
    return (smooth + noise).clip(0, 255).astype(np.uint8)


# The markers of a JPEG, to be put together in other ways.


def segment(marker: int, payload: bytes = b"") -> bytes:
    """Return a marker and its payload, with its length."""
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def take_apart(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """Return the marker segments of a JPEG up to the scan's header, and what follows them."""
    segments, position = [], 2
    while not segments or segments[-1][0] != SOS:
        _, marker, length = struct.unpack_from(">BBH", data, position)
        segments.append((marker, data[position + 4 : position + 2 + length]))
        position += 2 + length
    return segments, data[position:]


def put_together(segments: list[tuple[int, bytes]], scan: bytes) -> bytes:
    return SOI + b"".join(segment(marker, payload) for marker, payload in segments) + scan


# An encoder of random coefficients.

DC_SYMBOLS = bytes(range(12))  # numbers of bits; all codes of a table have the same length, so a code is an index
AC_SYMBOLS = bytes(sorted([0x00, 0xF0, *(run << 4 | size for run in range(16) for size in range(1, 11))]))
DC_BITS, AC_BITS = 4, 8
MOST_DC, MOST_AC, MOST_NONZERO = 60, 9, 4  # of values in steps of QUANTUM, and how many AC values of a block are not 0


def write_random(size: tuple[int, int], factors: Factors, interval: int, seed: int, jfif: bool = True) -> bytes:
    """Return a baseline JPEG of random coefficients.

    Args:
        size: height and width in pixels.
        factors: sampling factors; components are named 1, 2, ...
        interval: MCUs between restart markers; 0: none.
        seed: of the coefficients.
        jfif: whether there is a JFIF marker.
    """
    # The header.
    parts = [SOI, segment(APP0, JFIF) if jfif else b"", segment(DQT, b"\0" + bytes([QUANTUM]) * 64)]
    fields = b"".join(bytes([i + 1, h << 4 | v, 0]) for i, (h, v) in enumerate(factors))
    parts.append(segment(SOF0, struct.pack(">BHHB", 8, *size, len(factors)) + fields))
    for table, bits, symbols in ((0x00, DC_BITS, DC_SYMBOLS), (0x10, AC_BITS, AC_SYMBOLS)):
        counts = bytes(len(symbols) if length == bits else 0 for length in range(1, 17))
        parts.append(segment(DHT, bytes([table]) + counts + symbols))
    if interval:
        parts.append(segment(DRI, struct.pack(">H", interval)))
    named = b"".join(bytes([i + 1, 0]) for i in range(len(factors)))
    parts.append(segment(SOS, bytes([len(factors)]) + named + b"\0\x3f\0"))

    # The scan.
    widest, highest = (max(sizes) for sizes in zip(*factors, strict=True))
    blocks = [h * v for h, v in factors]
    if len(factors) == 1:  # is coded block by block
        widest, highest, blocks = 1, 1, [1]
    num_mcus = -(-size[0] // (BLOCK * highest)) * -(-size[1] // (BLOCK * widest))
    draw, step = random.Random(seed), interval or num_mcus
    for number, first in enumerate(range(0, num_mcus, step)):
        if first:
            parts.append(bytes([0xFF, 0xD0 + (number - 1) % 8]))
        parts.append(_write_segment(draw, blocks, min(step, num_mcus - first)))
    return b"".join((*parts, EOI))


def _write_segment(draw: random.Random, blocks: list[int], num_mcus: int) -> bytes:
    """Return the entropy-coded data of some MCUs with `blocks` blocks of each component."""
    bits, before = [], [0] * len(blocks)
    for _ in range(num_mcus):
        for component, number in enumerate(blocks):
            for _ in range(number):
                value = draw.randint(-MOST_DC, MOST_DC)
                bits.append(_write_block(draw, value - before[component]))
                before[component] = value
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")


def _write_block(draw: random.Random, difference: int) -> str:
    """Return the bits of a block: the difference of its DC value, and a few AC values."""
    size, tail = _write_value(difference)
    parts, place = [f"{size:0{DC_BITS}b}", tail], 0
    for _ in range(draw.randint(0, MOST_NONZERO)):
        run = draw.randrange(16)
        place += run + 1
        if place >= BLOCK * BLOCK:
            break
        size, tail = _write_value(draw.choice((-1, 1)) * draw.randint(1, MOST_AC))
        parts += [f"{AC_SYMBOLS.index(run << 4 | size):0{AC_BITS}b}", tail]
    return "".join((*parts, f"{AC_SYMBOLS.index(0):0{AC_BITS}b}"))


def _write_value(value: int) -> tuple[int, str]:
    """Return the number of a value's bits, and the bits: those of a negative one are inverted."""
    size = abs(value).bit_length()
    return size, f"{value if value > 0 else value + (1 << size) - 1:0{size}b}" if size else ""
