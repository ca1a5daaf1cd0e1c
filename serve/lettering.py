"""Text in pictures: a font that has the letters, lines that fit, and escapes for letters that no font here has.

DejaVu Sans comes with matplotlib. It has Latin, Greek, Cyrillic, Arabic and more, but no Chinese, Japanese, Korean,
Thai or Indian scripts; for these a font of the system is used if it has all letters of the text.
"""

import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import matplotlib as mpl
from PIL import Image, ImageDraw, ImageFont, features

from prep.errors import list_some

ASCENT = 0.93  # of DejaVu Sans: from the top of a line to its baseline, as a share of its size
# Fonts that have a box, a number or a drawing for every character instead of its letter.
SUBSTITUTES = re.compile(r"last.?resort|adobe.?blank|notdef|emoji|unifont.?upper", re.IGNORECASE)
# Hebrew, Arabic and the Indian scripts, Tibetan to Burmese, Khmer and Mongolian, Arabic's forms: letters change their
# form or order with their neighbours, which needs the library raqm.
SHAPED = re.compile("[\u0590-\u0dff\u0f00-\u109f\u1780-\u18af\ufb1d-\ufdff\ufe70-\ufefe]")


def prepare_text(words: str, size: int, bold: bool = False) -> tuple[str, ImageFont.FreeTypeFont]:
    """Return a text as it can be drawn, and a font for it.

    Args:
        words: any text; letters that no font here can draw are escaped, `\\u732b`.
        size: of the letters, pixels.
    """
    drawable = unicodedata.normalize("NFC", " ".join(words.split()))
    path = find_font(frozenset(drawable), bold)
    if path is None:
        path = _own_font(bold)
        drawable = "".join(each if can_draw(path, {each}) else _escape(each) for each in drawable)
    return drawable, load_font(path, size)


def describe_missing(texts: Iterable[str]) -> str | None:
    """Return a sentence that names the texts that no font here can draw; None if all can be drawn."""
    normal = [unicodedata.normalize("NFC", " ".join(each.split())) for each in texts]
    missing = list(dict.fromkeys(each for each in normal if find_font(frozenset(each), False) is None))
    if not missing:
        return None
    return (
        f"no font on this machine has all letters of {list_some(missing)}: the picture writes them as escapes; install "
        "a font that has them (Debian: fonts-noto-cjk, fonts-noto-core), or read the HTML report of serve/report.py"
    )


def _escape(letter: str) -> str:
    return letter.encode("ascii", "backslashreplace").decode()


# Fonts


@cache
def find_font(letters: frozenset[str], bold: bool) -> Path | None:
    """Return a font file that has all letters: DejaVu Sans if possible, else one of the system; None if none has."""
    own = _own_font(bold)
    if can_draw(own, letters):
        return own
    return next((path for path in list_system_fonts(bold) if can_draw(path, letters)), None)


def can_draw(path: Path, letters: Iterable[str]) -> bool:
    """Return True if a font has all letters, and this Pillow can arrange them."""
    seen = [each for each in letters if not each.isspace() and unicodedata.category(each) not in ("Cc", "Cf")]
    if any(SHAPED.match(each) for each in seen) and not (features.check("raqm") and features.check("fribidi")):
        return False
    return all(ord(each) in _read_letters(path) for each in seen)


def list_system_fonts(bold: bool) -> list[Path]:
    """Return the system's font files: those without serifs and of the wanted weight first, then by name."""

    def order(path: Path) -> tuple[bool, bool, str]:
        name = path.stem.lower()
        return "sans" not in name and "gothic" not in name, ("bold" in name) != bold, name

    return sorted((path for path in _find_system_fonts() if not SUBSTITUTES.search(path.stem)), key=order)


@cache
def _find_system_fonts() -> tuple[Path, ...]:
    from matplotlib import font_manager  # noqa: PLC0415 - it takes half a second, and few names need it

    return tuple(Path(each) for each in font_manager.findSystemFonts())


@cache
def _read_letters(path: Path) -> frozenset[int]:
    """Return the code points that a font has letters for; none if Pillow or FreeType cannot use the file."""
    from matplotlib.ft2font import FT2Font  # noqa: PLC0415 - as above

    try:
        load_font(path, 16)
        return frozenset(FT2Font(str(path)).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()


def _own_font(bold: bool) -> Path:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return Path(mpl.get_data_path()) / "fonts" / "ttf" / name


@cache
def load_font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    """Return a font at a size in pixels."""
    return ImageFont.truetype(str(path), size)


# Lines


def wrap_text(words: str, letters: ImageFont.FreeTypeFont, width: int, most: int) -> list[str]:
    """Return at most `most` lines, each no wider than `width` pixels; text that does not fit ends in an ellipsis."""
    lines, rest = [], " ".join(words.split())
    while rest and len(lines) < most:
        # The longest start of the rest that fits; at least one character, so that the loop ends.
        length = next(n for n in range(len(rest), 0, -1) if letters.getlength(rest[:n]) <= width or n == 1)
        if length < len(rest) and len(lines) == most - 1:
            return [*lines, rest[: max(1, length - 2)].rstrip() + "…"]
        # Break at the last space, inside a word only if it is longer than a line.
        space = rest.rfind(" ", 0, length + 1)
        cut = space if length < len(rest) and space > 0 else length
        lines.append(rest[:cut])
        rest = rest[cut:].lstrip()
    return lines or [""]


def draw_line(draw: ImageDraw.ImageDraw, place: tuple[int, int], words: str, color: str, size: int) -> None:
    """Draw one line at its upper left corner, in regular letters, without a limit of its width."""
    drawable, font = prepare_text(words, size)
    draw_text(draw, place, drawable, color, font)


def draw_text(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], drawable: str, color: str, font: ImageFont.FreeTypeFont
) -> None:
    """Draw a prepared line; fonts differ in what is above their letters, so their baselines are aligned instead."""
    left, top = place
    draw.text((left, top + round(ASCENT * font.size)), drawable, color, font, anchor="ls")


def draw_label(tile: Image.Image, words: str, size: int = 15) -> None:
    """Write a line at the foot of a tile, white on a dark strip, so that it is readable on any picture."""
    drawable, font = prepare_text(words, size, bold=True)
    strip = Image.new("RGB", (tile.width, 30), "#1a1a1a")
    draw_text(ImageDraw.Draw(strip), (8, 6), drawable, "#ffffff", font)
    tile.paste(strip, (0, tile.height - strip.height))
