"""The ledger: what preparation found and did, an entry a finding; its totals, and duplicates across a dataset."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from prep.dataset import REJECTED

REPAIRED, PROGRESSIVE, EXIF_ORIENTATION = "repaired", "progressive", "exif_orientation"
TRAILING_BYTES, SUSPECT, DUPLICATE = "trailing_bytes", "suspect", "duplicate"
MEANINGS = {  # in the order of the summary
    REPAIRED: "made RGB JPEG",
    REJECTED: "left out",
    SUSPECT: "kept: damaged data that still decodes",
    DUPLICATE: "kept: the same bytes as an earlier image",
    PROGRESSIVE: "kept: hardware decoders take baseline JPEGs only",
    EXIF_ORIENTATION: "kept, orientation ignored, as torchvision does",
    TRAILING_BYTES: "kept: bytes after the end of the image",
}


def entry(row: int, name: str, event: str, reason: str) -> dict[str, Any]:
    """One line of the ledger, about one row of the source."""
    return {"row": row, "name": name, "event": event, "reason": reason}


def find_duplicates(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """An entry for each image of a split whose bytes came earlier in it, named by its key."""
    first: dict[bytes, int] = {}
    entries = []
    for i, digest in enumerate(columns["sha256"]):
        j = first.setdefault(digest, i)
        if j != i:
            labels = f"labels {columns['label'][i]} and {columns['label'][j]}"
            entries.append(
                entry(columns["row"][i], columns["key"][i], DUPLICATE, f"same bytes as {columns['key'][j]}, {labels}")
            )
    return entries


def find_leaks(splits: dict[str, dict[str, Sequence[Any]]]) -> list[dict[str, Any]]:
    """An entry for each image (by the sha256 of its JPEG) that is in more than one split, with its keys in each.

    `splits` gives each split's columns `sha256` (bytes) and `key`.
    """
    owners = Counter(digest for columns in splits.values() for digest in set(columns["sha256"]))
    leaked: dict[bytes, dict[str, list[str]]] = {digest: {} for digest, count in owners.items() if count > 1}
    for split, columns in splits.items():
        for digest, key in zip(columns["sha256"], columns["key"], strict=True):
            if digest in leaked:
                leaked[digest].setdefault(split, []).append(key)
    return [{"sha256": digest.hex(), "keys": keys} for digest, keys in sorted(leaked.items())]


def count_events(ledger: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Entries by event, sorted by name."""
    return dict(sorted(Counter(found["event"] for found in ledger).items()))


def to_lines(entries: Iterable[dict[str, Any]]) -> bytes:
    """Entries as JSON, one a line."""
    return "".join(json.dumps(found) + "\n" for found in entries).encode()
