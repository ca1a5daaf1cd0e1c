"""What a source of labelled images is: named splits whose rows can be read by range.

A range comes as a small picklable value that any worker can iterate by itself.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from prep.dataset import Origin

MAX_IMAGE_BYTES = 256 << 20  # ImageNet's largest file has 15 MB; a worker holds a few images at a time


@dataclass(frozen=True)
class Item:
    """One image as its source has it: `name` is the source's own (may be empty), `data` is encoded.

    `data` stays valid as long as the item is kept, but a memoryview holds on to the rows that were read with it.
    `fault` says why the source could not read this one image; then `data` is empty.
    """

    name: str
    data: bytes | memoryview
    label: int
    fault: str = ""


class Source(Protocol):
    """A labelled image dataset whose rows can be read by range."""

    @property
    def origin(self) -> Origin: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def num_rows(self) -> dict[str, int]: ...
    @property
    def size_bytes(self) -> dict[str, int]:
        """Encoded bytes of each split, as near as the source knows without reading an image."""
        ...

    def check(self, split: str) -> None:
        """Raises InputError where a label of the split lies outside the classes."""
        ...

    def rows(self, split: str, start: int, stop: int) -> Iterable[Item]:
        """The rows start..stop of a split, in order; picklable, and small however large the source."""
        ...


def oversize(size_bytes: int) -> str:
    """The fault of an image of so many bytes, empty where it is within the bound."""
    if size_bytes <= MAX_IMAGE_BYTES:
        return ""
    return f"{size_bytes:,} bytes is over the bound of {MAX_IMAGE_BYTES:,}"
