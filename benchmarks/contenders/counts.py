"""Count the images in a contender's output by reading it back. Needs the standard library only, except for parquet."""

import json
from pathlib import Path

BLOCK = 512  # bytes of a tar's block
SIZE_FIELD = slice(124, 136)  # the octal size in a tar header


def tars(out: Path) -> int:
    """Count the members KEY.jpg of all tars."""
    return sum(_count_jpegs(path) for path in out.rglob("*.tar"))


def _count_jpegs(path: Path) -> int:
    """Count the members KEY.jpg of one tar from its headers."""
    found = 0
    with path.open("rb") as file:
        while (header := file.read(BLOCK)).strip(b"\0"):
            found += header[:100].rstrip(b"\0").endswith(b".jpg")
            size_bytes = int(header[SIZE_FIELD].strip(b" \0"), 8)
            file.seek(size_bytes + -size_bytes % BLOCK, 1)
    return found


def litdata(out: Path) -> int:
    """Count the items of all chunks in LitData's index."""
    return sum(chunk["chunk_size"] for chunk in json.loads((out / "index.json").read_text())["chunks"])


def mosaic(out: Path) -> int:
    """Count the samples of all shards in the merged index, except those of missing shard files."""
    shards = json.loads((out / "index.json").read_text())["shards"]
    return sum(shard["samples"] for shard in shards if (out / shard["raw_data"]["basename"]).is_file())


def parquet(out: Path) -> int:
    """Count the rows of all parquet files."""
    import pyarrow.parquet as pq  # noqa: PLC0415

    return sum(pq.ParquetFile(path).metadata.num_rows for path in out.rglob("*.parquet"))
