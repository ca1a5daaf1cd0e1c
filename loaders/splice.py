"""Cut a JPEG that holds only a window out of a JPEG with restart markers, without decoding anything.

    find_spans    which rows and columns of segments hold the windows of a plan, and the windows within those
    find_cuts     where the bytes of these segments are, from the lengths in SHARD.seg (prep/segments.py)
    follow_markers, renumber    check that the markers are where the lengths say, and number them
    splice_jpeg   all of it for one image in memory; loaders/splice_reader.py does it for a part of a batch

A spliced JPEG has the quantization and Huffman tables of its source, a frame header with its own size, and the
segments as they are. A decoder gets fewer bytes and fewer MCUs, and the pixels inside the window are those of the
complete image, bit for bit.

Shapes: B images of a batch, P spliced images of a part of it, R their rows of segments, K their segments, L lengths.
"""

from dataclasses import dataclass

import numpy as np

from prep.segments import BASELINE, BLOCK, END_OF_IMAGE, EXTENDED, FIRST_RESTART, NUM_RESTARTS, RECORD

# The start of every spliced JPEG: the image begins, and its three components are YCbCr (JFIF 1.1, pixels are square).
HEAD = b"\xff\xd8" + b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
# libjpeg does not interpolate chroma that is up to 2 pixels wide (jdsample.c): the image must be wider than twice that.
NARROW = 4
FRAMES = (0xFF00 | BASELINE, 0xFF00 | EXTENDED)  # markers of a frame header
MARKER_BYTES = 2  # the least length of a segment: an empty one with the marker after it
SIZE_OFFSET, SIZE_BYTES = 5, 4  # of height and width in a frame header, each a big-endian uint16


class SpliceError(ValueError):
    """The segments' lengths and the image contradict each other."""


@dataclass(frozen=True)
class Spans:
    """The segments of B images that hold the windows of a plan."""

    is_spliced_B: np.ndarray  # bool; False: the complete file is used
    columns_B: np.ndarray  # int64: segments per row of the file
    tops_B: np.ndarray  # int64: the first row of MCUs
    bottoms_B: np.ndarray  # the row after the last one
    lefts_B: np.ndarray  # the first segment of each row
    rights_B: np.ndarray  # the segment after the last one
    windows_B4: np.ndarray  # int64: the windows within the spliced images: top, left, height, width
    sizes_B2: np.ndarray  # int64: height, width of the spliced images


def find_spans(
    records_B: np.ndarray, heights_B: np.ndarray, widths_B: np.ndarray, windows_B4: np.ndarray, damaged_B: np.ndarray
) -> Spans:
    """Return the fewest segments with which each window is decoded to the same pixels as with the complete image.

    A decoder interpolates subsampled chroma: a pixel depends on its neighbours. So there is one pixel around a window
    that must be in the segments too.

    Args:
        records_B: of the images in SHARD.seg, `prep.segments.RECORD`; those with interval 0 are not spliced.
        heights_B, widths_B: of the complete images.
        windows_B4: of the plan: top, left, height, width.
        damaged_B: bool: images that are not read.
    """
    is_spliced_B = (records_B["interval"] > 0) & ~damaged_B
    mcu_heights_B, mcu_widths_B, intervals_B = (
        np.maximum(records_B[name], 1).astype(np.int64) for name in ("mcu_height", "mcu_width", "interval")
    )
    segment_widths_B = mcu_widths_B * intervals_B
    tops_B, lefts_B, window_heights_B, window_widths_B = windows_B4.T

    # Rows and columns, with the neighbours of the window.
    above_B, beside_B = (mcu_heights_B > BLOCK).astype(np.int64), (mcu_widths_B > BLOCK).astype(np.int64)
    first_rows_B = np.maximum(tops_B - above_B, 0) // mcu_heights_B
    last_rows_B = -(-np.minimum(tops_B + window_heights_B + above_B, heights_B) // mcu_heights_B)
    first_columns_B = np.maximum(lefts_B - beside_B, 0) // segment_widths_B
    last_columns_B = -(-np.minimum(lefts_B + window_widths_B + beside_B, widths_B) // segment_widths_B)

    # The last column may be so narrow that its chroma would not be interpolated: take the one before it too.
    narrow_B = np.maximum(widths_B - (NARROW + 1) * beside_B, 0) // segment_widths_B
    first_columns_B = np.minimum(first_columns_B, narrow_B)

    # The spliced images.
    corners_B2 = np.stack([first_rows_B * mcu_heights_B, first_columns_B * segment_widths_B], axis=1)
    ends_B2 = np.stack([last_rows_B * mcu_heights_B, last_columns_B * segment_widths_B], axis=1)
    whole_B2 = np.stack([heights_B, widths_B], axis=1)
    moved_B4 = np.concatenate([windows_B4[:, :2] - corners_B2, windows_B4[:, 2:]], axis=1)
    return Spans(
        is_spliced_B=is_spliced_B,
        columns_B=-(-widths_B // segment_widths_B),
        tops_B=first_rows_B,
        bottoms_B=last_rows_B,
        lefts_B=first_columns_B,
        rights_B=last_columns_B,
        windows_B4=np.where(is_spliced_B[:, None], moved_B4, windows_B4),
        sizes_B2=np.where(is_spliced_B[:, None], np.minimum(ends_B2, whole_B2) - corners_B2, whole_B2),
    )


@dataclass(frozen=True)
class Cuts:
    """Where the needed segments of P images are, and what is expected there. Offsets in bytes, int64."""

    starts_P: np.ndarray  # where the first needed segment begins, counted from the image's first segment
    stops_P: np.ndarray  # where the last one ends
    sizes_P: np.ndarray  # bytes of all needed segments
    row_starts_R: np.ndarray  # where the needed segments of a row begin, counted from the image's first needed one
    row_places_R: np.ndarray  # where they begin in the spliced image
    row_sizes_R: np.ndarray
    row_markers_R: np.ndarray  # uint8: the marker before them in the file; 0: the image's first segment has none
    row_counts_P: np.ndarray
    ends_K: np.ndarray  # where each segment ends in the spliced image, after its marker
    markers_K: np.ndarray  # uint8: its marker in the file
    new_markers_K: np.ndarray  # uint8: its marker in the spliced image
    counts_P: np.ndarray  # segments


def find_cuts(
    spans: Spans, chosen_P: np.ndarray, num_lengths_P: np.ndarray, lengths_L: np.ndarray, bodies_P: np.ndarray
) -> Cuts:
    """Return where the segments of some images of a batch are.

    Args:
        chosen_P: indices of the images, all of which are spliced; at least one.
        num_lengths_P: segments of each complete image.
        lengths_L: uint16: of each image the lengths of its first `bottoms * columns` segments, image after image.
        bodies_P: added to the offsets in each spliced image: where its first segment will be.
    """
    tops_P, bottoms_P, lefts_P, rights_P, columns_P = (
        each_B[chosen_P] for each_B in (spans.tops_B, spans.bottoms_B, spans.lefts_B, spans.rights_B, spans.columns_B)
    )
    # Where every segment ends, if all are in one row; `firsts` are the indices of each image's first one.
    ends_L = np.cumsum(lengths_L, dtype=np.int64)
    known_P = bottoms_P * columns_P
    firsts_P = np.cumsum(known_P) - known_P

    # The rows: the index of their first needed segment, and where they are in the file.
    row_counts_P, widths_P = bottoms_P - tops_P, rights_P - lefts_P
    rows_before_P = np.cumsum(row_counts_P) - row_counts_P
    images_R = np.repeat(np.arange(len(chosen_P)), row_counts_P)
    rows_R = np.arange(len(images_R)) + (tops_P - rows_before_P)[images_R]
    first_R = rows_R * columns_P[images_R] + (firsts_P + lefts_P)[images_R]
    numbers_R, widths_R = first_R - firsts_P[images_R], widths_P[images_R]
    starts_R, stops_R = ends_L[first_R] - lengths_L[first_R], ends_L[first_R + widths_R - 1]
    starts_P, stops_P = starts_R[rows_before_P], stops_R[rows_before_P + row_counts_P - 1]

    # The rows in the spliced image: one after the other.
    sizes_R = stops_R - starts_R
    ends_R = np.cumsum(sizes_R)
    sizes_P = np.add.reduceat(sizes_R, rows_before_P)
    places_R = ends_R - sizes_R + (bodies_P - (np.cumsum(sizes_P) - sizes_P))[images_R]

    # The segments, each as far behind the start of its row as in the file. Their markers are numbered modulo 8.
    counts_P = row_counts_P * widths_P
    firsts_K = np.cumsum(widths_R) - widths_R
    numbers_K = np.arange(int(counts_P.sum()))
    ends_K = ends_L[numbers_K + np.repeat(first_R - firsts_K, widths_R)] + np.repeat(places_R - starts_R, widths_R)
    last_P = np.cumsum(counts_P) - 1
    is_end_P = (bottoms_P * columns_P == num_lengths_P) & (rights_P == columns_P)
    markers_K = _number(numbers_K, numbers_R - firsts_K, widths_R, last_P[is_end_P])
    new_markers_K = _number(numbers_K, counts_P - 1 - last_P, counts_P, last_P)

    base_P = ends_L[firsts_P] - lengths_L[firsts_P]
    return Cuts(
        starts_P=starts_P - base_P,
        stops_P=stops_P - base_P,
        sizes_P=sizes_P,
        row_starts_R=starts_R - starts_P[images_R],
        row_places_R=places_R,
        row_sizes_R=sizes_R,
        row_markers_R=np.where(numbers_R, FIRST_RESTART + (numbers_R - 1) % NUM_RESTARTS, 0).astype(np.uint8),
        row_counts_P=row_counts_P,
        ends_K=ends_K,
        markers_K=markers_K,
        new_markers_K=new_markers_K,
        counts_P=counts_P,
    )


def _number(numbers_K: np.ndarray, shifts: np.ndarray, repeats: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return the markers after segments, uint8.

    Args:
        shifts: added to the segments' numbers, each to as many as `repeats` says.
        ends: the indices of the segments that end an image.
    """
    shifts_K = np.repeat((shifts % NUM_RESTARTS).astype(np.uint8), repeats)
    markers_K = (numbers_K.astype(np.uint8) + shifts_K) % NUM_RESTARTS + np.uint8(FIRST_RESTART)
    markers_K[ends] = END_OF_IMAGE
    return markers_K


def fits(records_N: np.ndarray, heights_N: np.ndarray, widths_N: np.ndarray, sizes_N: np.ndarray) -> np.ndarray:
    """Check whether the records of SHARD.seg can belong to images of these sides and sizes in bytes, bool [N].

    A record with interval 0 says nothing and fits every image.
    """
    values = {name: records_N[name].astype(np.int64) for name in RECORD.names or ()}
    is_used_N = values["interval"] > 0
    mcu_heights_N, mcu_widths_N = np.maximum(values["mcu_height"], 1), np.maximum(values["mcu_width"], 1)
    num_rows_N, mcus_per_row_N = -(-heights_N // mcu_heights_N), -(-widths_N // mcu_widths_N)
    scans_N = values["tables_start"] + values["tables_size"]
    fits_N = (values["num_lengths"] * values["interval"] == num_rows_N * mcus_per_row_N) & (
        mcus_per_row_N % np.maximum(values["interval"], 1) == 0
    )
    fits_N &= (mcu_heights_N % BLOCK == 0) & (mcu_widths_N % BLOCK == 0)
    fits_N &= (values["tables_start"] >= 2) & (values["frame"] + SIZE_OFFSET + SIZE_BYTES <= values["tables_size"])
    return ~is_used_N | (fits_N & (scans_N + values["num_lengths"] <= sizes_N))


def follow_markers(buffer: np.ndarray, starts_R: np.ndarray, cuts: Cuts) -> np.ndarray:
    """Return whether the marker that is expected before each row of needed segments is there, bool [P].

    Args:
        buffer: bytes.
        starts_R: where the rows begin in it.
    """
    is_right_R = (buffer[starts_R - 2] == 0xFF) & (buffer[starts_R - 1] == cuts.row_markers_R)
    is_right_R |= cuts.row_markers_R == 0
    return np.logical_and.reduceat(is_right_R, np.cumsum(cuts.row_counts_P) - cuts.row_counts_P)


def renumber(buffer: np.ndarray, cuts: Cuts) -> np.ndarray:
    """Number the markers of spliced images in a buffer of bytes; return whether all were as expected, bool [P]."""
    codes_K, bytes_K = cuts.ends_K - 1, cuts.ends_K - 2
    is_right_K = (buffer[bytes_K] == 0xFF) & (buffer[codes_K] == cuts.markers_K)
    buffer[codes_K] = cuts.new_markers_K
    return np.logical_and.reduceat(is_right_K, np.cumsum(cuts.counts_P) - cuts.counts_P)


def encode_size(heights_P: np.ndarray, widths_P: np.ndarray) -> np.ndarray:
    """Return heights and widths as a frame header stores them, uint8 [P, SIZE_BYTES]."""
    return np.ascontiguousarray(np.stack([heights_P, widths_P], axis=-1).astype(">u2")).view(np.uint8)


def splice_jpeg(
    data: bytes | memoryview | np.ndarray, record: np.ndarray, lengths: np.ndarray, spans: Spans, i: int
) -> bytes:
    """Return the spliced JPEG of an image of a batch; the complete JPEG if it is not spliced.

    Args:
        data: its complete JPEG.
        record: of SHARD.seg.
        lengths: of all its segments.
        spans: of the batch.
        i: its index in the batch.

    Raises:
        SpliceError: data and lengths contradict each other.
    """
    if not spans.is_spliced_B[i]:
        return bytes(data)
    content = np.frombuffer(data, np.uint8)
    scan = int(record["tables_start"]) + int(record["tables_size"])
    num_needed = int(spans.bottoms_B[i] * spans.columns_B[i])
    if len(lengths) != record["num_lengths"] or num_needed > len(lengths) or scan > len(content):
        raise SpliceError("it has fewer segments than its size needs")
    if int(lengths[:num_needed].min()) < MARKER_BYTES:
        raise SpliceError("a segment is shorter than its marker")
    cuts = find_cuts(spans, np.array([i]), np.array([len(lengths)]), lengths[:num_needed], np.zeros(1, np.int64))
    if scan + int(cuts.stops_P[0]) > len(content):
        raise SpliceError("its segments are longer than the file")

    # The tables, with the spliced image's size in the frame header.
    tables = content[int(record["tables_start"]) : scan].copy()
    frame = int(record["frame"])
    if frame + SIZE_OFFSET + SIZE_BYTES > len(tables) or int(tables[frame]) << 8 | int(tables[frame + 1]) not in FRAMES:
        raise SpliceError("its frame header is not where it should be")
    tables[frame + SIZE_OFFSET :][:SIZE_BYTES] = encode_size(*spans.sizes_B2[i])

    # The segments, row after row, and their markers.
    starts_R = scan + int(cuts.starts_P[0]) + cuts.row_starts_R
    rows = zip(starts_R.tolist(), cuts.row_sizes_R.tolist(), strict=True)
    body = np.concatenate([content[start : start + size] for start, size in rows])
    if not (follow_markers(content, starts_R, cuts) & renumber(body, cuts)).all():
        raise SpliceError("a marker is not where it should be")
    return b"".join([HEAD, tables.tobytes(), body.tobytes()])
