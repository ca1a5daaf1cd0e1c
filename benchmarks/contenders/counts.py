"""How many images a contender's output holds, read back from it; the standard library alone, but for parquet."""

import json
from pathlib import Path

BLOCK = 512  # of a tar
SIZE_FIELD = slice(124, 136)  # of a tar header, octal


def tars(out: Path) -> int:
    """The members KEY.jpg of all tars."""
    return sum(_jpegs(path) for path in out.rglob("*.tar"))


def _jpegs(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while (header := file.read(BLOCK)).strip(b"\0"):
            found += header[:100].rstrip(b"\0").endswith(b".jpg")
            size_bytes = int(header[SIZE_FIELD].strip(b" \0"), 8)
            file.seek(size_bytes + -size_bytes % BLOCK, 1)
    return found


def litdata(out: Path) -> int:
    """The items of all chunks in LitData's index."""
    return sum(chunk["chunk_size"] for chunk in json.loads((out / "index.json").read_text())["chunks"])


def mosaic(out: Path) -> int:
    """The samples of all shards in the merged index; a shard that is not there counts for nothing."""
    shards = json.loads((out / "index.json").read_text())["shards"]
    return sum(shard["samples"] for shard in shards if (out / shard["raw_data"]["basename"]).is_file())


def parquet(out: Path) -> int:
    """The rows of all parquet files."""
    import pyarrow.parquet as pq  # noqa: PLC0415

    return sum(pq.ParquetFile(path).metadata.num_rows for path in out.rglob("*.parquet"))
