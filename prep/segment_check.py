"""Compare a `SHARD.seg` with its digest and with the images of its tar, and say in words which image is wrong."""

from collections.abc import Sequence

import numpy as np

from prep.files import sha256_of
from prep.segments import HEADER, RECORD, Segments, encode_segments, records_size


def compare_segments(
    content: bytes | None, digest: str, images: Sequence[Segments | None], keys: Sequence[str], absence: str
) -> tuple[str, bool]:
    """Return what is wrong with a SHARD.seg (empty: nothing), and whether it can be written again from its tar.

    Args:
        content: of the file; None if it is missing or cannot be read.
        digest: its SHA-256 in the manifest.
        images: the segments of the shard's images, found in its undamaged tar.
        keys: of these images.
        absence: in words, why the content is missing.
    """
    expected = encode_segments(images)
    if content is None:
        can_be_written = sha256_of(expected) == digest
        return (absence if can_be_written else f"{absence}, and its tar gives another one"), can_be_written
    if sha256_of(expected) == digest:
        return ("" if content == expected else _describe_difference(content, expected, keys)), True
    if sha256_of(content) == digest:
        return _describe_difference(content, expected, keys), False
    return "does not match its manifest, and its tar gives another one", False


def _describe_difference(content: bytes, expected: bytes, keys: Sequence[str]) -> str:
    """Return how a SHARD.seg differs from the one that its tar gives."""
    # The file as a whole.
    if len(content) < len(expected) and expected.startswith(content):
        return f"is cut short at byte {len(content):,} of {len(expected):,}"

    # Otherwise the first image that differs.
    content_of_size = content[: len(expected)].ljust(len(expected), b"\0")
    image = _find_first_image(content_of_size, expected, len(keys))
    if image is None:
        is_longer = len(content) > len(expected)
        return f"has {len(content):,} bytes, not {len(expected):,}" if is_longer else "has another header"
    intervals = [_read_records(each, len(keys))[image]["interval"] for each in (content_of_size, expected)]
    if intervals[0] and not intervals[1]:
        return f"lists segments of {keys[image]}, which cannot be cut into segments"
    return f"lists other segments of {keys[image]} than its tar has"


def _find_first_image(content: bytes, expected: bytes, num_images: int) -> int | None:
    """Return the first image whose record or lengths differ between files of the same size; None: only the header."""
    found, wanted = (np.frombuffer(each, np.uint8) for each in (content, expected))
    places = np.flatnonzero(found != wanted)
    in_records = places[(places >= HEADER.itemsize) & (places < records_size(num_images))]
    in_lengths = places[places >= records_size(num_images)]

    # The lengths follow in the order of the images; those without segments have none.
    records = _read_records(expected, num_images)
    owners = np.flatnonzero(records["num_lengths"])
    images = owners[np.searchsorted(records["first"][owners], in_lengths, "right") - 1]
    changed = np.concatenate(((in_records - HEADER.itemsize) // RECORD.itemsize, images))
    return int(changed.min()) if len(changed) else None


def _read_records(content: bytes, num_images: int) -> np.ndarray:
    return np.frombuffer(content, RECORD, num_images, HEADER.itemsize)
