"""Images of other depths, modes and kinds: converted where their format defines the range, else left out by name."""

import hashlib
import io
import logging
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.commands import run_command
from helpers.tars import images, ledger, write_tar
from PIL import Image

from loaders import EvalTransform, LoaderConfig, build_loader
from prep.dataset import Options, Split
from prep.images import UnusableImageError, as_jpeg
from prep.shard_check import ShardReport
from prep.shard_check import _check_decoding as decode_row
from prep.tar import Component
from serve.pictures import decode_image

WIDTH, HEIGHT = 64, 48
RAMP = np.linspace(0, 1, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH)
GREYS = (RAMP * 255).astype(np.uint8)
COLOURS = np.stack([GREYS, GREYS[::-1], GREYS.T.reshape(HEIGHT, WIDTH)], axis=-1)
MOST_ERROR = 3.0  # grey levels, on average, of a JPEG of quality 95
DEPTHS = (Options(), Options(decode_check=False))


def encode(image: Image.Image, format_name: str, **options: Any) -> bytes:
    encoded = io.BytesIO()
    image.save(encoded, format_name, **options)
    return encoded.getvalue()


def sixteen(kind: str = "<u2", mode: str = "I;16", most: int = 65535) -> Image.Image:
    return Image.frombytes(mode, (WIDTH, HEIGHT), (RAMP * most).astype(kind).tobytes())


def tiff_of(values: bytes, tags: dict[int, tuple[int, int]]) -> bytes:
    """An uncompressed little-endian TIFF of one strip: tags as (type, value), TIFF 6.0, section 2."""
    fields = {256: (4, WIDTH), 257: (4, HEIGHT), 259: (3, 1), 273: (4, 8), 277: (3, 1), 278: (4, HEIGHT)}
    fields |= {279: (4, len(values)), **tags}
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, (kind, value) in sorted(fields.items()))
    return b"II*\0" + struct.pack("<I", 8 + len(values)) + values + struct.pack("<H", len(fields)) + entries + bytes(4)


def twelve_bit_tiff() -> bytes:
    values = (RAMP * 4095).astype(np.uint16).reshape(-1, 2)
    first, second = values[:, 0], values[:, 1]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1).astype(np.uint8)
    return tiff_of(packed.tobytes(), {258: (3, 12), 262: (3, 1)})


def png_of(bit_depth: int, colour_type: int, rows: bytes) -> bytes:
    """A PNG, for what Pillow cannot write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bit_depth, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def rows_of(values: np.ndarray) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in values)


def jpeg_by_hand(bits: int, frame: int = 0xC1, num_components: int = 1) -> bytes:
    """A JPEG of 8 x 8 mid-grey pixels: each block is a DC difference of 0 and an end of block, a bit each (T.81)."""
    quantization = b"\xff\xdb" + struct.pack(">HB", 67, 0) + bytes([1] * 64)
    components = b"".join(bytes([i + 1, 0x11, 0]) for i in range(num_components))
    start = struct.pack(">BBHBHHB", 0xFF, frame, 8 + len(components), bits, 8, 8, num_components) + components
    tables = b"".join(b"\xff\xc4" + struct.pack(">HB", 20, kind) + bytes([1] + [0] * 15) + b"\0" for kind in (0, 16))
    scan = bytes([num_components]) + b"".join(bytes([i + 1, 0]) for i in range(num_components)) + bytes([0, 63, 0])
    codes = bytes([0xFF >> 2 * num_components])
    return (
        (b"\xff\xd8" + quantization + start + tables + b"\xff\xda" + struct.pack(">H", 2 + len(scan)) + scan)
        + codes
        + b"\xff\xd9"
    )


WHITE_IS_ZERO = tiff_of(((1 - RAMP) * 65535).astype("<u2").tobytes(), {258: (3, 16), 262: (3, 0)})
GREY_ALPHA_16 = np.stack([RAMP * 65535, np.full(RAMP.shape, 65535)], axis=-1).astype(">u2")
CONVERTED: dict[str, tuple[bytes, np.ndarray]] = {
    "16-bit PNG": (encode(sixteen(), "PNG"), GREYS),
    "16-bit TIFF": (encode(sixteen(), "TIFF"), GREYS),
    "16-bit big-endian TIFF": (encode(sixteen(">u2", "I;16B"), "TIFF"), GREYS),
    "16-bit TIFF, white is zero": (WHITE_IS_ZERO, GREYS),
    "12-bit TIFF": (twelve_bit_tiff(), GREYS),
    "16-bit JPEG 2000": (encode(sixteen(), "JPEG2000"), GREYS),
    "16-bit PGM": (b"P5 64 48 65535\n" + (RAMP * 65535).astype(">u2").tobytes(), GREYS),
    "12-bit PGM": (b"P5 64 48 4095\n" + (RAMP * 4095).astype(">u2").tobytes(), GREYS),
    "16-bit RGB PNG": (png_of(16, 2, rows_of((COLOURS.astype(">u2") * 257).astype(">u2"))), COLOURS),
    "16-bit grey and alpha PNG": (png_of(16, 4, rows_of(GREY_ALPHA_16)), GREYS),
    "bits": (encode(Image.fromarray(GREYS > 127), "PNG"), (GREYS > 127) * np.uint8(255)),
    "palette": (encode(Image.fromarray(GREYS).convert("P"), "PNG"), GREYS),
    "grey and alpha": (encode(Image.fromarray(GREYS).convert("LA"), "PNG"), GREYS),
    "palette and alpha": (encode(Image.fromarray(GREYS).convert("P").convert("PA"), "TIFF"), GREYS),
    "CMYK TIFF": (encode(Image.fromarray(COLOURS).convert("CMYK"), "TIFF"), COLOURS),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_a_mode_with_a_defined_range_is_converted_to_what_it_shows(name: str) -> None:
    data, expected = CONVERTED[name]
    image = as_jpeg(data, Options())
    assert [event for event, _ in image.findings] == ["repaired"]
    with Image.open(io.BytesIO(image.data)) as stored:
        assert stored.mode == "RGB"
        found = np.asarray(stored).astype(float)
    expected = expected if expected.ndim == 3 else expected[..., None]
    assert np.abs(found - expected).mean() < MOST_ERROR


FLOATS = Image.fromarray(RAMP.astype(np.float32))
UNDEFINED = {
    "float TIFF": (encode(FLOATS, "TIFF"), "mode TIFF F: "),
    "float PFM": (encode(FLOATS, "PPM"), "mode PPM F: "),
    "int32 TIFF": (encode(Image.fromarray((RAMP * 65535).astype(np.int32)), "TIFF"), "mode TIFF I: "),
    "int16 TIFF": (
        tiff_of((RAMP * 999).astype("<i2").tobytes(), {258: (3, 16), 262: (3, 1), 339: (3, 2)}),
        "mode TIFF I: ",
    ),
    "float IM": (encode(FLOATS, "IM"), "mode IM F: "),
    "Lab": (encode(Image.new("LAB", (8, 8), (128, 128, 128)), "TIFF"), "mode TIFF LAB, "),
    "all transparent": (encode(Image.new("RGBA", (8, 8)), "PNG"), "every pixel of this PNG RGBA is transparent: "),
    "OpenEXR": (b"\x76\x2f\x31\x01\x02\0\0\0channels", "not an image that is read here but OpenEXR: "),
    "Radiance": (b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n", "not an image that is read here but Radiance HDR: "),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "not an image that is read here but HEIC: "),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", "not an image but a Git LFS p"),
    "HTML": (b"\n<!DOCTYPE html>\n<html><title>Sign in</title>", "not an image but an HTML page: fetch it again"),
    "HTML with a comment": (b"<!-- saved --><HTML lang=en>", "not an image but an HTML page: fetch it again"),
    "XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "not an image but an XML page"),
    "JSON": (b'{"error": "gated"}', "not an image but JSON"),
    "SVG": (b'<?xml version="1.0"?>\n<svg xmlns="x"/>', "not an image but an SVG drawing"),
    "zeros": (bytes(4096), "not an image: its first 512 bytes are zeros"),
    "12-bit JPEG": (jpeg_by_hand(12), "12 bits per sample: 8 expected"),
    "12-bit progressive JPEG": (jpeg_by_hand(12, 0xC2), "12 bits per sample: 8 expected"),
    "12-bit arithmetic JPEG": (jpeg_by_hand(12, 0xC9), "12 bits per sample: 8 expected"),
    "16-bit lossless JPEG": (jpeg_by_hand(16, 0xC3), "16 bits per sample: 8 expected"),
    "JPEG of two components": (jpeg_by_hand(8, 0xC1, 2), "2 colour components: 1, 3 or 4 expected"),
}


@pytest.mark.parametrize("options", DEPTHS, ids=["decoded", "not decoded"])
@pytest.mark.parametrize("name", UNDEFINED)
def test_what_could_become_black_or_white_is_left_out_with_the_reason(name: str, options: Options) -> None:
    data, reason = UNDEFINED[name]
    with pytest.raises(UnusableImageError) as refusal:
        as_jpeg(data, options)
    assert str(refusal.value).startswith(reason)
    assert "object at 0x" not in str(refusal.value)


def test_the_jpeg_by_hand_is_one() -> None:
    """So that the 12-bit one is rejected for its bits alone."""
    stored = as_jpeg(jpeg_by_hand(8), Options())
    assert (stored.data, stored.width, stored.height) == (jpeg_by_hand(8), 8, 8)
    with Image.open(io.BytesIO(stored.data)) as image:
        assert set(np.asarray(image).flat) == {128}


@pytest.mark.parametrize("format_name", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_is_stored_and_it_is_said(format_name: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    image = as_jpeg(encode(frames[0], format_name, save_all=True, append_images=frames[1:]), Options())
    ((event, reason),) = image.findings
    assert event == "repaired" and reason.endswith(" made RGB JPEG, the first of 3 frames")
    with Image.open(io.BytesIO(image.data)) as stored:
        red, green, blue = np.asarray(stored)[8, 8]
    assert red > 190 and green < 10 and blue < 10


def _half_transparent() -> dict[str, bytes]:
    """Black on the left, transparent black on the right."""
    layer = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    layer.paste((0, 0, 0, 255), (0, 0, 8, 16))
    palette = Image.new("P", (16, 16), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.paste(0, (0, 0, 8, 16))
    grey = Image.new("L", (16, 16), 1)
    grey.paste(0, (0, 0, 8, 16))
    return {
        "RGBA": encode(layer, "PNG"),
        "LA": encode(layer.convert("LA"), "PNG"),
        "WebP": encode(layer, "WEBP", lossless=True),
        "GIF": encode(layer, "GIF"),
        "P": encode(palette, "PNG", transparency=1),
        "L": encode(grey, "PNG", transparency=1),
    }


@pytest.mark.parametrize("name", _half_transparent())
def test_what_is_transparent_is_white_and_it_is_said(name: str) -> None:
    data = _half_transparent()[name]
    image = as_jpeg(data, Options())
    assert [reason.split(", ")[1] for _, reason in image.findings] == ["white behind what is transparent"]
    with Image.open(io.BytesIO(image.data)) as stored:
        left, right = np.asarray(stored)[8, 3], np.asarray(stored)[8, 12]
    assert left.max() < 20 and right.min() > 235
    if name != "GIF":  # which serving does not take for images that are measured
        served = decode_image(data)
        assert served is not None
        assert np.array_equal(np.asarray(served)[8, [3, 12]], [[0, 0, 0], [255, 255, 255]])


def test_serving_scales_16_bits_too() -> None:
    served = decode_image(CONVERTED["16-bit PNG"][0])
    assert served is not None
    assert np.abs(np.asarray(served)[..., 0].astype(float) - GREYS).max() <= 1


@pytest.mark.parametrize("flags", [(), ("--no-decode-check",)])
def test_adopting_leaves_a_12_bit_jpeg_out_by_its_bits(flags: tuple[str, ...], tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", [("x.jpg", jpeg_by_hand(12)), ("x.cls", b"0"), *images(1)])
    done = run_command("prep/adopt.py", tar, "--out", tmp_path / "out", "--workers", "1", *flags)
    assert done.returncode == 0
    assert [found["reason"] for found in ledger(Split(tmp_path / "out", "train"))] == ["12 bits per sample: 8 expected"]


def test_verifying_names_the_bits() -> None:
    """A split that was prepared before this check may have a 12-bit JPEG."""
    data, report = jpeg_by_hand(12), ShardReport()
    component = Component("jpg", 0, len(data), "x.jpg", sha256 := hashlib.sha256(data).digest(), data)
    decode_row({"key": "x", "sha256": sha256, "width": 8, "height": 8}, component, report)
    assert report.undecodable == ["x does not decode (12 bits per sample: 8 expected)"]


@pytest.mark.parametrize("backend", ["reference", "dali"])
def test_training_goes_on_without_one_and_names_no_address_in_memory(
    backend: str, digits_copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    split = Split(digits_copy, "validation")
    with split.shard_paths[0].open("r+b") as file:
        content = file.read()
        file.seek(content.index(b"\xff\xc0") + 4)  # the first image's bits per sample
        file.write(bytes([12]))
    with caplog.at_level(logging.WARNING, "penstock"):
        list(build_loader(split, EvalTransform(24, 28), 60, config=LoaderConfig(backend)))
    assert f"{split.keys([0])[0]} in " in caplog.text and "object at 0x" not in caplog.text
    if backend == "reference":
        assert "these bytes are not a JPEG of 8 bits per sample" in caplog.text
