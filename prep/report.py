"""What preparation says at its end: a table of what was found, for people."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from prep.closing import LEAKS
from prep.dataset import LEDGER, REJECTED, Manifest
from prep.errors import one_line
from prep.ledger import MEANINGS, REPAIRED
from prep.progress import format_duration
from prep.store import Store

MOST_SHOWN = 5


def summarize(manifest: Manifest, store: Store, seconds: float) -> str:
    """A split's totals: kept + repaired + rejected = offered, and a line for each kind of finding."""
    rejected, repaired = manifest.num_rejected, manifest.findings.get(REPAIRED, 0)
    lines = [
        f"{store}: {manifest.num_images:,} images of {len(manifest.class_names):,} classes, "
        f"{manifest.size_bytes / 1e6:,.1f} MB in {len(manifest.shards):,} shards ({format_duration(seconds)})",
        f"  {manifest.num_images + rejected:,} offered = {manifest.num_images - repaired:,} kept "
        f"+ {repaired:,} repaired + {rejected:,} rejected",
    ]
    lines += [f"  {line}" for line in describe_reading(manifest.reading)]
    before, after = (size / manifest.num_images for size in (manifest.source_size_bytes, manifest.size_bytes))
    if before != after:
        lines.append(f"  {before:,.0f} bytes an image before, {after:,.0f} after")
    lines += [f"  {count:>9,} {event:<17} {MEANINGS[event]}" for event, count in _in_order(manifest.findings)]
    if manifest.findings:
        lines.append(f"  each is listed in {store}/{LEDGER}")
    return "\n".join(lines)


def describe_reading(reading: Mapping[str, Any]) -> list[str]:
    """Return how the source was read, in a few lines; none where the manifest says nothing of it."""
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
    lines = [f"read: {', '.join(chosen) or 'as it is'}{passed_over}"] if chosen or passed_over else []
    lines += [f"missing, allowed: {line}" for line in reading.get("missing", ())]
    return [*lines, *(f"note: {line}" for line in reading.get("notes", ()))]


def _in_order(findings: dict[str, int]) -> list[tuple[str, int]]:
    return [(event, findings[event]) for event in MEANINGS if event in findings]


def describe_rejects(store: Store) -> str:
    """The first rejected images with their reasons, in one line; empty where there are none."""
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
    """How many images are in several splits, in one line; empty where none is."""
    leaks = [json.loads(line) for line in (out.read(LEAKS) or b"").splitlines()]
    if not leaks:
        return ""
    pairs = Counter(" and ".join(sorted(leak["keys"])) for leak in leaks)
    counts = ", ".join(f"{count:,} in {pair}" for pair, count in sorted(pairs.items()))
    return f"{out}: {len(leaks):,} images are in more than one split ({counts}), listed in {LEAKS}"
