"""Spliced JPEGs: whole for every decoder, the window's pixels those of the complete image, and no segment too many."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.restart_jpegs import FACTORS, USUAL, Kind, divisors, encoders_of, kinds, write_jpeg
from helpers.splices import Restarted, Window, cut, decode, decode_strictly, list_segments, restart
from hypothesis import given, settings
from hypothesis import strategies as st

from loaders.splice import (
    HEAD,
    Cuts,
    Spans,
    SpliceError,
    encode_size,
    find_cuts,
    find_spans,
    fits,
    follow_markers,
    renumber,
    splice_jpeg,
)
from prep.segments import RECORD, find_segments

BLOCK, NARROW = 8, 4  # pixels of a block; the widest image whose chroma libjpeg does not interpolate
TURBO = tuple(
    colours for colours in FACTORS if colours not in ("410", "chroma of two sizes", "finer chroma")
)  # of simplejpeg


@st.composite
def windows(draw: st.DrawFn, kind: Kind) -> Window:
    """Windows within a kind's pixels; their edges are often those of segments."""

    def draw_part(size: int, step: int) -> tuple[int, int]:
        near = st.builds(lambda place, by: place * step + by, st.integers(0, size // step + 1), st.integers(-2, 2))
        edge = (near | st.integers(0, size)).map(lambda place: min(max(place, 0), size))
        first, last = sorted((draw(edge), draw(edge)))
        first = min(first, size - 1)
        return first, max(1, last - first)

    (top, height), (left, width) = (
        draw_part(kind.height, kind.mcu_size[0]),
        draw_part(kind.width, kind.mcu_size[1] * kind.interval),
    )
    return top, left, height, width


@st.composite
def cases(draw: st.DrawFn, colours: tuple[str, ...] = tuple(FACTORS), most: int = 120) -> tuple[Kind, list[Window]]:
    """A JPEG and a batch of windows."""
    kind = draw(kinds(colours, most))
    return kind, draw(st.lists(windows(kind), min_size=1, max_size=4))


def every_border(kind: Kind, step: int) -> list[Window]:
    """Windows of one pixel at the borders of MCUs, the whole image, and its edges."""
    height, width = kind.height, kind.width
    found: list[Window] = [(0, 0, height, width), (height - 1, 0, 1, width), (0, width - 1, height, 1)]
    rows = [row for row in range(height) if (row + 1) % kind.mcu_size[0] < 2 or row == height - 1]
    columns = [column for column in range(width) if (column + 1) % kind.mcu_size[1] < 2 or column == width - 1]
    return found + [(row, column, 1, 1) for row in rows[::step] for column in columns]


def check_pixels(restarted: Restarted, chosen: list[Window]) -> None:
    """Compare every window's pixels, decoded by Pillow and by simplejpeg, with the complete image's."""
    kind, spans = restarted.kind, restarted.spans(*chosen)
    whole = decode(restarted.data)
    assert spans.is_spliced_B.all()
    for i, window in enumerate(chosen):
        spliced = restarted.splice(spans, i)
        pixels = decode(spliced)
        assert spliced.startswith(HEAD) and pixels.shape[:2] == tuple(spans.sizes_B2[i])
        assert np.array_equal(cut(pixels, spans.windows_B4[i]), cut(whole, window)), (window, spans)
        if kind.colours in TURBO:
            assert np.array_equal(decode_strictly(spliced), pixels)

        # It is itself a JPEG that can be cut, with the same segments.
        again = find_segments(spliced)
        assert again is not None and again.interval == kind.interval
        assert len(again.lengths) == (spans.bottoms_B[i] - spans.tops_B[i]) * (spans.rights_B[i] - spans.lefts_B[i])
        assert len(spliced) == len(HEAD) + again.tables_size + int(again.lengths.sum())


def find_part(first: int, length: int, size: int, mcu: int) -> tuple[int, int]:
    """Return the first needed pixel and the one after the last, of a side: with a neighbour if chroma is subsampled."""
    context = int(mcu > BLOCK)
    return max(0, first - context), min(size, first + length + context)


def check_minimal(restarted: Restarted, chosen: list[Window]) -> None:
    """No row and no column of segments could be left out."""
    kind, spans = restarted.kind, restarted.spans(*chosen)
    (mcu_height, mcu_width), step = kind.mcu_size, kind.mcu_size[1] * kind.interval
    assert (spans.columns_B == kind.num_mcus[1] // kind.interval).all()
    for i, (top, left, height, width) in enumerate(chosen):
        first, last = find_part(top, height, kind.height, mcu_height)
        assert (spans.tops_B[i], spans.bottoms_B[i]) == (first // mcu_height, -(-last // mcu_height))
        first, last = find_part(left, width, kind.width, mcu_width)
        columns = first // step, -(-last // step)
        # The last column alone, if libjpeg would not interpolate its chroma, has the one before it with it.
        is_narrow = columns[0] > 0 and mcu_width > BLOCK and kind.width - columns[0] * step <= NARROW
        assert (spans.lefts_B[i], spans.rights_B[i]) == (columns[0] - is_narrow, columns[1])
        corner = spans.tops_B[i] * mcu_height, spans.lefts_B[i] * step
        assert tuple(spans.windows_B4[i]) == (top - corner[0], left - corner[1], height, width)
        end = min(kind.height, spans.bottoms_B[i] * mcu_height), min(kind.width, spans.rights_B[i] * step)
        assert tuple(spans.sizes_B2[i]) == (end[0] - corner[0], end[1] - corner[1])


@given(cases())
@settings(max_examples=60, deadline=None)
def test_pixels_of_any_window_and_no_segment_too_many(case: tuple[Kind, list[Window]]) -> None:
    kind, chosen = case
    restarted = restart(kind)
    check_pixels(restarted, chosen)
    check_minimal(restarted, chosen)


BORDERS = [
    Kind(colours, *size, interval, encoders_of(colours)[0])
    for colours in FACTORS
    for size in ((37, 66), (35, 69), (33, 100))
    for interval in divisors(Kind(colours, *size, 0).num_mcus[1])[-2:-1] or [1]
]
STRIPS = [
    *(Kind("420", 7, 5000, 313), Kind("444", 7, 5000, 125), Kind("grey", 7, 5000, 1)),
    *(Kind("420", 5000, 7, 1), Kind("440", 5000, 7, 1), Kind("411", 5000, 7, 1), Kind("420", 1, 1, 1)),
    *(Kind("411", 9, 33, 1), Kind("411", 9, 36, 2), Kind("420", 300, 400, 5), Kind("422", 240, 320, 2)),
]


@pytest.mark.parametrize("kind", BORDERS, ids=str)
def test_pixels_at_every_border(kind: Kind) -> None:
    """Of sizes that end 1 to 5 pixels after the border of an MCU."""
    restarted, chosen = restart(kind), every_border(kind, 1)
    check_pixels(restarted, chosen)
    check_minimal(restarted, chosen)


@pytest.mark.parametrize("kind", STRIPS, ids=str)
def test_pixels_of_strips_and_larger_images(kind: Kind) -> None:
    restarted, chosen = restart(kind), every_border(kind, 200)[:40]
    chosen += [(kind.height // 3, kind.width // 3, kind.height // 2 or 1, kind.width // 2 or 1)]
    check_pixels(restarted, chosen)
    check_minimal(restarted, chosen)


def test_a_segment_less_would_change_the_window() -> None:
    """The neighbours count: without them, what is around the window's border changes."""
    restarted = restart(Kind("420", 64, 64, 1))
    window, whole = (16, 16, 32, 32), decode(restarted.data)
    spans = restarted.spans(window)
    assert spans.sizes_B2.tolist() == [[64, 64]]
    fewer = replace(spans, tops_B=np.array([1]), bottoms_B=np.array([3]), lefts_B=np.array([1]), rights_B=np.array([3]))
    fewer = replace(fewer, sizes_B2=np.array([[32, 32]]))
    pixels = decode(restarted.splice(fewer))
    assert pixels.shape == (32, 32, 3)
    differs = (pixels != cut(whole, window)).any(axis=2)
    assert differs[0].any() and differs[-1].any() and differs[:, 0].any() and differs[:, -1].any()
    assert not differs[1:-1, 1:-1].any()


def test_what_is_not_spliced_stays_as_it_is() -> None:
    kind = Kind("420", 40, 96, 2)
    restarted, window = restart(kind), (5, 40, 9, 9)
    plain = list_segments(kind, write_jpeg(replace(kind, interval=0)))
    for each, spans in ((restarted, restarted.spans(window, damaged=True)), (plain, plain.spans(window))):
        assert not spans.is_spliced_B.any() and spans.is_spliced_B.dtype == bool
        assert spans.windows_B4.tolist() == [list(window)] and spans.sizes_B2.tolist() == [[40, 96]]
        assert each.splice(spans) == each.data


def test_a_batch_of_different_images() -> None:
    """Each as if it were alone."""
    chosen: list[tuple[Restarted, Window]] = []
    for number, colours in enumerate(FACTORS):
        kind = Kind(colours, 50 + number, 100 + number, 0, encoders_of(colours)[-1])
        kind = replace(kind, interval=divisors(kind.num_mcus[1])[number % 2])
        chosen.append((restart(kind), (number, 3 * number, 20, 30)))
    plain = Kind("420", 50, 100, 0)
    chosen.insert(2, (list_segments(plain, write_jpeg(plain)), (1, 2, 3, 4)))
    damaged = [number == 5 for number in range(len(chosen))]
    spans = find_spans(
        np.stack([each.record for each, _ in chosen]),
        np.array([each.kind.height for each, _ in chosen]),
        np.array([each.kind.width for each, _ in chosen]),
        np.array([window for _, window in chosen]),
        np.array(damaged),
    )
    assert spans.is_spliced_B.tolist() == [number not in (2, 5) for number in range(len(chosen))]
    for i, (each, window) in enumerate(chosen):
        alone = each.spans(window, damaged=damaged[i])
        for name in ("is_spliced_B", "windows_B4", "sizes_B2"):
            assert np.array_equal(getattr(spans, name)[i], getattr(alone, name)[0])
        assert each.splice(spans, i) == each.splice(alone)
        assert np.array_equal(cut(decode(each.splice(spans, i)), spans.windows_B4[i]), cut(decode(each.data), window))


def test_data_of_any_kind_of_bytes() -> None:
    restarted = restart(Kind("422", 40, 96, 3))
    spans = restarted.spans((5, 40, 9, 9))
    views = (memoryview(restarted.data), np.frombuffer(restarted.data, np.uint8))
    for view in views:
        spliced = splice_jpeg(view, restarted.record, restarted.lengths, spans, 0)
        assert type(spliced) is bytes and spliced == restarted.splice(spans)


def test_the_segments_of_a_spliced_jpeg_are_those_of_its_source() -> None:
    """All but the size and the numbers of the markers."""
    kind = Kind("444", 100, 48, 2)
    restarted = restart(kind)
    spans = restarted.spans((17, 17, 15, 30))  # rows 2 and 3, columns 1 and 2
    assert (spans.tops_B[0], spans.bottoms_B[0], spans.lefts_B[0], spans.rights_B[0]) == (2, 4, 1, 3)
    record = restarted.record
    start, frame = int(record["tables_start"]), int(record["frame"])
    scan = start + int(record["tables_size"])
    ends = scan + np.cumsum(restarted.lengths.astype(int))
    tables = bytearray(restarted.data[start:scan])
    assert tables[frame + 5 : frame + 9] == bytes([0, 100, 0, 48])
    tables[frame + 5 : frame + 9] = bytes([0, 16, 0, 32])
    pieces = [restarted.data[ends[k] - restarted.lengths[k] : ends[k] - 2] for k in (7, 8, 10, 11)]
    markers = [b"\xff\xd0", b"\xff\xd1", b"\xff\xd2", b"\xff\xd9"]
    expected = HEAD + bytes(tables) + b"".join(piece + end for piece, end in zip(pieces, markers, strict=True))
    assert restarted.splice(spans) == expected
    assert bytes.fromhex("ffd8 ffe0 0010 4a46494600 0101 00 0001 0001 00 00") == HEAD


@st.composite
def grids(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """The lengths of an image's segments, by row and column, and some of its rows and columns."""
    rows, columns = draw(st.integers(1, 40)), draw(st.integers(1, 9))
    lengths = np.random.default_rng(draw(st.integers(0, 99))).integers(2, 5000, (rows, columns)).astype(np.uint16)
    (top, bottom), (left, right) = (
        sorted(draw(st.lists(st.integers(0, most), min_size=2, max_size=2, unique=True))) for most in (rows, columns)
    )
    return lengths, (top, bottom, left, right)


def check_starts(cuts: Cuts) -> None:
    """The markers before rows are found, or one of them is missed, in a buffer of 8 bytes per row."""
    starts_R = np.arange(len(cuts.row_markers_R)) * 8 + 8
    buffer = np.full(int(starts_R[-1]) + 1, 0xFF, np.uint8)
    buffer[starts_R - 1] = cuts.row_markers_R
    assert follow_markers(buffer, starts_R, cuts).all()
    place = len(starts_R) // 2
    buffer[starts_R[place] - 1] ^= 1
    owner = int(np.searchsorted(np.cumsum(cuts.row_counts_P), place, side="right"))
    is_wrong_P = (np.arange(len(cuts.row_counts_P)) == owner) & (cuts.row_markers_R[place] > 0)
    assert follow_markers(buffer, starts_R, cuts).tolist() == (~is_wrong_P).tolist()


@given(st.lists(grids() | st.none(), min_size=1, max_size=5).filter(any))
@settings(max_examples=60, deadline=None)
def test_cuts_of_a_batch(images: list[tuple[np.ndarray, tuple[int, int, int, int]] | None]) -> None:
    """Against loops over the segments. Without JPEGs: a None is an image that is not spliced."""
    nothing = (np.zeros((1, 1), np.uint16), (0, 1, 0, 1))
    tops, bottoms, lefts, rights = np.array([(image or nothing)[1] for image in images]).T
    empty = np.zeros((len(images), 0))
    columns = np.array([(image or nothing)[0].shape[1] for image in images])
    is_spliced = np.array([bool(image) for image in images])
    spans = Spans(is_spliced, columns, tops, bottoms, lefts, rights, empty, empty)
    chosen = np.flatnonzero(spans.is_spliced_B)
    used = [image for image in images if image]
    needed = np.concatenate([lengths[:bottom].ravel() for lengths, (_, bottom, _, _) in used])
    bodies = (1 << 21) * np.arange(len(used))[::-1]
    cuts = find_cuts(spans, chosen, np.array([lengths.size for lengths, _ in used]), needed, bodies)

    found: dict[str, list[int]] = {name: [] for name in Cuts.__annotations__}
    for (lengths, (top, bottom, left, right)), body in zip(used, bodies.tolist(), strict=True):
        all_ends = np.cumsum(lengths.ravel().astype(int)).reshape(lengths.shape)
        numbers = np.arange(lengths.size).reshape(lengths.shape)[top:bottom, left:right].ravel().tolist()
        kept = lengths[top:bottom, left:right].astype(int)
        start = int(all_ends[top, left]) - int(lengths[top, left])
        row_sizes = kept.sum(axis=1)
        found["starts_P"].append(start)
        found["stops_P"].append(int(all_ends[bottom - 1, right - 1]))
        found["sizes_P"].append(int(kept.sum()))
        found["row_starts_R"] += (all_ends[top:bottom, left] - lengths[top:bottom, left] - start).tolist()
        found["row_places_R"] += (np.cumsum(row_sizes) - row_sizes + body).tolist()
        found["row_sizes_R"] += row_sizes.tolist()
        before = [row * lengths.shape[1] + left - 1 for row in range(top, bottom)]
        found["row_markers_R"] += [0xD0 + k % 8 if k >= 0 else 0 for k in before]
        found["row_counts_P"].append(bottom - top)
        found["ends_K"] += (np.cumsum(kept.ravel()) + body).tolist()
        found["markers_K"] += [0xD9 if k == lengths.size - 1 else 0xD0 + k % 8 for k in numbers]
        found["new_markers_K"] += [0xD9 if k == kept.size - 1 else 0xD0 + k % 8 for k in range(kept.size)]
        found["counts_P"].append(kept.size)
    assert {name: getattr(cuts, name).tolist() for name in found} == found
    assert cuts.markers_K.dtype == cuts.new_markers_K.dtype == np.uint8

    # The markers, in a buffer that has them or lacks one of them.
    buffer = np.zeros(int(cuts.ends_K.max()) + 1, np.uint8)
    buffer[cuts.ends_K - 2], buffer[cuts.ends_K - 1] = 0xFF, cuts.markers_K
    harmed = buffer.copy()
    assert renumber(buffer, cuts).tolist() == [True] * len(used)
    assert (buffer[cuts.ends_K - 1] == cuts.new_markers_K).all() and (buffer[cuts.ends_K - 2] == 0xFF).all()
    place = len(cuts.ends_K) // 2
    owner = int(np.searchsorted(np.cumsum(cuts.counts_P), place, side="right"))
    harmed[cuts.ends_K[place] - 2] = 0xFE
    assert renumber(harmed, cuts).tolist() == [number != owner for number in range(len(used))]

    check_starts(cuts)


def test_sizes_of_a_batch() -> None:
    encoded = encode_size(np.array([1, 258, 65_535]), np.array([772, 5, 65_280]))
    assert encoded.dtype == np.uint8
    assert encoded.tolist() == [[0, 1, 3, 4], [1, 2, 0, 5], [255, 255, 255, 0]]


def test_a_frame_header_at_the_end_of_the_tables() -> None:
    """Only the marker and the size of a frame header are looked at."""
    restarted = restart(Kind("grey", 8, 16, 1))
    record = restarted.record.copy()
    start, scan = int(record["tables_start"]), int(record["tables_start"] + record["tables_size"])
    frame = start + int(record["frame"])
    data, spans = (
        restarted.data[:start] + restarted.data[frame : frame + 9] + restarted.data[scan:],
        restarted.spans((0, 8, 1, 1)),
    )
    record["frame"], record["tables_size"] = 0, 9
    last = restarted.data[scan + int(restarted.lengths[0]) :]
    tables = restarted.data[frame : frame + 5] + bytes([0, 8, 0, 8])
    assert splice_jpeg(data, record, restarted.lengths, spans, 0) == HEAD + tables + last
    record["tables_size"] = 8
    with pytest.raises(SpliceError, match="its frame header is not where it should be"):
        splice_jpeg(data[: start + 8] + data[start + 9 :], record, restarted.lengths, spans, 0)


# Lengths and images that contradict each other.


def flip_bit(restarted: Restarted, place: int) -> Restarted:
    """Flip a bit of the record, or of the lengths after it."""
    content = bytearray(restarted.record.tobytes() + restarted.lengths.tobytes())
    content[place // 8] ^= 1 << place % 8
    record = np.frombuffer(content, RECORD, 1)[0]
    return replace(restarted, record=record, lengths=np.frombuffer(content, np.uint16, offset=RECORD.itemsize))


def shows_the_same_or_says_so(harmed: Restarted, window: Window, whole: np.ndarray) -> bool:
    """Whether a window has the pixels of the complete image, or its segments are found to be wrong."""
    if not harmed.fits():
        return True
    try:
        spans = harmed.spans(window)
        spliced = harmed.splice(spans)
    except SpliceError:
        return True
    return np.array_equal(cut(decode(spliced), spans.windows_B4[0]), cut(whole, window))


@given(cases(USUAL, 60), st.data())
@settings(max_examples=80, deadline=None)
def test_no_flip_of_lengths_changes_a_window_without_words(
    case: tuple[Kind, list[Window]], data: st.DataObject
) -> None:
    kind, (window, *_) = case
    restarted = restart(kind)
    place = data.draw(st.integers(0, 16 * len(restarted.lengths) - 1))
    assert shows_the_same_or_says_so(flip_bit(restarted, 8 * RECORD.itemsize + place), window, decode(restarted.data))


@pytest.mark.parametrize(("num_kept", "lost"), [(0, 0), (1, 0), (8, 0), (24, 1), (100, 0)])
def test_lengths_that_are_too_short_are_noticed(num_kept: int, lost: int) -> None:
    """With 8 segments per row, the markers of a column have one number: each looks like the one before it."""
    restarted, window = restart(Kind("444", 128, 512, 8)), (0, 70, 128, 20)
    harmed = replace(restarted, lengths=np.where(np.arange(128) < num_kept, restarted.lengths, lost))
    with pytest.raises(SpliceError, match="shorter than its marker"):
        harmed.splice(harmed.spans(window))


@pytest.mark.parametrize("row", [0, 1, 15])
def test_a_needed_segment_that_begins_elsewhere_is_noticed(row: int) -> None:
    """It ends where it should, and the one before it, which is not needed, is as much longer as it is shorter."""
    restarted = restart(Kind("444", 128, 512, 8))
    lengths = restarted.lengths.copy()
    lengths[8 * row : 8 * row + 2] += np.array([3, 65_533], np.uint16)
    harmed = replace(restarted, lengths=lengths)
    with pytest.raises(SpliceError, match="a marker is not where it should be"):
        harmed.splice(harmed.spans((0, 70, 128, 20)))


FLIPPED = [
    *(Kind("420", 48, 192, 6), Kind("grey", 9, 9, 1), Kind("411", 17, 40, 2), Kind("422", 8, 96, 3)),
    *(Kind("440", 100, 8, 1), Kind("444", 3, 5, 1), Kind("420", 33, 60, 4), Kind("420", 1, 1, 1)),
]


@pytest.mark.parametrize("kind", FLIPPED, ids=str)
def test_no_flip_of_a_record_changes_a_window_without_words(kind: Kind) -> None:
    """All of its bits. If a record fits its image although it is wrong, the image cannot tell."""
    restarted, (height, width) = restart(kind), (kind.height, kind.width)
    whole = decode(restarted.data)
    assert restarted.fits()
    for window in ((0, 0, height, width), (height - 1, width - 1, 1, 1), (height // 2, 0, 1, width // 2 + 1)):
        for place in range(8 * RECORD.itemsize):
            harmed = flip_bit(restarted, place)
            assert shows_the_same_or_says_so(harmed, window, whole), (harmed.record, window)


def test_records_that_fit() -> None:
    """Each condition at its limit, one after the other, in a batch."""
    restarted = restart(Kind("420", 48, 192, 6))  # 3 rows of 2 segments
    record, size = restarted.record, len(restarted.data)
    scan = int(record["tables_start"] + record["tables_size"])
    changed = [
        ({}, True),
        ({"interval": 0, "mcu_width": 3, "num_lengths": 99}, True),
        ({"interval": 4, "num_lengths": 9}, True),  # of another image of that size
        ({"interval": 5, "num_lengths": 6}, False),
        ({"interval": 7}, False),
        ({"interval": 8, "num_lengths": 4}, False),  # the product is right, but 8 does not divide 12
        ({"num_lengths": 5}, False),
        ({"num_lengths": 7}, False),
        ({"mcu_height": 17}, False),
        ({"mcu_width": 17}, False),
        ({"mcu_height": 0}, False),
        ({"mcu_width": 0}, False),
        ({"tables_start": 2}, True),
        ({"tables_start": 1}, False),
        ({"frame": int(record["tables_size"]) - 9}, True),
        ({"frame": int(record["tables_size"]) - 8}, False),
        ({"tables_start": size - 6 - int(record["tables_size"])}, True),
        ({"tables_start": size - 5 - int(record["tables_size"])}, False),
        ({"tables_size": size - 6 - scan + int(record["tables_size"])}, True),
        ({"tables_size": size - 5 - scan + int(record["tables_size"])}, False),
    ]
    records = np.repeat(record[None], len(changed))
    for each, (fields, _) in zip(records, changed, strict=True):
        for name, value in fields.items():
            each[name] = value
    heights, widths, sizes = (np.full(len(changed), each, np.int32) for each in (48, 192, size))
    found = fits(records, heights, widths, sizes)
    assert found.dtype == bool and found.tolist() == [is_right for _, is_right in changed]


@given(cases(USUAL, 40), st.data())
@settings(max_examples=80, deadline=None)
def test_contradictions_have_one_error(case: tuple[Kind, list[Window]], data: st.DataObject) -> None:
    """Other lengths, a shorter file, the file of another image: an error that is ours, or a JPEG."""
    kind, (window, *_) = case
    restarted = restart(kind)
    lengths, file = restarted.lengths.copy(), bytearray(restarted.data)
    for _ in range(data.draw(st.integers(0, 2))):
        lengths[data.draw(st.integers(0, len(lengths) - 1))] = data.draw(st.integers(0, 300) | st.just(65_535))
    lengths = lengths[: data.draw(st.just(len(lengths)) | st.integers(0, len(lengths)))]
    del file[data.draw(st.just(len(file)) | st.integers(0, len(file))) :]
    spans = restarted.spans(window)
    is_same = np.array_equal(lengths, restarted.lengths) and file == restarted.data
    try:
        spliced = splice_jpeg(bytes(file), restarted.record, lengths, spans, 0)
    except SpliceError as error:
        assert not is_same and str(error)
    else:
        assert spliced == restarted.splice(spans)


def test_each_contradiction_is_named() -> None:
    restarted = restart(Kind("422", 40, 96, 3))  # 5 rows of 2 segments
    record, lengths, data = restarted.record, restarted.lengths, restarted.data
    spans = restarted.spans((16, 0, 8, 9))
    scan, frame = int(record["tables_start"] + record["tables_size"]), int(record["frame"])
    assert (spans.tops_B[0], spans.bottoms_B[0], spans.rights_B[0]) == (2, 3, 1)

    def explain(record: np.ndarray, lengths: np.ndarray, data: bytes) -> str:
        with pytest.raises(SpliceError) as error:
            splice_jpeg(data, record, lengths, spans, 0)
        return str(error.value)

    def change(**fields: int) -> np.ndarray:
        changed = record.copy()
        for name, value in fields.items():
            changed[name] = value
        return changed

    few, longer = "it has fewer segments than its size needs", "its segments are longer than the file"
    header, marker = "its frame header is not where it should be", "a marker is not where it should be"
    assert explain(record, lengths[:-1], data) == few
    assert explain(change(num_lengths=5), lengths[:5], data) == few
    assert explain(record, lengths, data[: scan - 1]) == few
    stop = scan + int(lengths[:5].sum())
    assert splice_jpeg(data[:stop], record, lengths, spans, 0) == restarted.splice(spans)
    assert explain(record, lengths, data[: stop - 1]) == longer
    assert explain(record, lengths, data[:scan]) == longer
    assert explain(change(frame=frame + 1), lengths, data) == header
    assert explain(change(frame=frame - 1), lengths, data) == header
    assert explain(change(frame=int(record["tables_size"]) - 8), lengths, data) == header
    assert explain(change(frame=65_535), lengths, data) == header
    for place, code in ((stop - 1, 0xD5), (stop - 2, 0xFE), (stop - 1, 0xD9)):
        harmed = data[:place] + bytes([code]) + data[place + 1 :]
        assert explain(record, lengths, harmed) == marker
    assert explain(record, np.zeros_like(lengths), data) == "a segment is shorter than its marker"
    extended = data[: scan - int(record["tables_size"]) + frame + 1] + b"\xc1"
    extended += data[len(extended) :]
    assert splice_jpeg(extended, record, lengths, spans, 0) != restarted.splice(spans)
    progressive = extended.replace(b"\xff\xc1", b"\xff\xc2", 1)
    assert explain(record, lengths, progressive) == header
