"""What of a damaged tar is harmed: which images by their digests, else which byte of a tar that is framed as ours."""

import hashlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from prep.dataset import Shard
from prep.tar import BLOCK, member_header

MOST_NAMED = 5
Piece = tuple[int, bytes, str]  # offset in the tar, the bytes that should be there, what they are


def describe_damage(
    file: BinaryIO, size_bytes: int, shard: Shard, rows: list[dict[str, Any]], num_classes: int | None
) -> str:
    """In words, how a tar of `size_bytes` differs from the manifest's `shard`.

    `rows` are its rows of the sample index, none where that is damaged; `num_classes` is None for another's tars.
    """
    lost = [row["key"] for row in rows if row["offset"] + row["size"] > size_bytes]
    if size_bytes < shard.size_bytes:
        of_images = f": {len(lost):,} of {len(rows):,} images are lost, from {lost[0]} on" if lost else ""
        return f"is cut short at byte {size_bytes:,} of {shard.size_bytes:,}{of_images}"
    images = _describe_images(file, rows)
    if size_bytes > shard.size_bytes:
        return f"has {size_bytes:,} bytes, not {shard.size_bytes:,}{' and ' if images else ''}{images}"
    if images or not rows:
        return images or "does not match the sha256 of its manifest"
    return f"{_describe_rest(file, shard, rows, num_classes)}; no image is harmed"


def _describe_images(file: BinaryIO, rows: list[dict[str, Any]]) -> str:
    changed = [row["key"] for row in rows if _digest(file, row) != row["sha256"]]
    more = ", ..." if len(changed) > MOST_NAMED else ""
    named = ", ".join(changed[:MOST_NAMED]) + more
    return f"has other bytes in {len(changed):,} of {len(rows):,} images ({named})" if changed else ""


def _describe_rest(file: BinaryIO, shard: Shard, rows: list[dict[str, Any]], num_classes: int | None) -> str:
    for offset, expected, meaning in _framing(rows, shard.size_bytes, num_classes) if num_classes else ():
        file.seek(offset)
        found = file.read(len(expected))
        if found != expected:
            first = next(i for i, byte in enumerate(expected) if found[i : i + 1] != bytes([byte]))
            return f"has another byte {offset + first:,}, in {meaning}"
    return "has other bytes in a header, another member or the padding"


def _digest(file: BinaryIO, row: dict[str, Any]) -> bytes:
    file.seek(row["offset"])
    return hashlib.sha256(file.read(row["size"])).digest()


def _framing(rows: list[dict[str, Any]], size_bytes: int, num_classes: int) -> Iterator[Piece]:
    """All that `prep.tar.TarWriter` puts around the images of a shard."""
    width = len(str(num_classes - 1))
    end = 0
    for row in rows:
        offset, size, name, label = row["offset"], row["size"], f"{row['key']}.jpg", f"{row['key']}.cls"
        yield offset - BLOCK, member_header(name.encode(), size), f"the header of {name}"
        yield offset + size, bytes(-size % BLOCK), f"the padding after {name}"
        after = offset + size + -size % BLOCK
        yield after, member_header(label.encode(), width), f"the header of {label}"
        yield after + BLOCK, str(row["label"]).zfill(width).encode().ljust(BLOCK, b"\0"), f"{label} or its padding"
        end = after + 2 * BLOCK
    yield end, bytes(size_bytes - end), "the padding at its end"
