"""Closing a split, once its shards are there: ledger, sample index and, last, the manifest; then the dataset's own."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from prep.dataset import LEDGER, MANIFEST, SAMPLES, Manifest, Options, Origin, Shard, encode_samples, parse_manifest
from prep.errors import InputError
from prep.files import sha256_of
from prep.ledger import count_events, find_duplicates, find_leaks, to_lines
from prep.store import Store

LEAKS, TIMM_INFO = "leaks.jsonl", "_info.json"


@dataclass(frozen=True)
class SplitFacts:
    """What is known of a split before any image is read."""

    split: str
    source: Origin
    options: Options | None
    class_names: tuple[str, ...]
    reading: dict[str, Any] = field(default_factory=dict)


def close_split(store: Store, facts: SplitFacts, records: Iterable[dict[str, Any]]) -> Manifest:
    """Gather the shards' records, in order, into the files that close the split.

    Raises:
        InputError: not one image is usable.
    """
    columns: dict[str, list[Any]] = {}
    ledger: list[dict[str, Any]] = []
    shards: list[Shard] = []
    source_size_bytes = 0
    for record in records:
        ledger += record["ledger"]
        source_size_bytes += record["source_size_bytes"]
        if num_images := record["shard"]["num_images"]:
            _gather(columns, record["columns"], len(shards), num_images)
            shards.append(Shard(**record["shard"]))
    if not shards:
        first = f" ({ledger[0]['name']}: {ledger[0]['reason']}, ...)" if ledger else ""
        raise InputError(f"no image of {facts.split} is usable{first}")
    ledger = _complete(ledger, columns)
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
    )
    for name, content in ((LEDGER, lines), (SAMPLES, samples), (MANIFEST, manifest.to_json().encode())):
        store.write(name, content)
    return manifest


def _gather(columns: dict[str, list[Any]], found: dict[str, list[Any]], shard: int, num_images: int) -> None:
    found["shard"] = [shard] * num_images
    found["sha256"] = [bytes.fromhex(digest) for digest in found["sha256"]]
    for name, values in found.items():
        columns.setdefault(name, []).extend(values)


def _complete(ledger: list[dict[str, Any]], columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """The ledger with the duplicates, which only the whole split shows, in the order of the source's rows."""
    return sorted([*ledger, *find_duplicates(columns)], key=lambda found: found["row"])


def find_manifest(store: Store) -> Manifest | None:
    """The manifest of a split's folder; None where it has none (yet)."""
    content = store.read(MANIFEST)
    return None if content is None else parse_manifest(content, f"{store}/{MANIFEST}")


def close_dataset(store: Store) -> None:
    """Write what lies beside the split folders.

    `_info.json` is what timm's `wds/` reader wants. `leaks.jsonl` lists images that are in several splits.
    """
    with store.lock(wait=True):
        found = {name: find_manifest(store.child(name)) for name in store.names()}
        manifests = {name: manifest for name, manifest in found.items() if manifest}
        store.write(TIMM_INFO, timm_info(manifests))
        store.write(LEAKS, to_lines(list_leaks(store, manifests)))


def timm_info(manifests: dict[str, Manifest]) -> bytes:
    """The `_info.json` of a dataset; `manifests` by the folders of its splits."""
    info = {"splits": {manifest.split: _describe(folder, manifest) for folder, manifest in manifests.items()}}
    return (json.dumps(info, indent=1, sort_keys=True) + "\n").encode()


def list_leaks(store: Store, manifests: dict[str, Manifest]) -> list[dict[str, Any]]:
    """An entry for each image that is in several of a dataset's splits.

    Raises:
        InputError: a split's sample index is damaged.
    """
    if len(manifests) < 2:
        return []
    splits = {folder: _digests(store.child(folder), manifest) for folder, manifest in manifests.items()}
    return find_leaks(splits)


def _describe(folder: str, manifest: Manifest) -> dict[str, Any]:
    return {
        "name": manifest.split,
        "num_samples": manifest.num_images,
        "filenames": [f"{folder}/{shard.name}" for shard in manifest.shards],
        "shard_lengths": [shard.num_images for shard in manifest.shards],
    }


def _digests(store: Store, manifest: Manifest) -> dict[str, Sequence[Any]]:
    content = store.read(SAMPLES)
    if content is None or sha256_of(content) != manifest.samples_sha256:
        raise InputError(f"{store}/{SAMPLES} is damaged: `python prep/verify.py {store}` says how to mend it")
    table = pa.ipc.open_file(pa.BufferReader(content)).read_all()
    return {"sha256": table.column("sha256").to_pylist(), "key": table.column("key").to_pylist()}
