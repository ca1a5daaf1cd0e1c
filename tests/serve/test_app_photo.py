"""Whatever file a visitor sends is shown as a person expects, or refused with the reason in one sentence."""

import io
import subprocess
import sys
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.app_visitors import encode, make_bomb
from helpers.commands import CHECKOUT
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from prep.errors import InputError
from serve.app.file_kinds import NUM_BYTES, explain_kind
from serve.app.uploads import open_photo

ORIENTATION = 0x0112  # of EXIF
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def open_bytes(folder: Path, content: bytes) -> Any:
    path = folder / "sent"
    path.write_bytes(content)
    return open_photo(path)


def flag() -> Image.Image:
    """Wider than high; red at the top left, blue elsewhere."""
    picture = Image.new("RGB", (60, 40), BLUE)
    picture.paste(RED, (0, 0, 30, 20))
    return picture


def is_near(pixel: Any, color: tuple[int, int, int], most: int = 12) -> bool:
    return max(abs(one - other) for one, other in zip(pixel, color, strict=True)) <= most


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF"])
def test_common_formats(kind: str, tmp_path: Path) -> None:
    photo = open_bytes(tmp_path, encode(flag(), kind))
    assert (photo.picture.mode, photo.picture.size, photo.notes) == ("RGB", (60, 40), ())
    assert is_near(photo.picture.getpixel((5, 5)), RED, 40)
    assert is_near(photo.picture.getpixel((55, 35)), BLUE, 40)


@pytest.mark.parametrize(
    ("orientation", "size", "red"),
    [(1, (60, 40), (5, 5)), (3, (60, 40), (55, 35)), (6, (40, 60), (35, 5)), (8, (40, 60), (5, 55))],
)
def test_a_phone_photograph_stands_upright(
    orientation: int, size: tuple[int, int], red: tuple[int, int], tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    picture = open_bytes(tmp_path, encode(flag(), "JPEG", exif=exif, quality=95)).picture
    assert picture.size == size
    assert is_near(picture.getpixel(red), RED, 40)


def test_a_phone_jpeg_with_a_second_picture_is_not_animated(tmp_path: Path) -> None:
    second = Image.new("RGB", (60, 40), GREEN)
    photo = open_bytes(tmp_path, encode(flag(), "MPO", save_all=True, append_images=[second]))
    assert photo.notes == ()
    assert is_near(photo.picture.getpixel((5, 5)), RED, 40)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken_and_it_is_said(kind: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 20), GREEN), Image.new("RGB", (20, 20), BLUE)]
    content = encode(flag().resize((20, 20)), kind, save_all=True, append_images=frames, duration=50)
    photo = open_bytes(tmp_path, content)
    assert photo.notes == ("This picture is animated: what you see is its first frame.",)
    assert is_near(photo.picture.getpixel((3, 3)), RED, 60)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_behind_what_is_transparent_is_white(mode: str, tmp_path: Path) -> None:
    layer = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    layer.paste((0, 0, 0, 255), (0, 0, 10, 20))
    if mode == "P":
        picture = Image.new("P", (20, 20), 1)
        picture.putpalette([0, 0, 0, 10, 20, 30])
        picture.paste(0, (0, 0, 10, 20))
        content = encode(picture, "PNG", transparency=1)
    else:
        content = encode(layer.convert(mode), "PNG")
    shown = open_bytes(tmp_path, content).picture
    assert shown.mode == "RGB"
    assert (shown.getpixel((2, 2)), shown.getpixel((17, 2))) == ((0, 0, 0), WHITE)


def test_half_transparent_is_half_white(tmp_path: Path) -> None:
    shown = open_bytes(tmp_path, encode(Image.new("RGBA", (4, 4), (255, 0, 0, 128)), "PNG")).picture
    assert is_near(shown.getpixel((1, 1)), (255, 127, 127), 1)


def test_cmyk_is_seen_in_its_colours(tmp_path: Path) -> None:
    shown = open_bytes(tmp_path, encode(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG", quality=95)).picture
    assert is_near(shown.getpixel((9, 9)), RED)


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_and_black_and_white(mode: str, tmp_path: Path) -> None:
    grey = Image.linear_gradient("L").convert(mode)
    shown = open_bytes(tmp_path, encode(grey, "PNG")).picture
    assert np.array_equal(np.asarray(shown), np.asarray(grey.convert("RGB")))


def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path: Path) -> None:
    values_HW = np.linspace(0, 65535, 256, dtype=np.uint16)[None].repeat(4, 0)
    shown = np.asarray(open_bytes(tmp_path, encode(Image.fromarray(values_HW), "PNG")).picture)
    assert np.array_equal(shown[0, :, 0], np.arange(256))


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


NOISE = Image.effect_noise((200, 200), 80)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("num_cut", [1, 2, 40, 1000])
def test_a_jpeg_that_lacks_its_last_bytes_is_shown_and_it_is_said(num_cut: int, mode: str, tmp_path: Path) -> None:
    whole = encode(NOISE.convert(mode), "JPEG")
    photo = open_bytes(tmp_path, whole[:-num_cut])
    assert photo.notes == ("The file ends early: its lower part may be missing.",)
    upper = (0, 0, 200, 140)
    shown, expected = (each.picture.crop(upper) for each in (photo, open_bytes(tmp_path, whole)))
    assert shown.tobytes() == expected.tobytes()


def test_of_a_progressive_jpeg_the_detail_is_missing(tmp_path: Path) -> None:
    whole = encode(NOISE.convert("RGB"), "JPEG", progressive=True)
    assert open_bytes(tmp_path, whole[:-100]).notes == ("The file ends early: its fine detail may be missing.",)


@given(share=st.floats(0, 1))
def test_at_least_three_quarters_of_the_rows_are_there_or_a_cut_jpeg_is_refused(share: float) -> None:
    whole = encode(NOISE, "JPEG")
    content = whole[: round(share * len(whole))]
    try:
        photo = open_photo(io.BytesIO(content))
    except InputError:
        assert share < 0.85  # a row has about the same number of bytes as another
    else:
        rows_HW = np.asarray(photo.picture)[..., 0]
        assert (rows_HW.min(1) != rows_HW.max(1)).sum() >= 150
        assert photo.notes or len(content) == len(whole)


def test_other_threads_still_refuse_cut_pictures_meanwhile(tmp_path: Path) -> None:
    open_bytes(tmp_path, encode(NOISE, "JPEG")[:-2])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_avif_is_turned_upright_like_a_jpeg(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    assert open_bytes(tmp_path, encode(flag(), "AVIF", exif=exif)).picture.size == (40, 60)


def test_of_a_document_of_pages_the_first_is_taken_and_it_is_said(tmp_path: Path) -> None:
    content = encode(flag(), "TIFF", save_all=True, append_images=[Image.new("RGB", (60, 40), GREEN)])
    photo = open_bytes(tmp_path, content)
    assert photo.notes == ("This file has several pages: what you see is its first page.",)
    assert is_near(photo.picture.getpixel((5, 5)), RED)


def container(*brands: bytes) -> bytes:
    """The start of a file of the ISO base media format."""
    body = b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])
    return (4 + len(body)).to_bytes(4, "big") + body + bytes(64)


EXPLAINED = {
    "iPhone": (container(b"heic", b"mif1", b"heic"), "HEIC photo. On an iPhone choose Settings, Camera, Formats, Most"),
    "HEIF": (container(b"mif1", b"heic"), "HEIC photo"),
    "cut AVIF": (container(b"avif", b"mif1"), "not a picture that can be read|damaged"),
    "movie": (container(b"qt  "), "a video. Pause it"),
    "mp4": (container(b"isom", b"mp41"), "a video"),
    "CR3": (container(b"crx ", b"isom"), "a camera's raw file. Export the photo as JPEG"),
    "CR2": (b"II*\0\x10\0\0\0CR\x02\0" + bytes(64), "raw file"),
    "DNG": (encode(flag(), "TIFF", tiffinfo={50706: b"\x01\x04\0\0"}), "raw file"),
    "NEF": (encode(flag(), "TIFF", tiffinfo={254: 1}), "raw file"),
    "webm": (b"\x1aE\xdf\xa3" + bytes(64), "a video"),
    "wav": (b"RIFF\x40\0\0\0WAVEfmt " + bytes(64), "a sound"),
    "PDF": (b"%PDF-1.7\n" + bytes(64), "a PDF document"),
    "zip": (b"PK\x03\x04" + bytes(64), "a ZIP archive"),
    "html": (b"\xef\xbb\xbf\n<!DOCTYPE html><html><body>404</body></html>", "a web page"),
    "svg after a comment": (b'<?xml version="1.0"?>\n<!-- x -->\n<svg>', "an SVG drawing"),
    "jxl": (b"\xff\x0a" + bytes(64), "a JPEG XL picture"),
    "psd": (b"8BPS\0\x01" + bytes(64), "a Photoshop document"),
    "32 bits": (encode(Image.new("F", (9, 9)), "TIFF"), "stores its colours as F"),
}


@pytest.mark.parametrize("name", EXPLAINED)
def test_what_people_send_by_mistake_is_named_with_what_to_do(name: str, tmp_path: Path) -> None:
    content, message = EXPLAINED[name]
    with pytest.raises(InputError, match=message):
        open_bytes(tmp_path, content)


@given(
    start=st.binary(max_size=2000), magic=st.sampled_from([b"", *(content[:12] for content, _ in EXPLAINED.values())])
)
def test_any_bytes_are_explained_or_not_without_an_error(start: bytes, magic: bytes) -> None:
    words = explain_kind(magic + start)
    assert words is None or (words.startswith("This is a") and words.endswith("."))
    with suppress(InputError):
        open_photo(io.BytesIO(magic + start))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_pictures_that_can_be_read_are_not_explained_away(kind: str) -> None:
    assert explain_kind(encode(flag(), kind)[:NUM_BYTES]) is None


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
REFUSED = {
    "empty": (b"", r"empty \(0 bytes\)"),
    "text": (b"this is not a picture\n" * 40, "not a picture that can be read here. Send a JPEG, PNG"),
    "svg": (SVG, "an SVG drawing"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a PostScript picture"),
    "zeros": (bytes(4096), "not a picture"),
    "cut JPEG": (half(encode(Image.effect_noise((200, 200), 80), "JPEG")), "is damaged: it ends too early"),
    "cut PNG": (half(encode(Image.effect_noise((200, 200), 80), "PNG")), "is damaged"),
    "strip": (encode(Image.new("RGB", (3000, 2)), "PNG"), "3,000 × 2 pixels, which is too thin a strip"),
    "bomb": (make_bomb(10_000), "This photo has 100 megapixels; the limit is 89"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_shown_is_refused_with_a_reason(name: str, tmp_path: Path) -> None:
    content, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        open_bytes(tmp_path, content)


def test_a_bomb_of_900_megapixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(make_bomb(30_000))
    assert path.stat().st_size < 300_000
    program = (
        "import resource, sys\nfrom pathlib import Path\nfrom serve.app.uploads import open_photo\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    open_photo(Path(sys.argv[1]))\nexcept ValueError as error:\n    print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, path], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    message, grown_kib = done.stdout.splitlines()
    assert message.startswith("This photo has more than 178 megapixels; the limit is 89.")
    assert int(grown_kib) < 30_000  # decoded it would be 900,000, and as RGB three times that


def test_a_bomb_in_a_text_chunk_is_refused(tmp_path: Path) -> None:
    content = encode(Image.new("RGB", (4, 4)), "PNG")
    text = b"zTXtbomb\0\0" + zlib.compress(bytes(50_000_000), 9)
    chunk = (len(text) - 4).to_bytes(4, "big") + text + zlib.crc32(text).to_bytes(4, "big")
    with pytest.raises(InputError, match=r"damaged|not a picture"):
        open_bytes(tmp_path, content[:33] + chunk + content[33:])
