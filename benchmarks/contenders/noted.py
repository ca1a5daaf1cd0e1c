"""Our sources, noting when the first of their rows is asked for.

A module of its own, since worker processes import it with the rows that they get: it costs them nothing else.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from marks import note_first_image

from prep.source import Item, Source


@dataclass(frozen=True)
class NotedRows:
    """Rows of a source that note when the first of them is asked for."""

    rows: Iterable[Item]

    def __iter__(self) -> Iterator[Item]:
        note_first_image()
        return iter(self.rows)


class NotedSource:
    """A source whose rows note when the first of them is asked for; all else is the source's own."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def rows(self, split: str, start: int, stop: int) -> NotedRows:
        return NotedRows(self._source.rows(split, start, stop))
