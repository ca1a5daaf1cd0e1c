"""The segments of generated JPEGs of every kind, those that have none, and the file that lists them."""

import io
import random
import struct
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from helpers.restart_jpegs import (
    ADOBE_RGB,
    ADOBE_YCC,
    APP0,
    APP1,
    APP14,
    COM,
    DHT,
    DQT,
    DRI,
    EOI,
    FACTORS,
    JFIF,
    SOF0,
    SOF1,
    SOF2,
    SOF9,
    SOI,
    SOS,
    Kind,
    draw_pixels,
    encoders_of,
    kinds,
    put_together,
    segment,
    take_apart,
    write_jpeg,
    write_random,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from prep.errors import InputError
from prep.segments import (
    HEADER,
    MOST,
    RECORD,
    Segments,
    encode_segments,
    find_segments,
    lengths_of,
    parse_records,
    records_size,
    segments_name,
)

COLOUR = Kind("420", 40, 96, 2)  # 3 rows of 3 segments
EXAMPLES = [
    Kind(colours, *size, interval, encoder)
    for colours in FACTORS
    for encoder in encoders_of(colours)
    for size in ((1, 1), (33, 95))
    for interval in {1, Kind(colours, *size, 0).num_mcus[1]}
] + [Kind("grey", 7, 5000, 125), Kind("420", 7, 5000, 313), Kind("411", 5000, 7, 1), Kind("440", 5000, 7, 1, "random")]
Parts = list[tuple[int, bytes]]


def found_in(data: bytes) -> Segments:
    found = find_segments(data)
    assert found is not None
    return found


def change(data: bytes, marker: int, change_payload: Callable[[bytes], bytes | None]) -> bytes:
    """Return a JPEG with other payloads of one kind of marker; None: without it."""
    parts, scan = take_apart(data)
    changed = [(each, change_payload(payload) if each == marker else payload) for each, payload in parts]
    return put_together([(each, payload) for each, payload in changed if payload is not None], scan)


def insert(data: bytes, *added: tuple[int, bytes], before: int) -> bytes:
    """Return a JPEG with more markers before the first one of a kind."""
    parts, scan = take_apart(data)
    place = next(i for i, (each, _) in enumerate(parts) if each == before)
    return put_together([*parts[:place], *added, *parts[place:]], scan)


def check_tiling(kind: Kind, data: bytes, found: Segments) -> None:
    """The segments and the header are where another reading of the JPEG finds them."""
    parts, scan = take_apart(data)
    header = data[: len(data) - len(scan)]
    names = [marker for marker, _ in parts]
    first = min(i for i, name in enumerate(names) if name not in (APP0, APP1, APP14, COM))
    assert header[found.tables_start :] == b"".join(segment(*part) for part in parts[first:])
    assert found.tables_start + found.tables_size == len(header)
    assert header[found.tables_start + found.frame :][:2] in (segment(SOF0)[:2], segment(SOF1)[:2])
    assert (found.mcu_height, found.mcu_width) == kind.mcu_size
    assert found.interval == kind.interval and found.lengths.dtype == np.uint16
    assert len(found.lengths) == kind.num_mcus[0] * kind.num_mcus[1] // kind.interval

    # Cut at the lengths: each piece ends with its marker, and has no other.
    pieces = np.split(np.frombuffer(scan, np.uint8), np.cumsum(found.lengths.astype(int))[:-1])
    pieces = [piece.tobytes() for piece in pieces]
    markers = [piece[-2:] for piece in pieces]
    assert markers == [bytes([0xFF, 0xD0 + i % 8]) for i in range(len(pieces) - 1)] + [EOI]
    assert not any({piece[i + 1] for i in range(len(piece) - 2) if piece[i] == 0xFF} - {0} for piece in pieces)


@pytest.mark.parametrize("kind", EXAMPLES, ids=str)
def test_segments_tile_the_scan_of_every_kind(kind: Kind) -> None:
    data = write_jpeg(kind)
    check_tiling(kind, data, found_in(data))


@given(kinds())
@settings(max_examples=60, deadline=None)
def test_segments_tile_the_scan(kind: Kind) -> None:
    data = write_jpeg(kind)
    found = found_in(data)
    check_tiling(kind, data, found)
    for same in (memoryview(data), np.frombuffer(data, np.uint8)):
        again = found_in(same)  # type: ignore[arg-type]
        assert replace(again, lengths=found.lengths) == found and np.array_equal(again.lengths, found.lengths)


@given(kinds(most=60), st.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_an_interval_must_divide_a_row_of_mcus(kind: Kind, interval: int) -> None:
    usual = replace(kind, interval=interval)
    found = find_segments(write_jpeg(usual))
    assert (found is not None) == (usual.num_mcus[1] % interval == 0)


# What has segments although it looks odd, and what has none.

TRIMMED = take_apart(write_jpeg(COLOUR))
PAYLOADS = dict(TRIMMED[0])
SCAN = TRIMMED[1]
BARE = write_random((40, 96), FACTORS["420"], 2, 0, jfif=False)
NUMBERED = bytes([1, 2, 3])


def rename(data: bytes, names: bytes) -> bytes:
    """Return a colour JPEG with other names of its components."""
    data = change(data, SOF0, lambda old: old[:6] + b"".join(names[i : i + 1] + old[7 + 3 * i :][:2] for i in range(3)))
    return change(
        data, SOS, lambda old: old[:1] + b"".join(names[i : i + 1] + old[2 + 2 * i :][:1] for i in range(3)) + old[7:]
    )


USABLE = {
    "as it is": write_jpeg(COLOUR),
    "an extended frame": put_together([(SOF1 if m == SOF0 else m, p) for m, p in TRIMMED[0]], SCAN),
    "bytes after the end": write_jpeg(COLOUR) + b"more\xff\xd0\xff\xd9",
    "EXIF, Adobe and a comment first": insert(BARE, (APP1, b"Exif\0\0"), (APP14, ADOBE_YCC), (COM, b"no"), before=DQT),
    "neither JFIF nor Adobe": BARE,
    "the last of the applications' markers": insert(BARE, (0xEF, b"x"), before=DQT),
    "other names without a marker": rename(BARE, b"abc"),
    "RGB names under JFIF": rename(write_jpeg(COLOUR), b"RGB"),
    "RGB names under Adobe's YCbCr": insert(rename(BARE, b"RGB"), (APP14, ADOBE_YCC), before=DQT),
    "JFIF before Adobe's RGB": insert(BARE, (APP0, JFIF), (APP14, ADOBE_RGB), before=DQT),
    "Adobe's RGB before JFIF": insert(BARE, (APP14, ADOBE_RGB), (APP0, JFIF), before=DQT),
    "Adobe's RGB, then its YCbCr": insert(BARE, (APP14, ADOBE_RGB), (APP14, ADOBE_YCC), before=DQT),
    "Adobe's RGB, cut short": insert(BARE, (APP14, ADOBE_RGB[:-1]), before=DQT),
    "Adobe's RGB, in another marker": insert(BARE, (APP1, ADOBE_RGB), before=DQT),
    "another APP14": insert(BARE, (APP14, b"Abode" + ADOBE_RGB[5:]), before=DQT),
    "Adobe's RGB in a grey one": insert(
        write_random((40, 96), FACTORS["grey"], 2, 0, jfif=False), (APP14, ADOBE_RGB), before=DQT
    ),
    "two intervals, the last one right": insert(write_jpeg(COLOUR), (DRI, b"\0\x05"), before=DRI),
}
UNUSABLE = {
    "empty": b"",
    "no JPEG": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "a half marker": b"\xff",
    "another start": b"\xff\xd7" + write_jpeg(COLOUR)[2:],
    "no marker first": b"\xfe\xd8" + write_jpeg(COLOUR)[2:],
    "no restart markers": write_jpeg(replace(COLOUR, interval=0)),
    "interval 0": change(write_jpeg(COLOUR), DRI, lambda _: bytes(2)),
    "no interval": change(write_jpeg(COLOUR), DRI, lambda _: None),
    "no interval, and a marker after each MCU": change(write_jpeg(replace(COLOUR, interval=1)), DRI, lambda _: None),
    "another interval": change(write_jpeg(COLOUR), DRI, lambda _: b"\0\x03"),
    "a large interval": change(write_jpeg(COLOUR), DRI, lambda _: b"\x01\x02"),
    "progressive": write_jpeg(replace(COLOUR, encoder="pillow"), progressive=True),
    "progressive by its marker": put_together([(SOF2 if m == SOF0 else m, p) for m, p in TRIMMED[0]], SCAN),
    "arithmetic": put_together([(SOF9 if m == SOF0 else m, p) for m, p in TRIMMED[0]], SCAN),
    "no frame": change(write_jpeg(COLOUR), SOF0, lambda _: None),
    "12 bits": change(write_jpeg(COLOUR), SOF0, lambda old: b"\x0c" + old[1:]),
    "no height": change(write_jpeg(COLOUR), SOF0, lambda old: old[:1] + bytes(2) + old[3:]),
    "no width": change(write_jpeg(COLOUR), SOF0, lambda old: old[:3] + bytes(2) + old[5:]),
    "higher": change(write_jpeg(COLOUR), SOF0, lambda old: old[:1] + b"\0\x31" + old[3:]),
    "wider": change(write_jpeg(COLOUR), SOF0, lambda old: old[:3] + b"\0\x61" + old[5:]),
    "as high as can be": change(write_jpeg(COLOUR), SOF0, lambda old: old[:1] + b"\xff" * 4 + old[5:]),
    "no horizontal factors": change(
        BARE, SOF0, lambda old: old[:7] + b"\x02" + old[8:10] + b"\x01" + old[11:13] + b"\x01" + old[14:]
    ),
    "two components": change(write_jpeg(COLOUR), SOF0, lambda old: old[:5] + b"\2" + old[6:12]),
    "a component too many": change(write_jpeg(COLOUR), SOF0, lambda old: old[:5] + b"\3" + old[6:] + b"\4\x11\0"),
    "a component that is not there": change(write_jpeg(COLOUR), SOF0, lambda old: old[:-3]),
    "256 bytes after the components": change(write_jpeg(COLOUR), SOF0, lambda old: old + bytes(256)),
    "a scan of one component": change(write_jpeg(COLOUR), SOS, lambda old: b"\1" + old[1:3] + old[7:]),
    "Adobe's RGB": insert(BARE, (APP14, ADOBE_RGB), before=DQT),
    "Adobe's YCbCr, then its RGB": insert(BARE, (APP14, ADOBE_YCC), (APP14, ADOBE_RGB), before=DQT),
    "Adobe's RGB under a short JFIF": insert(BARE, (APP0, JFIF[:-1]), (APP14, ADOBE_RGB), before=DQT),
    "Adobe's RGB under another APP0": insert(BARE, (APP0, b"JFXX\0" + JFIF[5:]), (APP14, ADOBE_RGB), before=DQT),
    "RGB names": rename(BARE, b"RGB"),
    "an application's marker between tables": insert(write_jpeg(COLOUR), (APP1, b"x"), before=SOF0),
    "a comment after the tables": insert(write_jpeg(COLOUR), (COM, b"x"), before=SOS),
    "another marker": insert(write_jpeg(COLOUR), (0xDC, b"\0\0"), before=SOS),
    "fill bytes": SOI + b"\xff" + write_jpeg(COLOUR)[2:],
    "zeros between markers": SOI + segment(APP0, JFIF) + b"\0" + write_jpeg(COLOUR)[2:],
    "a frame that ends with the file": bytes.fromhex("ffd8 ffc0 0003 08 ffda 0000 03"),
    "a grey frame that ends with the file": bytes.fromhex("ffd8 ffc0 0003 08 ffda 0000 01"),
}


@pytest.mark.parametrize("data", USABLE.values(), ids=USABLE)
def test_segments_are_found(data: bytes) -> None:
    found = found_in(data)
    assert found.interval == 2 and (len(found.lengths), found.mcu_width) in ((9, 16), (30, 8))
    assert data[found.tables_start + found.frame] == 0xFF
    assert data[found.tables_start + found.tables_size + int(found.lengths.sum()) - 2 :][:2] == EOI


@pytest.mark.parametrize("data", UNUSABLE.values(), ids=UNUSABLE)
def test_no_segments_are_found(data: bytes) -> None:
    assert find_segments(data) is None


@pytest.mark.parametrize("mode", ["CMYK", "kept RGB"])
def test_other_colours_have_no_segments(mode: str) -> None:
    encoded, image = io.BytesIO(), Image.fromarray(draw_pixels(40, 96, 0))
    options = {"keep_rgb": True} if mode == "kept RGB" else {}
    image = image if options else image.convert("CMYK")
    image.save(encoded, "JPEG", restart_marker_blocks=2, **options)
    assert find_segments(encoded.getvalue()) is None


def test_several_scans_have_no_segments() -> None:
    """A scan of the grey component alone would fit; two follow it."""
    data = write_random((8, 16), FACTORS["444"], 1, 0)
    parts, scan = take_apart(data)
    more = segment(SOS, b"\1\2\0\0\x3f\0") + scan
    assert find_segments(data) is not None
    assert find_segments(data.removesuffix(EOI) + more) is None
    alone = [(marker, b"\1\1\0\0\x3f\0" if marker == SOS else payload) for marker, payload in parts]
    assert find_segments(put_together(alone, scan.removesuffix(EOI) + more)) is None


@given(kinds(most=60), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_markers_that_are_missing_added_or_misnumbered(kind: Kind, draw: random.Random) -> None:
    data = write_jpeg(kind)
    found = found_in(data)
    ends = found.tables_start + found.tables_size + np.cumsum(found.lengths.astype(int))
    end = int(draw.choice(ends.tolist()))  # of a segment with its marker
    right = data[end - 1]
    wrong = draw.choice([code for code in range(1, 256) if code != right])
    for harmed in (
        data[: end - 2] + data[end:],
        data[:end] + data[end - 2 : end] + data[end:] if right != 0xD9 else data[: end - 2] + b"\xff\xd0" + EOI,
        data[: end - 1] + bytes([wrong]) + data[end:],
        data[: end - 1] + b"\0" + data[end:],
        data[: end - 2] + b"\0" + data[end - 1 :],
    ):
        assert find_segments(harmed) is None


@pytest.mark.parametrize("kind", [COLOUR, Kind("grey", 9, 33, 5), replace(COLOUR, encoder="random")], ids=str)
def test_a_cut_jpeg_has_no_segments(kind: Kind) -> None:
    data = write_jpeg(kind)
    assert find_segments(data) is not None
    assert [size for size in range(len(data)) if find_segments(data[:size]) is not None] == []


@given(kinds(most=40), st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=4))
@settings(max_examples=200, deadline=None)
def test_no_bytes_make_it_fail(kind: Kind, changes: list[tuple[int, int]]) -> None:
    """And what is found lies within the bytes, with markers at the ends of the segments."""
    data = bytearray(write_jpeg(kind))
    for place, code in changes:
        data[place % len(data)] = code
    found = find_segments(bytes(data))
    if found is not None:
        start = found.tables_start + found.tables_size
        ends = start + np.cumsum(found.lengths.astype(int))
        assert 2 <= found.tables_start < found.tables_start + found.frame < start and ends[-1] <= len(data)
        assert all(data[end - 2] == 0xFF and data[end - 1] >= 0xD0 for end in ends.tolist())


@given(st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_no_short_bytes_make_it_fail(tail: bytes) -> None:
    assert find_segments(tail) is None
    find_segments(b"\xff\xd8\xff\xc0" + tail)


# Bounds: lengths are 16 bits.


def with_lengths(first: int, tables: int = 0) -> bytes:
    """Return a grey JPEG of two segments, the first with so many bytes, and `tables` more bytes of tables."""
    parts, _ = take_apart(write_random((8, 16), FACTORS["grey"], 1, 0))
    place = next(i for i, (marker, _) in enumerate(parts) if marker == DHT)
    while tables:
        size = min(tables - 4, 1 << 15)
        size = size if tables - 4 - size > 4 or tables - 4 == size else size - 8
        parts.insert(place, (DHT, bytes(size)))
        tables -= size + 4
    return put_together(parts, bytes(first - 2) + b"\xff\xd0" + bytes(8) + EOI)


def test_the_longest_segment() -> None:
    assert found_in(with_lengths(MOST)).lengths.tolist() == [MOST, 10] and MOST == 65_535
    assert find_segments(with_lengths(MOST + 1)) is None


def test_the_longest_tables() -> None:
    usual = found_in(with_lengths(2)).tables_size
    found = found_in(with_lengths(2, MOST - usual))
    assert found.tables_size == MOST and found.lengths.tolist() == [2, 10]
    assert find_segments(with_lengths(2, MOST - usual + 1)) is None


def test_long_rows_of_noise_have_no_segments() -> None:
    """5,000 pixels of noise are more than a length can be, unless they are divided."""
    whole = Kind("444", 8, 5000, 625, "opencv", 100)
    assert find_segments(write_jpeg(replace(whole, interval=125))) is not None
    noise = np.random.default_rng(0).integers(0, 256, (8, 5000, 3), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(noise).save(encoded, "JPEG", quality=100, subsampling=0, restart_marker_blocks=625)
    assert len(encoded.getvalue()) > MOST and find_segments(encoded.getvalue()) is None


def test_a_header_that_claims_billions_of_segments_takes_no_memory() -> None:
    """Otherwise 67 million markers would be expected: 540 MB."""
    import tracemalloc  # noqa: PLC0415

    data = change(write_jpeg(Kind("grey", 8, 8, 1)), SOF0, lambda old: old[:1] + b"\xff" * 4 + old[5:])
    tracemalloc.start()
    try:
        assert find_segments(data) is None
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


# The file.


@given(st.lists(st.none() | kinds(most=40), max_size=6))
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read(images: list[Kind | None]) -> None:
    all_found = [None if kind is None else found_in(write_jpeg(kind)) for kind in images]
    content = encode_segments(all_found)
    for rest in (content, content[: records_size(len(images))]):
        records = parse_records(rest, "x.seg", len(images))
        assert len(records) == len(images)
    end = records_size(len(images))
    for found, record in zip(all_found, records, strict=True):
        lengths = lengths_of(content, record)
        if found is None:
            assert not any(record.tolist()) and not len(lengths)
            continue
        fields = ("tables_start", "tables_size", "frame", "interval", "mcu_width", "mcu_height")
        assert [record[name] for name in fields] == [getattr(found, name) for name in fields]
        assert np.array_equal(lengths, found.lengths) and record["first"] == end
        end += 2 * len(lengths)
    assert len(content) == end


def test_the_file_byte_by_byte() -> None:
    found = Segments(20, 300, 70, 2, 16, 8, np.array([258, 3], np.uint16))
    head = b"PENSTSEG" + struct.pack("<II", 1, 2)
    records = bytes(24) + struct.pack("<QIHHHBBI", 16 + 48, 20, 300, 70, 2, 16, 8, 2)
    assert encode_segments([None, found]) == head + records + b"\x02\x01\x03\x00"
    assert (HEADER.itemsize, RECORD.itemsize, records_size(2)) == (16, 24, 64)
    assert segments_name("train-000007.tar") == "train-000007.seg" and segments_name("x.tar.tar") == "x.tar.seg"


def test_a_file_of_other_images_is_named() -> None:
    found = found_in(write_jpeg(COLOUR))
    content = encode_segments([found, None])
    advice = "`python prep/verify.py /data` says how to repair it"
    for harmed, count, wrong in (
        (content, 1, "it lists those of 2"),
        (content, 3, "it lists those of 2"),
        (content[:15], 2, "it ends at byte 15, its header takes 16"),
        (b"", 2, "it ends at byte 0, its header takes 16"),
        (b"X" + content[1:], 2, "it begins with b'XENSTSEG', not b'PENSTSEG'"),
        (content[:8] + b"\2" + content[9:], 2, "its layout has version 2, not 1"),
    ):
        with pytest.raises(InputError) as error:
            parse_records(harmed, "/data/x.seg", count)
        assert str(error.value) == f"/data/x.seg does not list the segments of {count} images: {wrong}: {advice}"
    for size in (16, records_size(2) - 1):
        with pytest.raises(InputError) as error:
            parse_records(content[:size], "/data/x.seg", 2)
        assert str(error.value) == f"/data/x.seg is cut short at byte {size}, its records take 64: {advice}"
    with pytest.raises(InputError, match=r"^x\.seg .* of 1,000 images: .*verify\.py FOLDER`"):
        parse_records(content, "x.seg", 1000)
