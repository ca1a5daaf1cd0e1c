"""Finalize a split when its shards are written: ledger, sample index and, last, the manifest; then the dataset's files.

`ShardContents` collects what one shard holds. A worker stores it as the shard's record; `finalize_split` gathers the
records of all shards into the files of the split.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from prep.card import README
from prep.dataset import (
    FORMAT_VERSION,
    FORMAT_WITH_SEGMENTS,
    LEDGER,
    MANIFEST,
    SAMPLES,
    Manifest,
    Options,
    Origin,
    Shard,
    encode_samples,
    parse_manifest,
)
from prep.dataset_card import is_users_readme, make_dataset_card
from prep.errors import InputError
from prep.files import sha256_of
from prep.ledger import LEAKS, count_events, find_duplicates, find_leaks, to_lines
from prep.segments import Segments
from prep.store import Store

TIMM_INFO = "_info.json"
DATASET_FILES = (TIMM_INFO, README, LEAKS)  # next to the split folders
COLUMNS = ("key", "offset", "size", "label", "width", "height", "sha256", "row")


@dataclass
class ShardContents:
    """The contents of one shard, collected while it is written or read."""

    # Columns of the sample index, and each image's row in the source.
    columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in COLUMNS})
    components: list[list[tuple[str, int, int, str]]] = field(default_factory=list)  # for DALI's index
    segments: list[Segments | None] = field(default_factory=list)  # of each image
    ledger: list[dict[str, Any]] = field(default_factory=list)
    source_size_bytes: int = 0

    def add_row(self, values: Sequence[Any]) -> None:
        """Append one image; `values` are in the order of `COLUMNS`, with sha256 in hexadecimal digits."""
        for column, value in zip(self.columns.values(), values, strict=True):
            column.append(value)

    def to_record(self, shard: Shard) -> dict[str, Any]:
        """Return everything that finalizing the split needs from this shard, as JSON values."""
        facts = {"shard": asdict(shard), "source_size_bytes": self.source_size_bytes}
        return {**facts, "columns": self.columns, "ledger": self.ledger}


@dataclass(frozen=True)
class SplitFacts:
    """Facts about a split that are known before its images are read."""

    split: str
    source: Origin
    options: Options | None
    class_names: tuple[str, ...]
    reading: dict[str, Any] = field(default_factory=dict)


def finalize_split(store: Store, facts: SplitFacts, records: Iterable[dict[str, Any]]) -> Manifest:
    """Write the ledger, the sample index and the manifest of a split.

    Args:
        records: the records of its shards, in order; see `ShardContents.to_record`.

    Raises:
        InputError: no image is usable.
    """
    # Gather the records; shards without a usable image get no place in the manifest.
    columns: dict[str, list[Any]] = {}
    ledger: list[dict[str, Any]] = []
    shards: list[Shard] = []
    source_size_bytes = 0
    for record in records:
        ledger += record["ledger"]
        source_size_bytes += record["source_size_bytes"]
        if num_images := record["shard"]["num_images"]:
            _append_columns(columns, record["columns"], len(shards), num_images)
            shards.append(Shard(**record["shard"]))
    if not shards:
        first = f" ({ledger[0]['name']}: {ledger[0]['reason']}, ...)" if ledger else ""
        raise InputError(f"no image of {facts.split} is usable{first}")

    # Add the duplicates, which only the complete split shows, in the order of the source's rows.
    ledger = sorted([*ledger, *find_duplicates(columns)], key=lambda found: found["row"])

    # Encode the files. The manifest holds the digests of the others.
    samples = encode_samples({name: values for name, values in columns.items() if name != "row"})
    lines = to_lines(ledger)
    manifest = Manifest(
        split=facts.split,
        source=facts.source,
        options=facts.options,
        class_names=facts.class_names,
        num_images=len(columns["key"]),
        size_bytes=sum(columns["size"]),
        source_size_bytes=source_size_bytes,
        findings=count_events(ledger),
        ledger_sha256=sha256_of(lines),
        samples_sha256=sha256_of(samples),
        shards=tuple(shards),
        reading=facts.reading,
        format_version=FORMAT_WITH_SEGMENTS if all(shard.segments_sha256 for shard in shards) else FORMAT_VERSION,
    )

    # Write the manifest last: a split that has one is complete.
    for name, content in ((LEDGER, lines), (SAMPLES, samples), (MANIFEST, manifest.to_json().encode())):
        store.write(name, content)
    return manifest


def _append_columns(columns: dict[str, list[Any]], found: dict[str, list[Any]], shard: int, num_images: int) -> None:
    found["shard"] = [shard] * num_images
    found["sha256"] = [bytes.fromhex(digest) for digest in found["sha256"]]
    for name, values in found.items():
        columns.setdefault(name, []).extend(values)


def find_manifest(store: Store) -> Manifest | None:
    """Return the manifest of a split's folder; None if it has none (yet).

    Raises:
        InputError: it is damaged.
    """
    content = store.read(MANIFEST)
    return None if content is None else parse_manifest(content, f"{store}/{MANIFEST}")


def finalize_dataset(store: Store) -> None:
    """Write the files next to the split folders.

    `_info.json` is read by timm's `wds/` reader, `README.md` by `datasets`. `leaks.jsonl` lists images that are in
    several splits. A README.md of the user is kept.
    """
    with store.lock(wait=True):
        found = {name: find_manifest(store.child(name)) for name in store.names()}
        manifests = {name: manifest for name, manifest in found.items() if manifest}
        store.write(TIMM_INFO, timm_info(manifests))
        if not is_users_readme(store.read(README)):
            store.write(README, make_dataset_card(manifests))
        store.write(LEAKS, to_lines(list_leaks(store, manifests)))


def timm_info(manifests: dict[str, Manifest]) -> bytes:
    """Return the `_info.json` of a dataset; the keys of `manifests` are the folders of its splits."""
    info = {"splits": {manifest.split: _describe_split(folder, manifest) for folder, manifest in manifests.items()}}
    return (json.dumps(info, indent=1, sort_keys=True) + "\n").encode()


def list_leaks(store: Store, manifests: dict[str, Manifest]) -> list[dict[str, Any]]:
    """Return an entry for each image that is in several splits of a dataset.

    Raises:
        InputError: a split's sample index is damaged.
    """
    if len(manifests) < 2:
        return []
    splits = {folder: _read_digests(store.child(folder), manifest) for folder, manifest in manifests.items()}
    return find_leaks(splits)


def _describe_split(folder: str, manifest: Manifest) -> dict[str, Any]:
    return {
        "name": manifest.split,
        "num_samples": manifest.num_images,
        "filenames": [f"{folder}/{shard.name}" for shard in manifest.shards],
        "shard_lengths": [shard.num_images for shard in manifest.shards],
    }


def _read_digests(store: Store, manifest: Manifest) -> dict[str, Sequence[Any]]:
    content = store.read(SAMPLES)
    if content is None or sha256_of(content) != manifest.samples_sha256:
        raise InputError(f"{store}/{SAMPLES} is damaged: `python prep/verify.py {store}` says how to repair it")
    table = pa.ipc.open_file(pa.BufferReader(content)).read_all()
    return {"sha256": table.column("sha256").to_pylist(), "key": table.column("key").to_pylist()}
