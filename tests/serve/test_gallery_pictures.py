"""The gallery's picture: what stands in a row, colours, letters, and the files that are written."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, features

from prep.errors import InputError
from serve import gallery_files, lettering
from serve.deletion import Deletion, describe_deletions
from serve.gallery import GAP, GREY, HEADING, ROW, WIDTH, Caption, Row, choose_other_class, to_row
from serve.gallery_files import (
    FORMATS,
    MAX_FILE_HEIGHT,
    check_numbered,
    check_suffix,
    describe_left,
    draw_pages,
    write_gallery,
)
from serve.overlay import TILE, color_map, overlay_map
from serve.predict import Prediction

NAMES = ("zero", "one", "two")
CAPTION = Caption("a model", ["measured"])
WRONG = Prediction(0, "wrong", 0, 1, 0.8, 0.1, True, 0, 0.1)
RIGHT = Prediction(1, "right", 1, 1, 0.8, 0.8, True, 2, 0.15)
ALONE = Prediction(2, "alone", 1, 1, 1.0, 1.0, True)


def make_row(prediction: Prediction, other: bool = True) -> Row:
    """A row whose map of the prediction is warm at the left, and that of the other class at the right."""
    left_HW = np.zeros((32, 32), np.float32)
    left_HW[:, :8] = 1
    return Row(prediction, Image.new("RGB", (32, 32), "#808080"), left_HW, left_HW[:, ::-1].copy() if other else None)


def cut_tile(picture: Image.Image, column: int) -> np.ndarray:
    """Return the tile of the last row in a column, uint8 [224, 224, 3]."""
    left, top = GAP + column * (TILE + GAP), picture.height - ROW + HEADING
    return np.asarray(picture.crop((left, top, left + TILE, top + TILE)))


def is_colored(pixels_HWC: np.ndarray) -> np.ndarray:
    """Return where a tile is not grey, bool [H, W]."""
    return np.ptp(pixels_HWC.astype(int), axis=2) > 20


@pytest.mark.parametrize("prediction", [WRONG, RIGHT])
def test_the_third_column_is_the_map_of_the_other_class(prediction: Prediction) -> None:
    picture = draw_pages([make_row(prediction)], NAMES, CAPTION, MAX_FILE_HEIGHT)[0]
    second, third = is_colored(cut_tile(picture, 1)), is_colored(cut_tile(picture, 2))
    assert second[:, :40].all() and not second[:, 80:].any()
    assert third[:, -40:].all() and not third[:, :-80].any()
    assert not is_colored(cut_tile(picture, 0)).any()


def test_the_other_class_is_the_label_or_the_second_guess() -> None:
    assert [choose_other_class(each) for each in (WRONG, RIGHT, ALONE)] == [0, 2, None]
    row = to_row(ALONE, Image.new("RGB", (8, 8)), torch.ones(1, 8, 8))
    assert row.other_HW is None
    assert (cut_tile(draw_pages([row], NAMES, CAPTION, MAX_FILE_HEIGHT)[0], 2) == 255).all()  # no third map


def test_an_empty_map_is_said_in_words() -> None:
    empty = overlay_map(Image.new("RGB", (32, 32), "#ffffff"), np.zeros((32, 32), np.float32))
    foot_HWC = np.asarray(empty)[-30:]
    assert (foot_HWC < 60).all(2).mean() > 0.5 and (foot_HWC > 240).all(2).any()
    assert (np.asarray(empty)[:-30] == 255).all()


@settings(max_examples=15)
@given(st.integers(0, 255))
def test_a_map_leaves_its_zeros_uncovered_and_keeps_the_order_of_its_values(grey: int) -> None:
    values_W = np.linspace(0, 1, 33, dtype=np.float32)
    layer = color_map(values_W[None])
    opacity_W = np.asarray(layer)[0, :, 3].astype(int)
    assert opacity_W[0] == 0 and (np.diff(opacity_W) > 0).all() and opacity_W[-1] < 255
    # Lightness over the darkest and the brightest picture: colours alone have increasing lightness.
    lightness_W = np.asarray(layer.convert("RGB").convert("L"))[0].astype(int)
    assert (np.diff(lightness_W) > 0).all()
    flat = Image.new("RGB", (32, 32), (grey, grey, grey))
    tile_HWC = np.asarray(overlay_map(flat, np.eye(32, dtype=np.float32)))
    assert (tile_HWC[10, -10] == grey).all()  # far from the diagonal


def test_a_map_does_not_hide_the_picture() -> None:
    stripes_HW = np.tile(np.repeat([0, 255], 8).astype(np.uint8), (224, 14))
    tile = overlay_map(Image.fromarray(stripes_HW).convert("RGB"), np.ones((224, 224), np.float32))
    lightness_W = np.asarray(tile.convert("L"))[100].astype(int)
    assert np.ptp(lightness_W) > 40  # under the maximum of the map


# The deletion test's sentence


def test_maps_that_do_not_matter_are_not_to_be_trusted() -> None:
    good, bad = Deletion(0.8, 0.2, 0.7), Deletion(0.8, 0.9, 0.4)
    words = describe_deletions([good, good, bad])
    assert "probability from 0.80 to 0.43, hiding as much elsewhere to 0.60; the map beats elsewhere in 2 of 3" in words
    assert "do not show" not in words
    assert describe_deletions([good, bad]).endswith("These maps do not show what the predictions depend on")


# Letters


@pytest.fixture
def fonts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Replaces the system's fonts by fonts that have the given letters as full squares."""

    def install(**letters: str) -> dict[str, Path]:
        paths = {name: build_font(tmp_path / f"{name}.ttf", text) for name, text in letters.items()}
        monkeypatch.setattr(lettering, "_find_system_fonts", lambda: tuple(paths.values()))
        lettering.find_font.cache_clear()
        return paths

    yield install
    lettering.find_font.cache_clear()


def build_font(path: Path, letters: str, ascent: int = 900) -> Path:
    """Write a font in which each letter is a full square."""
    names = {ord(letter): f"u{ord(letter):x}" for letter in letters}
    pen = TTGlyphPen(None)
    for number, point in enumerate([(0, 0), (0, 800), (900, 800), (900, 0)]):
        (pen.lineTo if number else pen.moveTo)(point)
    pen.closePath()
    square = pen.glyph()
    builder, glyphs = FontBuilder(1000), [".notdef", *names.values()]
    builder.setupGlyphOrder(glyphs)
    builder.setupCharacterMap(names)
    builder.setupGlyf(dict.fromkeys(glyphs, square))
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 0)))
    builder.setupHorizontalHeader(ascent=ascent, descent=-100)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


def test_a_font_of_the_system_draws_what_dejavu_lacks(fonts: Any) -> None:
    paths = fonts(LatinSans="ab", CatSans="猫a", CatSerif="猫犬a ", LastResort="猫犬a鳥")
    assert lettering.prepare_text("ünïcödé Ω ж", 19)[1].path == str(lettering._own_font(False))
    drawable, font = lettering.prepare_text("猫 a", 19, bold=True)
    assert (drawable, font.path) == ("猫 a", str(paths["CatSans"]))
    assert lettering.prepare_text("猫犬", 19)[1].path == str(paths["CatSerif"])
    assert lettering.describe_missing(["猫", "cat"]) is None


def test_a_font_with_tall_lines_stays_in_its_line(fonts: Any) -> None:
    (path,) = fonts(TallSans="猫").values()
    build_font(path, "猫", ascent=2500)
    lettering.load_font.cache_clear()
    picture = Image.new("L", (60, 60), 255)
    lettering.draw_line(ImageDraw.Draw(picture), (0, 20), "猫", "black", 20)
    rows = np.flatnonzero((np.asarray(picture) < 128).any(1))
    assert rows.min() >= 20 and rows.max() < 40


def test_letters_of_no_font_are_escaped_and_said(fonts: Any) -> None:
    fonts(Broken="猫")
    lettering._find_system_fonts()[0].write_bytes(b"no font")
    lettering._read_letters.cache_clear()
    drawable, font = lettering.prepare_text("cat 猫", 19)
    assert drawable == "cat \\u732b" and font.path == str(lettering._own_font(False))
    words = lettering.describe_missing(["猫", "cat", "猫", "ไทย"])
    assert words is not None and words.startswith("no font on this machine has all letters of 猫, ไทย: ")
    assert "serve/report.py" in words
    picture = draw_pages([make_row(RIGHT)], ("a", "猫", "b"), CAPTION, MAX_FILE_HEIGHT)[0]
    plain = draw_pages([make_row(RIGHT)], ("a", "b", "b"), CAPTION, MAX_FILE_HEIGHT)[0]
    assert picture.height > plain.height  # the caption says it


def test_scripts_that_must_be_shaped_need_raqm(monkeypatch: pytest.MonkeyPatch) -> None:
    arabic = frozenset("قطة")
    has_raqm = features.check("raqm") and features.check("fribidi")
    assert lettering.can_draw(lettering._own_font(False), arabic) == has_raqm
    monkeypatch.setattr(features, "check", lambda _name: False)
    assert not lettering.can_draw(lettering._own_font(False), arabic)


# Files


def test_many_rows_become_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_FILE_HEIGHT < 16_383  # the most that WebP can store
    monkeypatch.setattr(gallery_files, "MAX_FILE_HEIGHT", 4 * ROW + 150)
    files = write_gallery([make_row(RIGHT)] * 11, NAMES, CAPTION, tmp_path / "x.png")
    assert [each.name for each in files] == ["x-1.png", "x-2.png", "x-3.png"]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["x-1.png", "x-2.png", "x-3.png"]
    heights, num_rows = [], 0
    for file in files:
        with Image.open(file) as picture:
            heights.append(picture.height)
            num_rows += picture.height // ROW
            assert picture.width == WIDTH
    assert max(heights) <= 4 * ROW + 150 and num_rows == 11 and heights[0] == heights[1]


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_suffix_decides_the_format(tmp_path: Path, suffix: str) -> None:
    (file,) = write_gallery([make_row(WRONG)] * 9, NAMES, CAPTION, tmp_path / f"x{suffix.upper()}")
    start = file.read_bytes()
    if suffix == ".pdf":
        assert start.startswith(b"%PDF") and start.count(b"/Type /Page\n") + start.count(b"/Type /Page ") == 2
        return
    with Image.open(file) as picture:
        assert (picture.format, picture.width) == (FORMATS[suffix], WIDTH)


@pytest.mark.parametrize(("name", "found"), [("x.gif", ".gif"), ("x", "none"), ("x.png.txt", ".txt")])
def test_an_unknown_suffix_is_refused(name: str, found: str) -> None:
    with pytest.raises(InputError, match=f"must end in one of .png, .jpg, .jpeg, .webp, .pdf, got {found} "):
        check_suffix(Path(name))


def test_every_part_has_the_caption(tmp_path: Path) -> None:
    pages = draw_pages([make_row(RIGHT)] * 5, NAMES, CAPTION, 2 * ROW + 200)
    assert [page.height for page in pages] == [pages[0].height, pages[0].height, pages[0].height - ROW]
    heads = [np.asarray(page)[: page.height - rows * ROW] for page, rows in zip(pages, (2, 2, 1), strict=True)]
    assert heads[0].shape == heads[2].shape and (heads[0] != heads[2]).any()  # part 1 of 3, part 3 of 3
    grey = np.array([int(GREY[start : start + 2], 16) for start in (1, 3, 5)])
    assert all((head == grey).all(2).any() for head in heads)


def test_numbered_files_of_an_earlier_run_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery_files, "MAX_FILE_HEIGHT", 4 * ROW + 150)
    path = tmp_path / "x.png"
    for name in ("x.png", "x-2.png", "x-10.png", "x-9.png", "x-01.png", "x-9.jpg", "xy-3.png"):
        (tmp_path / name).write_bytes(b"earlier")
    files = write_gallery([make_row(RIGHT)] * 8, NAMES, CAPTION, path)
    assert [each.name for each in files] == ["x-1.png", "x-2.png"]
    assert describe_left(path, files) == "not of this run, and left as they were: " + ", ".join(
        str(tmp_path / name) for name in ("x.png", "x-9.png", "x-10.png")
    )
    assert not describe_left(tmp_path / "new.png", [tmp_path / "new.png"])
    assert not describe_left(tmp_path / "no" / "x.png", [])
    check_numbered(path)
    (tmp_path / "x-7.png").mkdir()
    with pytest.raises(InputError, match=r"x-7\.png is a folder, and a gallery of several files needs its name"):
        check_numbered(path)


def test_a_failed_encoding_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery_files, "MAX_FILE_HEIGHT", 1)
    num_encoded = []

    def encode(_pages: Any, _kind: str) -> bytes:
        num_encoded.append(1)
        if len(num_encoded) > 1:
            raise OSError(5, "Input/output error")
        return b"first"

    monkeypatch.setattr(gallery_files, "_encode", encode)
    with pytest.raises(OSError, match="Input/output error"):
        write_gallery([make_row(RIGHT)] * 2, NAMES, CAPTION, tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []
