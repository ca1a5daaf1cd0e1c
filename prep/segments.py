"""The segments of a JPEG with restart markers, and the file `SHARD.seg` that lists those of a shard's images.

At a restart marker the entropy-coded data starts again: the MCUs between two markers, a segment, can be decoded without
those before them. If a whole number of segments covers a row of MCUs, any rectangle of segments is a smaller JPEG, once
the size in its header is changed and the markers are numbered again (loaders/splice.py). An MCU ("minimum coded unit")
is a block of 8 x 8 to 32 x 32 pixels, by the subsampling of the chroma. Markers: ITU-T T.81, annex B.

`SHARD.seg`, all numbers little-endian:

    8 bytes   PENSTSEG
    uint32    1, the version of this layout
    uint32    number of images N
    N records of 24 bytes, see RECORD, in the order of the sample index
    uint16 …  the lengths of all segments, image after image

A length counts the two bytes of the marker that follows the segment: a restart marker, or the end of the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prep.errors import InputError

SUFFIX = ".seg"
MAGIC, VERSION = b"PENSTSEG", 1
HEADER = np.dtype([("magic", "S8"), ("version", "<u4"), ("num_images", "<u4")])
RECORD = np.dtype(
    [
        ("first", "<u8"),  # position of the image's first length in the file, in bytes
        ("tables_start", "<u4"),  # offset in the JPEG of the bytes that every part of it needs: from the first table
        ("tables_size", "<u2"),  # on to the end of the scan's header; the first segment follows
        ("frame", "<u2"),  # offset of the frame header's marker in those bytes
        ("interval", "<u2"),  # MCUs per segment; 0: this image has no usable segments, and all other fields are 0
        ("mcu_width", "u1"),  # pixels
        ("mcu_height", "u1"),
        ("num_lengths", "<u4"),  # segments: rows of MCUs times segments per row
    ]
)
LENGTH = np.dtype("<u2")
MOST = np.iinfo(LENGTH).max  # bytes of a segment, and of the tables

START_OF_IMAGE, APP0, APP14, APP15, COMMENT = 0xD8, 0xE0, 0xEE, 0xEF, 0xFE
BASELINE, EXTENDED, RESTART_INTERVAL, START_OF_SCAN, END_OF_IMAGE = 0xC0, 0xC1, 0xDD, 0xDA, 0xD9
FIRST_RESTART, NUM_RESTARTS = 0xD0, 8  # the markers RST0 to RST7
TABLES = (0xDB, 0xC4, RESTART_INTERVAL, BASELINE, EXTENDED)  # DQT, DHT, DRI and the frame header
BLOCK = 8  # pixels of a side of a block of coefficients
JFIF, LEAST_JFIF = b"JFIF\0", 18  # the name in APP0, and the bytes from which on libjpeg believes the marker
ADOBE, LEAST_ADOBE = b"Adobe", 16  # the same for APP14


@dataclass(frozen=True)
class Segments:
    """The segments of one JPEG. Fields as in RECORD."""

    tables_start: int
    tables_size: int
    frame: int
    interval: int
    mcu_width: int
    mcu_height: int
    lengths: np.ndarray  # uint16, rows of MCUs times segments per row


def segments_name(shard: str) -> str:
    """Return the name of the file with a shard's segments: `train-000000.seg` for `train-000000.tar`."""
    return shard.removesuffix(".tar") + SUFFIX


def find_segments(data: bytes | memoryview | np.ndarray) -> Segments | None:
    """Return the segments of a JPEG, or None if it cannot be cut into rectangles of them.

    It can if it is a baseline JPEG of one scan, grey or YCbCr, with a restart interval that divides its rows of MCUs,
    with every marker where it should be, and with no other markers between its tables.
    """
    codes = np.frombuffer(data, np.uint8)
    try:
        found = _read_header(codes)
    except IndexError:  # the bytes end within the header
        return None
    if found is None:
        return None
    tables_start, frame, scan, interval = found

    # The size of an MCU. A single component is coded block by block, whatever its sampling factors are.
    height, width = (int(codes[frame + 5 + 2 * i]) << 8 | int(codes[frame + 6 + 2 * i]) for i in range(2))
    factors = codes[frame + 11 : frame + 10 + 3 * int(codes[frame + 9]) : 3]
    mcu_width, mcu_height = (
        (BLOCK, BLOCK) if len(factors) == 1 else (BLOCK * int((factors >> 4).max()), BLOCK * int((factors & 15).max()))
    )
    if not (height and width and interval and mcu_width and mcu_height):
        return None
    mcus_per_row, num_rows = -(-width // mcu_width), -(-height // mcu_height)
    if mcus_per_row % interval:
        return None

    # The markers of the scan: RST0, RST1, ... RST7, RST0, ... and the end of the image.
    num_segments = num_rows * (mcus_per_row // interval)
    lengths = _measure_segments(codes[scan:], num_segments)
    if lengths is None or int(lengths.max()) > MOST or scan - tables_start > MOST:
        return None
    return Segments(
        tables_start, scan - tables_start, frame - tables_start, interval, mcu_width, mcu_height, lengths.astype(LENGTH)
    )


def _read_header(codes: np.ndarray) -> tuple[int, int, int, int] | None:
    """Return offsets of the tables, of the frame header and of the scan's data, and the restart interval.

    Return None if the JPEG is not of the kind that `find_segments` accepts.
    """
    position, tables_start, frame, interval = 2, 0, 0, 0
    applications: list[np.ndarray] = []
    if not (codes[0] == 0xFF and codes[1] == START_OF_IMAGE):
        return None
    while codes[position] == 0xFF:
        marker = int(codes[position + 1])
        size = 2 + (int(codes[position + 2]) << 8 | int(codes[position + 3]))
        if APP0 <= marker <= APP15 or marker == COMMENT:
            if tables_start:
                return None  # tables must be together
            applications.append(codes[position : position + size])
        elif marker in TABLES or marker == START_OF_SCAN:
            tables_start = tables_start or position
            if marker in (BASELINE, EXTENDED):
                frame = position
            if marker == RESTART_INTERVAL:
                interval = int(codes[position + 4]) << 8 | int(codes[position + 5])
        else:
            return None
        position += size
        if marker == START_OF_SCAN:
            num_coded = int(codes[position - size + 4])
            is_usable = frame and _is_usable_frame(codes, frame, num_coded, _reads_as_ycc(applications))
            return (tables_start, frame, position, interval) if is_usable else None
    return None


def _reads_as_ycc(applications: list[np.ndarray]) -> bool | None:
    """Return whether application markers say that three components are YCbCr; None: they do not say.

    As in libjpeg: JFIF (APP0) always means YCbCr; without it the last marker of Adobe (APP14) says so, by a byte.
    """
    if any(each[1] == APP0 and _has_name(each, JFIF, LEAST_JFIF) for each in applications):
        return True
    adobe = [each for each in applications if each[1] == APP14 and _has_name(each, ADOBE, LEAST_ADOBE)]
    return bool(adobe[-1][15] == 1) if adobe else None


def _has_name(segment: np.ndarray, name: bytes, least: int) -> bool:
    return len(segment) >= least and segment[4:9].tobytes() == name


def _is_usable_frame(codes: np.ndarray, frame: int, num_coded: int, is_ycc: bool | None) -> bool:
    """Check that a frame has 8 bits per sample, is grey or YCbCr, and that the first scan codes all its components."""
    size = int(codes[frame + 2]) << 8 | int(codes[frame + 3])
    bits, num_components = int(codes[frame + 4]), int(codes[frame + 9])
    if bits != 8 or num_components not in (1, 3) or num_coded != num_components or size != 8 + 3 * num_components:
        return False
    if num_components == 1:
        return True
    names = codes[frame + 10 : frame + 19 : 3].tobytes()
    return names != b"RGB" if is_ycc is None else is_ycc


def _measure_segments(scan: np.ndarray, num_segments: int) -> np.ndarray | None:
    """Return the lengths of a scan's segments, each with the marker after it; None if the markers are not as expected.

    In entropy-coded data 0xFF is followed by 0, and at the end of a segment by a marker.
    """
    places = np.flatnonzero(scan[:-1] == 0xFF)
    codes = scan[places + 1]
    places, codes = places[codes != 0][:num_segments], codes[codes != 0][:num_segments]
    if len(codes) != num_segments:  # a header may claim billions of segments
        return None
    expected = FIRST_RESTART + np.arange(num_segments) % NUM_RESTARTS
    expected[-1] = END_OF_IMAGE
    if (codes != expected).any():
        return None
    return np.diff(places + 2, prepend=0)


# The file.


def encode_segments(images: Sequence[Segments | None]) -> bytes:
    """Return the contents of a SHARD.seg for the images of a shard; None for those without usable segments."""
    records = np.zeros(len(images), RECORD)
    first = HEADER.itemsize + records.nbytes
    for i, found in enumerate(images):
        if found is not None:
            fields = (found.tables_start, found.tables_size, found.frame, found.interval)
            records[i] = (first, *fields, found.mcu_width, found.mcu_height, len(found.lengths))
            first += found.lengths.nbytes
    header = np.array([(MAGIC, VERSION, len(images))], HEADER)
    lengths = [found.lengths.astype(LENGTH).tobytes() for found in images if found is not None]
    return b"".join((header.tobytes(), records.tobytes(), *lengths))


def parse_records(content: bytes, name: str, num_images: int) -> np.ndarray:
    """Return the records, RECORD [num_images], at the beginning of a SHARD.seg.

    Args:
        content: at least the header and the records; more bytes are ignored.
        name: of the file, for the error; its path if that is known.

    Raises:
        InputError: these are not the segments of a shard with so many images.
    """
    size = records_size(num_images)
    advice = f"`python prep/verify.py {name.rpartition('/')[0] or 'FOLDER'}` says how to repair it"
    if wrong := _describe_header(content, num_images):
        raise InputError(f"{name} does not list the segments of {num_images:,} images: {wrong}: {advice}")
    if len(content) < size:
        raise InputError(f"{name} is cut short at byte {len(content):,}, its records take {size:,}: {advice}")
    return np.frombuffer(content[:size], RECORD, offset=HEADER.itemsize)


def _describe_header(content: bytes, num_images: int) -> str:
    """Return in words what is wrong with the header of a SHARD.seg; empty if nothing is."""
    if len(content) < HEADER.itemsize:
        return f"it ends at byte {len(content)}, its header takes {HEADER.itemsize}"
    header = np.frombuffer(content[: HEADER.itemsize], HEADER)[0]
    if header["magic"] != MAGIC:
        return f"it begins with {bytes(header['magic'])!r}, not {MAGIC!r}"
    if header["version"] != VERSION:
        return f"its layout has version {header['version']}, not {VERSION}"
    return f"it lists those of {header['num_images']:,}" if header["num_images"] != num_images else ""


def records_size(num_images: int) -> int:
    """Return the bytes of the header and the records in a SHARD.seg."""
    return HEADER.itemsize + num_images * RECORD.itemsize


def lengths_of(content: bytes, record: np.ndarray) -> np.ndarray:
    """Return the lengths of one image's segments in a complete SHARD.seg: uint16."""
    return np.frombuffer(content, LENGTH, int(record["num_lengths"]), int(record["first"]))
