"""Whether a split's manifest, sample index and ledger agree with each other, read without looking into a shard."""

import json
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from prep.dataset import SAMPLE_SCHEMA, Manifest
from prep.ledger import count_events


def read_samples_table(content: bytes) -> pa.Table | None:
    """The sample index from its file's bytes; None where they are something else."""
    try:
        table = pa.ipc.open_file(pa.BufferReader(content)).read_all()
    except (pa.ArrowInvalid, OSError):
        return None
    return table.combine_chunks() if table.schema.equals(SAMPLE_SCHEMA) else None


def find_contradictions(manifest: Manifest, table: pa.Table | None, ledger: bytes) -> list[str]:
    """What cannot all be true, in words."""
    wrong = [] if table is None else list(_compare_samples(manifest, table))
    if count_events(map(json.loads, ledger.splitlines())) != manifest.findings:
        wrong.append("the ledger has other counts")
    if len({shard.name for shard in manifest.shards}) < len(manifest.shards):
        wrong.append("two shards have one name")
    return wrong


def _compare_samples(manifest: Manifest, table: pa.Table) -> Iterator[str]:
    num_images = [shard.num_images for shard in manifest.shards]
    if not manifest.num_images == table.num_rows == sum(num_images):
        yield f"{manifest.num_images:,} images, {table.num_rows:,} rows, {sum(num_images):,} in the shards"
        return
    columns = {name: table.column(name).to_numpy() for name in ("shard", "offset", "size", "label", "width", "height")}
    shard, offset, size = columns["shard"], columns["offset"], columns["size"]
    if int(size.sum()) != manifest.size_bytes:
        yield f"{manifest.size_bytes:,} bytes, {int(size.sum()):,} in the rows"
    if not np.array_equal(shard, np.repeat(np.arange(len(num_images)), num_images)):
        yield "the rows are not in the order of the shards"
    if np.any((offset[1:] < (offset + size)[:-1]) & (shard[1:] == shard[:-1])):
        yield "offsets do not ascend within a shard"
    if np.any((columns["label"] < 0) | (columns["label"] >= len(manifest.class_names))):
        yield f"a label is outside its {len(manifest.class_names):,} classes"
    if np.any((columns["width"] < 1) | (columns["height"] < 1)):
        yield "an image has no pixels"
    if len(table.column("key").unique()) != table.num_rows:
        yield "two images have one key"
