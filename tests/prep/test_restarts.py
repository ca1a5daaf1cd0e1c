"""Transcoding: every pixel and marker stays, a row has whole segments, and what cannot be transcoded stays as it is."""

import io
import os
import random
import re
import stat
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from helpers.hostile import encode, photo
from helpers.restarts import KINDS, MCUS, make_jpeg, needs_jpegtran, needs_transcoder
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from prep import restarts
from prep.dataset import Options
from prep.errors import InputError
from prep.images import as_jpeg
from prep.restarts import add_restarts, choose_interval, find_jpegtran, find_transcoder
from prep.segments import Segments

ENTROPY_SEED = 3
RESTARTS = Options(restarts=True)


def _pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def _markers(data: bytes) -> list[tuple[int, bytes]]:
    """Return the APPn and COM segments before the first scan."""
    found, position = [], 2
    while data[position + 1] != 0xDA:
        size = 2 + int.from_bytes(data[position + 2 : position + 4])
        if data[position + 1] >= 0xE0:
            found.append((data[position + 1], data[position + 4 : position + size]))
        position += size
    return found


def _check_restarted(data: bytes, kind: str, width: int, height: int) -> Segments:
    """Check that a JPEG of a size gets whole segments and keeps its pixels; return the segments."""
    restarted = add_restarts(data)
    assert restarted.obstacle == ""
    assert restarted.segments is not None
    fresh, segments = bytes(restarted.data), restarted.segments
    colours = "GRAY" if kind == "grey" else "RGB"
    assert np.array_equal(simplejpeg.decode_jpeg(fresh, colours), simplejpeg.decode_jpeg(data, colours))
    assert np.array_equal(_pixels(fresh), _pixels(data))

    # The interval divides the row, the markers are where the lengths say, and they are numbered in turn.
    assert (segments.mcu_width, segments.mcu_height) == MCUS[kind]
    per_row, rows = -(-width // segments.mcu_width), -(-height // segments.mcu_height)
    assert segments.interval == choose_interval(per_row)
    assert len(segments.lengths) == rows * per_row // segments.interval
    ends = segments.tables_start + segments.tables_size + np.cumsum(segments.lengths.astype(int))
    assert ends[-1] == len(fresh)
    numbered = [bytes([0xFF, 0xD0 + number % 8]) for number in range(len(ends) - 1)]
    assert [fresh[end - 2 : end] for end in ends] == [*numbered, b"\xff\xd9"]
    return segments


# The interval.


@pytest.mark.parametrize(
    ("mcus_per_row", "segments"),
    [
        *((1, 1), (7, 7), (8, 8), (11, 11), (13, 13), (16, 8), (17, 1), (19, 1), (22, 11), (24, 8), (26, 13), (28, 7)),
        *((31, 1), (32, 8), (34, 2), (62, 2), (63, 9), (64, 8), (93, 3), (125, 5), (8188, 4), (8191, 1)),
    ],
)
def test_a_row_has_about_8_segments_at_most_16_and_one_if_nothing_divides(mcus_per_row: int, segments: int) -> None:
    assert choose_interval(mcus_per_row) * segments == mcus_per_row


@given(st.integers(1, 8192))
def test_an_interval_divides_its_row_and_no_other_is_nearer_to_8_segments(mcus_per_row: int) -> None:
    interval = choose_interval(mcus_per_row)
    assert mcus_per_row % interval == 0
    found = mcus_per_row // interval
    assert found <= 16
    for count in range(1, 17):
        if mcus_per_row % count == 0:
            assert abs(np.log(found / 8)) <= abs(np.log(count / 8)) + 1e-9


# Transcoding.


@needs_transcoder
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (9, 17), (130, 65), (256, 128), (7, 5000), (5000, 7), (333, 250)], ids=str)
def test_every_kind_and_size_keeps_its_pixels(kind: str, size: tuple[int, int]) -> None:
    _check_restarted(make_jpeg(kind, *size), kind, *size)


@needs_transcoder
@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.integers(1, 300),
    st.integers(1, 200),
    st.integers(0, 30),
    st.integers(1, 100),
    st.integers(0, 9),
)
def test_markers_of_its_own_are_replaced(
    kind: str, width: int, height: int, interval: int, quality: int, seed: int
) -> None:
    data = make_jpeg(kind, width, height, seed=seed, interval=interval, quality=quality)
    assert (b"\xff\xdd" in data) == (interval > 0)  # DRI
    _check_restarted(data, kind, width, height)


@needs_transcoder
def test_a_jpeg_with_restarts_is_transcoded_to_itself() -> None:
    once = add_restarts(make_jpeg("4:2:0", 500, 375, interval=3))
    again = add_restarts(once.data)
    assert again.data == once.data
    assert again.segments is not None and once.segments is not None
    assert np.array_equal(again.segments.lengths, once.segments.lengths)


@needs_transcoder
def test_exif_profile_comment_and_unknown_markers_stay() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = photo("china.jpg")
    profile = random.Random(ENTROPY_SEED).randbytes(150_000)  # three APP2 segments
    for options in ({"exif": exif}, {"icc_profile": profile}, {"exif": exif, "icc_profile": profile}, {}):
        data = encode(image, "JPEG", comment=b"a comment", dpi=(72, 72), **options)
        position = 2 + 2 + int.from_bytes(data[4:6])  # after the first segment
        data = data[:position] + b"\xff\xed\x00\x07Adobe" + b"\xff\xef\x00\x02" + data[position:]
        fresh = bytes(add_restarts(data).data)
        assert fresh != data
        assert _markers(fresh) == _markers(data)
        stored = as_jpeg(data, RESTARTS)
        assert stored.data == fresh
        assert [event for event, _ in stored.findings] == (["exif_orientation"] if "exif" in options else [])


@needs_transcoder
def test_bytes_after_the_end_are_dropped_and_reported() -> None:
    data = make_jpeg("4:2:0", 64, 48)
    stored = as_jpeg(data + bytes(100), RESTARTS)
    assert stored.data == add_restarts(data).data
    assert stored.findings == (("trailing_bytes", "100 bytes after the end of the image"),)


# What is repaired or shrunk first.


@needs_transcoder
@pytest.mark.parametrize(
    "data",
    [
        encode(photo("china.jpg"), "PNG"),
        encode(photo("china.jpg").convert("CMYK"), "JPEG"),
        encode(photo("china.jpg"), "JPEG", keep_rgb=True),
    ],
    ids=["png", "cmyk", "rgb"],
)
def test_what_becomes_an_rgb_jpeg_is_transcoded_then(data: bytes) -> None:
    plain, stored = as_jpeg(data, Options()), as_jpeg(data, RESTARTS)
    assert stored.findings == plain.findings
    assert stored.segments is not None
    assert stored.data == add_restarts(plain.data).data
    assert np.array_equal(_pixels(bytes(stored.data)), _pixels(bytes(plain.data)))


@needs_transcoder
@pytest.mark.parametrize("options", [Options(max_side=100), Options(short_side=60), Options(quality=40)], ids=str)
def test_a_shrunk_image_is_transcoded_after_that(options: Options) -> None:
    data = make_jpeg("4:4:4", 160, 120)
    plain, stored = as_jpeg(data, options), as_jpeg(data, replace(options, restarts=True))
    assert plain.data != data
    assert (stored.width, stored.height, stored.findings) == (plain.width, plain.height, plain.findings)
    assert stored.segments is not None
    assert stored.data == add_restarts(plain.data).data


# What stays as it is.


def _two_scans(data: bytes) -> bytes:
    """Return a grey JPEG's header with three components, of which the first scan has one."""
    frame = data.index(b"\xff\xc0")
    header = bytearray(data[frame : frame + 10]) + bytes([1, 17, 0, 2, 17, 0, 3, 17, 0])
    header[3], header[9] = 17, 3
    return data[:frame] + bytes(header) + data[frame + 13 :]


@needs_transcoder
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encode(photo("china.jpg"), "JPEG", progressive=True), "progressive"),
        (_two_scans(make_jpeg("grey", 64, 48)), "more than one scan"),
        (make_jpeg("4:4:4", 16, 16, quality=100).replace(b"\xff\xd9", b"\x55" * 50 + b"\xff\xd9"), "extraneous bytes"),
        (make_jpeg("4:2:0", 64, 48)[:-400] + b"\xff\xd9", "premature end of data segment"),
        (make_jpeg("4:4:4", 8 * 4099, 8, quality=100), "a segment of more than 65,535 bytes"),
        (b"\xff\xd8\xff\xd9", "no scan"),
    ],
    ids=["progressive", "scans", "extraneous", "cut", "long", "empty"],
)
def test_what_cannot_be_transcoded_stays_with_its_reason(data: bytes, reason: str) -> None:
    restarted = add_restarts(data)
    assert restarted.data == data
    assert restarted.segments is None
    assert reason in restarted.obstacle


@needs_transcoder
def test_an_image_that_stays_has_one_entry_in_the_ledger() -> None:
    progressive = encode(photo("china.jpg"), "JPEG", progressive=True)
    stored = as_jpeg(progressive, RESTARTS)
    assert (stored.data, stored.segments) == (progressive, None)
    assert sorted(stored.findings) == [("no_restarts", "progressive"), ("progressive", "")]
    suspect = make_jpeg("4:2:0", 64, 48)[:-400] + b"\xff\xd9"
    warning = "Corrupt JPEG data: premature end of data segment"
    assert sorted(as_jpeg(suspect, RESTARTS).findings) == [("no_restarts", warning), ("suspect", warning)]


@pytest.mark.parametrize("change", ["pixels", "markers", "error"])
def test_a_transcoder_that_fails_or_changes_pixels_changes_nothing(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, other = make_jpeg("4:4:4", 64, 48), make_jpeg("4:4:4", 64, 48, seed=1, interval=1)

    def transcode(_: object, interval: int) -> bytes:
        assert interval == 1
        if change == "error":
            raise ValueError("out of\norder")
        return other if change == "pixels" else data

    monkeypatch.setattr(restarts, "find_transcoder", lambda: transcode)
    restarted = add_restarts(data)
    assert restarted.data is data
    assert restarted.segments is None
    reasons = {
        "pixels": "transcoded, it decodes to other pixels",
        "markers": "a segment of more than 65,535 bytes, or a marker that is not where it should be",
        "error": "out of order",
    }
    assert restarted.obstacle == reasons[change]


# The two transcoders.


def _outcome(transcode: restarts.Transcode, data: bytes) -> bytes | str:
    try:
        return transcode(data, 5)
    except ValueError as error:
        return str(error)


@needs_jpegtran
def test_the_extension_and_jpegtran_give_the_same_bytes_and_complaints() -> None:
    extension, program = find_transcoder(), find_jpegtran()
    if Path(sys.modules[extension.__module__].__file__ or "").suffix == ".py":
        pytest.skip("needs the extension prep._transcode")
    draw = random.Random(ENTROPY_SEED)
    samples = [make_jpeg(kind, 150, 99, interval=draw.choice([0, 4])) for kind in KINDS]
    exif = Image.Exif()
    exif[0x0112] = 6
    samples += [encode(photo("china.jpg"), "JPEG", exif=exif, comment=b"x", icc_profile=bytes(99_000))]
    samples += [encode(photo("china.jpg"), "JPEG", progressive=True), encode(photo("china.jpg"), "MPO")]
    samples += [make_jpeg("4:4:4", 700, 500, quality=100)[:-9], b"\xff\xd8", b"no JPEG"]
    for data in samples[:6] * 12:  # damaged anywhere
        damaged = bytearray(data)
        damaged[draw.randrange(len(data))] = draw.randrange(256)
        samples.append(bytes(damaged))
    outcomes = [(_outcome(extension, data), _outcome(program, data)) for data in samples]
    assert all(one == other for one, other in outcomes)
    assert sum(isinstance(one, str) for one, _ in outcomes) > 5
    assert sum(isinstance(one, bytes) for one, _ in outcomes) > 20


def _install(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a shell script named jpegtran on the path, alone."""
    program = folder / "jpegtran"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(folder))


def test_jpegtran_gets_the_image_and_the_documented_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(tmp_path, 'echo "$*" >> "${0%/*}/calls"; [ "$1" = -version ] || exec /bin/cat', monkeypatch)
    assert find_jpegtran()(memoryview(b"image"), 7) == b"image"
    assert (tmp_path / "calls").read_text().splitlines()[1:] == ["-copy all -optimize -maxmemory 1000000 -restart 7B"]
    _install(tmp_path, "[ $1 != -version ] || { echo mozjpeg version 4 >&2; exit; }; echo $1", monkeypatch)
    assert find_jpegtran()(b"", 7) == b"-revert\n"


@pytest.mark.parametrize(
    ("script", "error", "message"),
    [
        ("echo one >&2; echo two >&2; exit 2", ValueError, "one"),
        ("exit 2", ValueError, "jpegtran ended with status 2"),
        ("kill -9 $$", InputError, r"jpegtran was ended by signal 9 \(out of memory\?\): run again"),
    ],
)
def test_jpegtrans_complaints_are_reported(
    script: str, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(tmp_path, f"[ $1 = -version ] || {{ {script}; }}", monkeypatch)
    with pytest.raises(error, match=message) as found:
        find_jpegtran()(b"", 7)
    assert found.type is error


def test_without_a_transcoder_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "prep._transcode", None)  # as if it had not been built
    find_transcoder.cache_clear()
    try:
        with pytest.raises(InputError, match=re.escape("apt-get install gcc libjpeg-dev")) as found:
            as_jpeg(make_jpeg("grey", 8, 8), RESTARTS)
    finally:
        find_transcoder.cache_clear()
    assert "\n" not in str(found.value)
    assert os.environ["PATH"] == str(tmp_path)
