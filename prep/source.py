"""What a source of labelled images is: named splits whose rows can be read by range.

A range comes as a small picklable value that any worker can iterate by itself.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

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


@dataclass(frozen=True)
class Reading:
    """How a user wants a source to be read, where more than one reading is possible; None: not said.

    Each field is a flag of `prep/shard.py`. What was then read stands in the manifest, as `Source.reading` gives it.
    """

    config: str | None = None  # configuration of a Hugging Face dataset
    image_column: str | None = None
    label_column: str | None = None
    split_map: tuple[tuple[str, str], ...] = ()  # (name at the source, name of the prepared split)
    allow_missing: bool = False  # go on although the source says that it is not complete

    @classmethod
    def from_manifest(cls, reading: Mapping[str, Any]) -> "Reading":
        """Return the flags that read a source again as a manifest's `reading` says that it was read."""
        split_map = reading.get("split_map", {})
        return cls(
            config=reading.get("config"),
            image_column=reading.get("image_column"),
            label_column=reading.get("label_column"),
            split_map=tuple(split_map.items()),
            allow_missing=bool(reading.get("missing")),
        )


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

    def reading(self, split: str) -> dict[str, Any]:
        """Return how a split was read, for the manifest and the summary, as JSON can hold it.

        Only the keys that apply: `config`, `image_column`, `label_column`, `split_map` ({name at the source: split},
        this split alone; of an image folder with --split-map all of them, since its labels depend on all),
        `passed_over` (list of lines: candidates that were not taken), `missing` (list of lines: what the source says
        that it has and that is not there; only with `Reading.allow_missing`), `notes` (list of lines: what else a
        reader should know).
        """
        ...

    def check(self, split: str) -> None:
        """Raises InputError where a label of the split lies outside the classes."""
        ...

    def rows(self, split: str, start: int, stop: int) -> Iterable[Item]:
        """The rows start..stop of a split, in order; picklable, and small however large the source."""
        ...


def is_lfs_pointer(start: bytes) -> bool:
    """Check whether a file that starts with these bytes is a pointer of Git LFS, left by a clone without its files."""
    return start.startswith(b"version https://git-lfs.github.com/spec/")


def oversize(size_bytes: int) -> str:
    """The fault of an image of so many bytes, empty where it is within the bound."""
    if size_bytes <= MAX_IMAGE_BYTES:
        return ""
    return f"{size_bytes:,} bytes is over the bound of {MAX_IMAGE_BYTES:,}"
