"""The interface of a source of labelled images: named splits with rows that can be read by range.

A range is a small picklable value. Any worker process can iterate over it without the rest of the source.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from prep.dataset import Origin

MAX_IMAGE_BYTES = 256 << 20  # ImageNet's largest file has 15 MB; a worker holds a few images at a time


@dataclass(frozen=True)
class Item:
    """One image as its source stores it.

    `data` stays valid as long as the item is kept, but a memoryview keeps all rows that were read with it in memory.
    """

    name: str  # the name in the source; may be empty
    data: bytes | memoryview  # encoded, in any format
    label: int
    fault: str = ""  # why the source could not read this image; `data` is then empty


@dataclass(frozen=True)
class Reading:
    """The way in which the user wants a source to be read; None means that no flag was given.

    Each field is a flag of `prep/shard.py`. The manifest records how the source was read: `Source.reading`.
    """

    config: str | None = None  # configuration of a Hugging Face dataset
    image_column: str | None = None
    label_column: str | None = None
    split_map: tuple[tuple[str, str], ...] = ()  # (name at the source, name of the prepared split)
    allow_missing: bool = False  # continue although the source is not complete

    @classmethod
    def from_manifest(cls, reading: Mapping[str, Any]) -> "Reading":
        """Return the flags that read a source again in the way that a manifest's `reading` records."""
        split_map = reading.get("split_map", {})
        return cls(
            config=reading.get("config"),
            image_column=reading.get("image_column"),
            label_column=reading.get("label_column"),
            split_map=tuple(split_map.items()),
            allow_missing=bool(reading.get("missing")),
        )


class Source(Protocol):
    """A labelled image dataset with rows that can be read by range."""

    @property
    def origin(self) -> Origin: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def num_rows(self) -> dict[str, int]: ...
    @property
    def size_bytes(self) -> dict[str, int]:
        """Encoded bytes of each split, estimated without reading any image."""
        ...

    def reading(self, split: str) -> dict[str, Any]:
        """Return how a split was read, for the manifest and the summary, as JSON values.

        Only the keys that apply are present: `config`, `image_column`, `label_column`;
        `split_map`: {name at the source: split}, for this split only; for an image folder with --split-map it holds
        all splits, because the labels depend on all of them;
        `passed_over`: lines on candidates that were not read;
        `missing`: lines on parts that the source declares and that are absent, only with `Reading.allow_missing`;
        `notes`: lines on anything else that matters to users of the dataset;
        `license`: what the source's dataset card declares about the licence, by the card's keys.
        """
        ...

    def check_split(self, split: str) -> None:
        """Check that a split can be prepared and that all its labels are classes.

        Raises:
            InputError: it cannot be prepared, or a label is outside the classes.
        """
        ...

    def rows(self, split: str, start: int, stop: int) -> Iterable[Item]:
        """Return the rows start..stop of a split, in order; the value is picklable and small for any source."""
        ...


def explain_oversize(size_bytes: int) -> str:
    """Return the fault of an image of this size, or an empty string if the size is allowed."""
    if size_bytes <= MAX_IMAGE_BYTES:
        return ""
    return f"{size_bytes:,} bytes is over the bound of {MAX_IMAGE_BYTES:,}"
