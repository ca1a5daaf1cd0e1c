"""What a source of labelled images is: named splits whose rows can be read by range.

A range comes as a small picklable value that any worker can iterate by itself.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from prep.dataset import Origin


@dataclass(frozen=True)
class Item:
    """One image as its source has it: `name` is the source's own (may be empty), `data` is encoded."""

    name: str
    data: bytes
    label: int


class Source(Protocol):
    """A labelled image dataset whose rows can be read by range."""

    @property
    def origin(self) -> Origin: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def num_rows(self) -> dict[str, int]: ...

    def check(self, split: str) -> None:
        """Raises InputError where a label of the split lies outside the classes."""
        ...

    def rows(self, split: str, start: int, stop: int) -> Iterable[Item]:
        """The rows start..stop of a split, in order; picklable, and small however large the source."""
        ...
