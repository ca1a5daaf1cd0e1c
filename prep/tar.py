"""Write tars as Penstock stores them, read any WebDataset tar, and write DALI's index of a tar.

`TarWriter` makes a tar whose bytes depend on its members alone. `read_samples` reads a tar front to back: its
WebDataset samples, the offsets of their bytes, and the digest of the file.

The reader is strict where other readers are lenient. tarfile and webdataset stop without an error at a cut between two
members or at a damaged header, and read only the first of two joined tars. Here each of these is an error that names
the tar.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from tarfile import AREGTYPE, BLOCKSIZE, REGTYPE, HeaderError, ReadError, TarError, TarFile, TarInfo
from tarfile import EOFHeaderError as EndOfArchive  # type: ignore[attr-defined] # typeshed lacks it
from typing import Any, BinaryIO

from prep.direct_file import DirectFile
from prep.errors import InputError
from prep.file_kinds import FIRST_BYTES, describe_text

# Bytes. A tar consists of blocks; its end is filled up with zeros to a full record.
BLOCK, TAR_RECORD = 512, 10240
MODE_AND_OWNER = b"0000644\0" + 2 * b"0000000\0"
# Regular file, no link, "ustar" version 00; no names of owner and group, no device, no prefix.
END_OF_HEADER = b"0" + bytes(100) + b"ustar\x0000" + bytes(247)

CHUNK_BYTES = 1 << 22  # read at once
REGULAR = (REGTYPE, AREGTYPE)
COMPRESSIONS = {  # by the first bytes of a file
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"(\xb5/\xfd": "zstd",
    b"PK": "zip",
    b'\x04"M\x18': "lz4",
}
AGAIN = "fetch or write it again"


# Writing.


class TarWriter:
    """Write a plain USTAR archive with fixed metadata (mode 0644, owner 0, time 0): equal members, equal bytes."""

    def __init__(self, file: DirectFile) -> None:
        self.file, self._hash = file, hashlib.sha256()

    @property
    def composite_sha256(self) -> str:
        """SHA-256 of what has been written, with the data of each member replaced by its own SHA-256.

        Each image is thus hashed only once, for the sample index and for the tar.
        """
        return self._hash.hexdigest()

    def add(self, name: str, data: bytes | memoryview, sha256: bytes) -> int:
        """Append a member and return the offset of its first byte; `sha256` is the digest of `data`."""
        self._write_framing(member_header(name.encode("ascii"), len(data)))
        offset = self.file.size_bytes
        self.file.write(data)
        self._hash.update(sha256)
        self._write_framing(bytes(-len(data) % BLOCK))
        return offset

    def finish(self) -> None:
        """Write the end of the archive: two blocks of zeros, then zeros to a full record. Close the file durably."""
        self._write_framing(bytes(2 * BLOCK))
        self._write_framing(bytes(-self.file.size_bytes % TAR_RECORD))
        self.file.close()

    def _write_framing(self, content: bytes) -> None:
        self.file.write(content)
        self._hash.update(content)


def member_header(name: bytes, size: int) -> bytes:
    """Return the ustar header block of a regular file (POSIX.1-1988, 10.1.1).

    The bytes are the same as those of `tarfile`, in a sixth of the time.
    """
    assert len(name) <= 100 and size < 8**11
    start = b"%s%s%011o\0%011o\0" % (name.ljust(100, b"\0"), MODE_AND_OWNER, size, 0)
    # The checksum is computed with eight spaces in its own place.
    checksum = sum(start) + sum(END_OF_HEADER) + 8 * ord(" ")
    return b"%s%06o\0 %s" % (start, checksum, END_OF_HEADER)


# DALI's index.


def index_name(tar_name: str) -> str:
    """Return the file name of DALI's index of a tar."""
    return f"{tar_name.removesuffix('.tar')}.idx"


def dali_index(samples: Sequence[Sequence[tuple[str, int, int, str]]]) -> bytes:
    """Return DALI's webdataset index, version 1.2.

    It has one line per sample with its components, each as (extension, offset, size in bytes, name).
    """
    lines = (" ".join(f"{ext} {offset} {size} {name}" for ext, offset, size, name in sample) for sample in samples)
    return f"v1.2 {len(samples)}\n".encode() + "".join(f"{line}\n" for line in lines).encode()


# Reading.


@dataclass(frozen=True)
class Component:
    """One member of a tar; `data` is None if it was not wanted."""

    extension: str  # after the first dot of the base name
    offset: int  # of its first byte in the tar
    size: int
    name: str  # as GNU tar lists it: control characters, backslashes and bytes outside UTF-8 are escaped
    sha256: bytes
    data: bytes | None


@dataclass(frozen=True)
class TarSample:
    """Consecutive members whose names are equal up to the first dot of the base name."""

    key: str
    components: tuple[Component, ...]

    def index_entries(self) -> list[tuple[str, int, int, str]]:
        """Return the sample's entries in DALI's index.

        A blank would end a field there. It is escaped, which wds2idx does not do.
        """
        return [(_escape_blank(c.extension), c.offset, c.size, _escape_blank(c.name)) for c in self.components]


class TarStream:
    """A file object for tarfile over any stream; it reads forward only and hashes what it reads.

    `name` is used in errors. `composite_sha256` and `size_bytes` describe the complete file once `read_samples` has
    reached its end.
    """

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self.stream, self.label, self.size_bytes, self.start = stream, name, 0, b""
        self._hash = hashlib.sha256()

    @property
    def composite_sha256(self) -> str:
        """SHA-256 of everything read, where the data read by `read_data` is replaced by its own SHA-256."""
        return self._hash.hexdigest()

    def tell(self) -> int:
        return self.size_bytes

    def seek(self, position: int) -> None:
        """Read forward to a position, or to the end of the file if that comes first."""
        if position < self.size_bytes:  # caused by a header with a size below 0
            raise ReadError("a member's size is negative")
        while position > self.size_bytes and self._read_hashed(position - self.size_bytes):
            pass

    def read(self, size: int) -> bytes:
        """Return `size` bytes; fewer only at the end of the file."""
        chunks = []
        while size and (chunk := self._read_hashed(size)):
            chunks.append(chunk)
            size -= len(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def read_data(self, size: int, is_wanted: bool) -> tuple[bytes, bytes] | None:
        """Return a member's data (empty if not wanted) and its SHA-256; None if the file ends before the data does."""
        digest, chunks = hashlib.sha256(), []
        while size and (chunk := self._read_chunk(size)):
            digest.update(chunk)
            size -= len(chunk)
            if is_wanted:
                chunks.append(chunk)
        self._hash.update(digest.digest())
        return None if size else (b"".join(chunks), digest.digest())

    def ends_in_zeros(self) -> bool:
        """Read the rest of the file and check whether it is all zeros."""
        is_zero = True
        while chunk := self._read_hashed(CHUNK_BYTES):
            is_zero = is_zero and chunk.count(0) == len(chunk)
        return is_zero

    def _read_hashed(self, most: int) -> bytes:
        chunk = self._read_chunk(most)
        self._hash.update(chunk)
        return chunk

    def _read_chunk(self, most: int) -> bytes:
        chunk = self.stream.read(min(most, CHUNK_BYTES))
        self.start = self.start or chunk[:FIRST_BYTES]
        self.size_bytes += len(chunk)
        return chunk


class _StrictInfo(TarInfo):
    """Raise an error at a damaged or missing header, which tarfile takes for the end; only zeros are the end."""

    @classmethod
    def fromtarfile(cls, tarfile: TarFile) -> TarInfo:
        try:
            return super().fromtarfile(tarfile)
        except EndOfArchive:
            raise
        except (HeaderError, ValueError, IndexError, OverflowError) as error:
            raise ReadError(str(error)) from error


def read_samples(file: TarStream, is_wanted: Callable[[str], bool] = lambda _: False) -> Iterator[TarSample]:
    """Yield the samples of a tar in order.

    Members are grouped as in webdataset and in DALI's wds2idx: the key is the name up to the first dot of the base
    name, folder included. Folders, links and hidden files are skipped. Formats: ustar, GNU and pax.

    Args:
        is_wanted: returns True for the extensions whose data is to be read.

    Raises:
        InputError: the tar is cut off, damaged, compressed or empty, or the file is not a tar.
    """
    # Collect consecutive components with the same base name.
    base, components = "", []
    for component in _read_components(file, is_wanted):
        component_base, _ = split_name(component.name)
        if components and component_base != base:
            yield TarSample(base, tuple(components))
            components = []
        base = component_base
        components.append(component)
    if not components:
        raise InputError(f"{file.label} holds no samples: leave it out")
    yield TarSample(base, tuple(components))


def split_name(name: str) -> tuple[str, str]:
    """Split "a/b.c/d.e.f" into ("a/b.c/d", "e.f"); like DALI's wds2idx, also if there is no dot."""
    dot = name.find(".", name.rfind("/") + 1)
    return name[:dot], name[dot + 1 :]


def _read_components(file: TarStream, is_wanted: Callable[[str], bool]) -> Iterator[Component]:
    for info in _read_members(file):
        name = _escape(info.name)
        base, extension = split_name(name)
        if info.type not in REGULAR:
            continue
        if info.issparse():
            raise InputError(f"{file.label} stores {name} as a sparse file: write the tar again without --sparse")
        wanted = is_wanted(extension)
        found = file.read_data(info.size, wanted)
        if found is None:
            raise _cut_off(file)
        if not base or base.endswith("/"):  # hidden
            continue
        yield Component(extension, info.offset_data, info.size, name, found[1], found[0] if wanted else None)


def _read_members(file: TarStream) -> Iterator[TarInfo]:
    """Yield every member when the file has been read up to its data; then check what follows the archive's end."""
    try:
        tar: Any = TarFile(fileobj=file, tarinfo=_StrictInfo, encoding="utf-8")  # type: ignore[arg-type]
        while (info := tar.next()) is not None:
            yield info
            tar.members.clear()  # tarfile would keep every member in memory
    except TarError as error:
        raise _explain(file, error) from error
    if not file.ends_in_zeros():
        raise InputError(f"{file.label} continues after its end (two tars joined?), where no reader looks: {AGAIN}")


def _explain(file: TarStream, error: TarError) -> InputError:
    """Return the error for a tar that tarfile cannot read, by where it failed and by the first bytes of the file."""
    if not file.size_bytes:
        return InputError(f"{file.label} is empty (0 bytes): {AGAIN}")
    # The first header failed: this is probably another kind of file.
    if file.size_bytes <= BLOCKSIZE:
        if text := describe_text(file.start):
            return InputError(f"{file.label} is {text[0]}, not a tar: {text[1]}")
        for start, kind in COMPRESSIONS.items():
            if file.start.startswith(start):
                return InputError(
                    f"{file.label} is compressed ({kind}): unpack it to a plain .tar, images are read in place"
                )
        return InputError(f"{file.label} is not a tar, or is cut off at its start ({error}): give WebDataset tars")
    # A later header failed.
    if file.read(1) == b"":
        return _cut_off(file)
    return InputError(f"{file.label} is damaged before byte {file.size_bytes:,} ({error}): {AGAIN}")


def _cut_off(file: TarStream) -> InputError:
    return InputError(f"{file.label} is cut off (or damaged) at its end, byte {file.size_bytes:,}: {AGAIN}")


def _escape(name: str) -> str:
    """Return a member's name as GNU tar lists it, in one line of UTF-8."""
    return re.sub(r"[\x00-\x1f\x7f\\\udc80-\udcff]", lambda found: _escape_character(found.group()), name)


def _escape_character(character: str) -> str:
    letter = dict(zip("\a\b\t\n\v\f\r\\", "abtnvfr\\", strict=True)).get(character)
    return f"\\{letter}" if letter else f"\\{ord(character) & 0xFF:03o}"


def _escape_blank(text: str) -> str:
    return text.replace(" ", "\\040")
