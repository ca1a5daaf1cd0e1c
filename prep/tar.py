"""Tars as Penstock writes them, and DALI's index of a tar."""

import tarfile
from collections.abc import Sequence

from prep.hashed_file import HashedFile

BLOCK, TAR_RECORD = 512, 10240


class TarWriter:
    """A plain USTAR archive with fixed metadata (mode 0644, owner 0, time 0): equal members, equal bytes."""

    def __init__(self, file: HashedFile) -> None:
        self.file = file

    def add(self, name: str, data: bytes | memoryview) -> int:
        """Append a member; the offset of its first byte."""
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self.file.write(member.tobuf(tarfile.USTAR_FORMAT))
        offset = self.file.size_bytes
        self.file.write(data)
        self.file.write(bytes(-len(data) % BLOCK))
        return offset

    def finish(self) -> None:
        """Two blocks of zeros, filled up to a tar record, and everything on disk."""
        self.file.write(bytes(2 * BLOCK))
        self.file.write(bytes(-self.file.size_bytes % TAR_RECORD))
        self.file.close()


def dali_index(samples: Sequence[Sequence[tuple[str, int, int, str]]]) -> bytes:
    """DALI's webdataset index v1.2: a line a sample, each component as (extension, offset, size in bytes, name)."""
    lines = (" ".join(f"{ext} {offset} {size} {name}" for ext, offset, size, name in sample) for sample in samples)
    return f"v1.2 {len(samples)}\n".encode() + "".join(f"{line}\n" for line in lines).encode()
