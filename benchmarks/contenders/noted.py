"""Penstock's sources, with a timestamp when the first of their rows is read.

A separate module, since worker processes import it together with the rows that they get.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from marks import note_first_image

from prep.source import Item, Source


@dataclass(frozen=True)
class TimestampedRows:
    """Rows of a source that write a timestamp when the first of them is read."""

    rows: Iterable[Item]

    def __iter__(self) -> Iterator[Item]:
        note_first_image()
        return iter(self.rows)


class TimestampedSource:
    """A source whose rows write a timestamp when the first of them is read; all else is passed to the given source."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def rows(self, split: str, start: int, stop: int) -> TimestampedRows:
        return TimestampedRows(self._source.rows(split, start, stop))
