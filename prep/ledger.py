"""The ledger: what preparation found and did, one entry per finding; its totals, and summaries of it for users."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prep.dataset import LEDGER, REJECTED, Manifest
from prep.errors import one_line
from prep.progress import format_duration
from prep.store import Store

LEAKS = "leaks.jsonl"  # next to the split folders: images that are in several splits
REPAIRED, PROGRESSIVE, EXIF_ORIENTATION = "repaired", "progressive", "exif_orientation"
TRAILING_BYTES, SUSPECT, DUPLICATE = "trailing_bytes", "suspect", "duplicate"
NO_RESTARTS = "no_restarts"
MEANINGS = {  # in the order of the summary
    REPAIRED: "converted to RGB JPEG",
    REJECTED: "left out",
    SUSPECT: "kept: damaged data that still decodes",
    DUPLICATE: "kept: the same bytes as an earlier image",
    PROGRESSIVE: "kept: hardware decoders accept only baseline JPEGs",
    NO_RESTARTS: "kept as it was: could not be transcoded",
    EXIF_ORIENTATION: "kept, orientation ignored, as in torchvision",
    TRAILING_BYTES: "kept: the stored file has bytes after its end",
}
MOST_SHOWN = 5  # rejected images in a warning


# Entries.


def entry(row: int, name: str, event: str, reason: str) -> dict[str, Any]:
    """Return one line of the ledger, about one row of the source."""
    return {"row": row, "name": name, "event": event, "reason": reason}


def find_duplicates(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Return an entry, named by its key, for each image of a split whose bytes are those of an earlier image."""
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
    """Return an entry for each image (by the SHA-256 of its JPEG) in more than one split, with its keys in each.

    Args:
        splits: the columns `sha256` (bytes) and `key` of each split.
    """
    owners = Counter(digest for columns in splits.values() for digest in set(columns["sha256"]))
    leaked: dict[bytes, dict[str, list[str]]] = {digest: {} for digest, count in owners.items() if count > 1}
    for split, columns in splits.items():
        for digest, key in zip(columns["sha256"], columns["key"], strict=True):
            if digest in leaked:
                leaked[digest].setdefault(split, []).append(key)
    return [{"sha256": digest.hex(), "keys": keys} for digest, keys in sorted(leaked.items())]


def count_events(ledger: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Count the entries by event, sorted by name."""
    return dict(sorted(Counter(found["event"] for found in ledger).items()))


def to_lines(entries: Iterable[dict[str, Any]]) -> bytes:
    """Return entries as JSON, one per line."""
    return "".join(json.dumps(found) + "\n" for found in entries).encode()


# Summaries.


def summarize(manifest: Manifest, store: Store, seconds: float) -> str:
    """Return the totals of a split: kept + repaired + rejected = offered, and one line per kind of finding."""
    # Totals.
    rejected, repaired = manifest.num_rejected, manifest.findings.get(REPAIRED, 0)
    lines = [
        f"{store}: {manifest.num_images:,} images of {len(manifest.class_names):,} classes, "
        f"{manifest.size_bytes / 1e6:,.1f} MB in {len(manifest.shards):,} shards ({format_duration(seconds)})",
        f"  {manifest.num_images + rejected:,} offered = {manifest.num_images - repaired:,} kept "
        f"+ {repaired:,} repaired + {rejected:,} rejected",
    ]
    # How the source was read, and by how much the images shrank.
    lines += [f"  {line}" for line in describe_reading(manifest.reading)]
    before, after = (size / manifest.num_images for size in (manifest.source_size_bytes, manifest.size_bytes))
    if before != after:
        lines.append(f"  {before:,.0f} bytes per image before, {after:,.0f} after")
    if manifest.options and manifest.options.restarts:
        num_transcoded = manifest.num_images - manifest.findings.get(NO_RESTARTS, 0)
        lines.append(f"  {num_transcoded:,} images transcoded to have restart markers")
    # Findings, in the order of MEANINGS.
    findings = [(event, manifest.findings[event]) for event in MEANINGS if event in manifest.findings]
    lines += [f"  {count:>9,} {event:<17} {MEANINGS[event]}" for event, count in findings]
    if manifest.findings:
        lines.append(f"  each is listed in {store}/{LEDGER}")
    return "\n".join(lines)


def describe_reading(reading: Mapping[str, Any]) -> list[str]:
    """Return in a few lines how the source was read; an empty list if the manifest does not record it."""
    chosen = [
        f"{text} {reading[key]}"
        for key, text in (
            ("config", "configuration"),
            ("image_column", "image column"),
            ("label_column", "label column"),
        )
        if reading.get(key)
    ]
    chosen += [f"split {name} of the source" for name in reading.get("split_map", ())]
    passed_over = f" (also there: {', '.join(reading['passed_over'])})" if reading.get("passed_over") else ""
    lines = [f"read: {', '.join(chosen) or 'by default'}{passed_over}"] if chosen or passed_over else []
    lines += [f"missing, allowed: {line}" for line in reading.get("missing", ())]
    return [*lines, *(f"note: {line}" for line in reading.get("notes", ()))]


def describe_rejects(store: Store) -> str:
    """Return the first rejected images with their reasons in one line; empty if there are none."""
    entries = [json.loads(line) for line in (store.read(LEDGER) or b"").splitlines()]
    rejects = [found for found in entries if found["event"] == REJECTED]
    if not rejects:
        return ""
    shown = "; ".join(
        f"{found['name'] or 'row ' + str(found['row'])}: {found['reason']}" for found in rejects[:MOST_SHOWN]
    )
    more = "; ..." if len(rejects) > MOST_SHOWN else ""
    return one_line(f"{store}: {len(rejects):,} images left out ({shown}{more}), all listed in {LEDGER}")


def describe_leaks(out: Store) -> str:
    """Return in one line how many images are in several splits; empty if there are none."""
    leaks = [json.loads(line) for line in (out.read(LEAKS) or b"").splitlines()]
    if not leaks:
        return ""
    pairs = Counter(" and ".join(sorted(leak["keys"])) for leak in leaks)
    counts = ", ".join(f"{count:,} in {pair}" for pair, count in sorted(pairs.items()))
    return f"{out}: {len(leaks):,} images are in more than one split ({counts}), listed in {LEAKS}"
