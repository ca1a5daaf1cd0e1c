"""Contact sheets of classified pictures: HTML pages that need no other file, and PNG grids.

Pictures are added one after another. A page or grid is written when it is full, so that memory does not grow.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw

from serve.classify_files import Answer
from serve.lettering import draw_text, prepare_text, wrap_text
from serve.templates import load_template, to_data_uri

PER_PAGE = 1000  # pictures of an HTML page, about 6 MB
COLUMNS, ROWS = 10, 10  # of a PNG
TILE, GAP, TEXT = 144, 12, 40  # pixels: side of a thumbnail, between thumbnails, height of the text below
HEAD = 44  # pixels above the grid
INK, GREY, RED, PAPER, EMPTY = "#1a1a1a", "#6b6b6b", "#b3261e", "#ffffff", "#e6e6e6"


@dataclass(frozen=True)
class Card:
    """One picture of a page."""

    uri: str  # of the thumbnail; empty if the file could not be read
    name: str
    path: str
    share: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Letters:
    """How a line of a grid is written, in pixels."""

    size: int
    is_bold: bool = False
    width: int = TILE


@dataclass
class ContactSheets:
    """The pages and grids of a folder; call `close` after the last picture."""

    folder: Path
    title: str
    notes: Sequence[str]
    num_pictures: int  # in all
    _cards: list[Card] = field(default_factory=list)
    _grid: Image.Image | None = None
    _num_added: int = 0

    def add(self, answer: Answer, path: str, name: str) -> None:
        """Add a picture with its path and the name of its most probable class, both as text."""
        tile = None if answer.crop is None else to_thumbnail(answer.crop)
        share = answer.top[0][1] if answer.top else 0.0
        uri = "" if tile is None else to_data_uri(_encode(tile), "JPEG")
        card = Card(uri, name, path, share, answer.error)
        self._cards.append(card)
        self._draw(tile, card)
        self._num_added += 1
        if self._num_added % PER_PAGE == 0:
            self._write_page()
        if self._num_added % (COLUMNS * ROWS) == 0:
            self._write_grid()

    def close(self) -> None:
        """Write the last page and grid."""
        if self._cards:
            self._write_page()
        if self._grid is not None:
            self._write_grid()

    def _write_page(self) -> None:
        number, last = math.ceil(self._num_added / PER_PAGE), math.ceil(self.num_pictures / PER_PAGE)
        links = [(str(each), None if each == number else name_sheet(each, "html")) for each in range(1, last + 1)]
        text = load_template("serve", "contact_sheet.html.j2").render(
            title=self.title,
            notes=self.notes,
            cards=self._cards,
            first=self._num_added - len(self._cards) + 1,
            num_pictures=self.num_pictures,
            links=links if last > 1 else [],
        )
        (self.folder / name_sheet(number, "html")).write_text(text, encoding="utf-8")
        self._cards.clear()

    def _draw(self, tile: Image.Image | None, card: Card) -> None:
        # Start a grid, no larger than the pictures that are left need.
        position = self._num_added % (COLUMNS * ROWS)
        if self._grid is None:
            num_rows = min(ROWS, math.ceil((self.num_pictures - self._num_added) / COLUMNS))
            size = (GAP + COLUMNS * (TILE + GAP), HEAD + num_rows * (TILE + TEXT + GAP))
            self._grid = Image.new("RGB", size, PAPER)
            _draw_words(ImageDraw.Draw(self._grid), (GAP, 12), self.title, INK, Letters(18, True, size[0] - 2 * GAP))
        row, column = divmod(position, COLUMNS)
        left, top = GAP + column * (TILE + GAP), HEAD + row * (TILE + TEXT + GAP)

        # The thumbnail, and below it the class and the file.
        draw = ImageDraw.Draw(self._grid)
        if tile is None:
            draw.rectangle((left, top, left + TILE - 1, top + TILE - 1), EMPTY)
            first, color = "could not be read", RED
        else:
            self._grid.paste(tile, (left, top))
            first, color = f"{100 * card.share:.0f}% {card.name}", INK
        _draw_words(draw, (left, top + TILE + 3), first, color, Letters(13, True))
        _draw_words(draw, (left, top + TILE + 21), Path(card.path).name, GREY, Letters(11))

    def _write_grid(self) -> None:
        assert self._grid is not None
        number = math.ceil(self._num_added / (COLUMNS * ROWS))
        self._grid.save(self.folder / name_sheet(number, "png"))
        self._grid = None


def name_sheet(number: int, suffix: str) -> str:
    """Return the name of a page or grid, counted from 1: contact-sheet.html, contact-sheet-2.html."""
    return f"contact-sheet{f'-{number}' * (number > 1)}.{suffix}"


def to_thumbnail(crop: Image.Image) -> Image.Image:
    """Return a crop at the size of a thumbnail; small ones are enlarged without smoothing."""
    small = crop.width < TILE // 2
    return crop.resize((TILE, TILE), Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)


def _encode(tile: Image.Image) -> bytes:
    encoded = io.BytesIO()
    tile.save(encoded, "JPEG", quality=80)
    return encoded.getvalue()


def _draw_words(draw: ImageDraw.ImageDraw, place: tuple[int, int], words: str, color: str, letters: Letters) -> None:
    """Draw one line; text that is wider than a thumbnail ends in an ellipsis."""
    drawable, font = prepare_text(words, letters.size, letters.is_bold)
    draw_text(draw, place, wrap_text(drawable, font, letters.width, 1)[0], color, font)
