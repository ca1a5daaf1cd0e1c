"""Reading a tar front to back: its WebDataset samples, where their bytes lie, and the digest of the whole file.

Strict where other readers are lenient: tarfile and webdataset end in silence at a cut between two members or at a
damaged header, and read only the first of two joined tars. Here each of these is an error that names the tar.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from tarfile import AREGTYPE, BLOCKSIZE, REGTYPE, HeaderError, ReadError, TarError, TarFile, TarInfo
from tarfile import EOFHeaderError as EndOfArchive  # type: ignore[attr-defined] # typeshed lacks it
from typing import Any, BinaryIO

from prep.errors import InputError
from prep.foreign import FIRST_BYTES, describe_text

CHUNK_BYTES = 1 << 22
REGULAR = (REGTYPE, AREGTYPE)
COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"(\xb5/\xfd": "zstd",
    b"PK": "zip",
    b'\x04"M\x18': "lz4",
}
AGAIN = "fetch or write it again"


@dataclass(frozen=True)
class Component:
    """One member of a tar; `data` where it was wanted."""

    extension: str  # after the first dot of the base name
    offset: int  # of its first byte in the tar
    size: int
    name: str  # as GNU tar lists it: control characters, backslashes and bytes that are no UTF-8 are escaped
    sha256: bytes
    data: bytes | None


@dataclass(frozen=True)
class TarSample:
    """Consecutive members whose names are equal up to the first dot of the base name."""

    key: str
    components: tuple[Component, ...]

    def index_entries(self) -> list[tuple[str, int, int, str]]:
        """Its line of DALI's index; a blank, which would end a field there, is escaped where wds2idx leaves it."""
        return [(_escape_blank(c.extension), c.offset, c.size, _escape_blank(c.name)) for c in self.components]


class TarStream:
    """A tar file as tarfile wants it, forward only and over any stream, hashed as it is read.

    `name` is for errors; `composite_sha256` and `size_bytes` are the whole file's once `read_samples` is through.
    """

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self.stream, self.label, self.size_bytes, self.start = stream, name, 0, b""
        self._hash = hashlib.sha256()

    @property
    def composite_sha256(self) -> str:
        """Of everything read, what `read_data` read replaced by its own SHA-256."""
        return self._hash.hexdigest()

    def tell(self) -> int:
        return self.size_bytes

    def seek(self, position: int) -> None:
        """Read on to a position; beyond the file's end that stops at the end."""
        if position < self.size_bytes:  # a size below 0 in a header
            raise ReadError("a member's size is negative")
        while position > self.size_bytes and self._next(position - self.size_bytes):
            pass

    def read(self, size: int) -> bytes:
        """So many bytes, fewer only at the file's end."""
        chunks = []
        while size and (chunk := self._next(size)):
            chunks.append(chunk)
            size -= len(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def read_data(self, size: int, is_wanted: bool) -> tuple[bytes, bytes] | None:
        """A member's data, empty where it is not wanted, and its SHA-256; None where the file ends before it does."""
        digest, chunks = hashlib.sha256(), []
        while size and (chunk := self._take(size)):
            digest.update(chunk)
            size -= len(chunk)
            if is_wanted:
                chunks.append(chunk)
        self._hash.update(digest.digest())
        return None if size else (b"".join(chunks), digest.digest())

    def ends_in_zeros(self) -> bool:
        """Read the rest; whether it is all zeros."""
        empty = True
        while chunk := self._next(CHUNK_BYTES):
            empty = empty and chunk.count(0) == len(chunk)
        return empty

    def _next(self, most: int) -> bytes:
        chunk = self._take(most)
        self._hash.update(chunk)
        return chunk

    def _take(self, most: int) -> bytes:
        chunk = self.stream.read(min(most, CHUNK_BYTES))
        self.start = self.start or chunk[:FIRST_BYTES]
        self.size_bytes += len(chunk)
        return chunk


class _StrictInfo(TarInfo):
    """tarfile takes a header that is damaged or missing for the end of the archive; only zeros are that."""

    @classmethod
    def fromtarfile(cls, tarfile: TarFile) -> TarInfo:
        try:
            return super().fromtarfile(tarfile)
        except EndOfArchive:
            raise
        except (HeaderError, ValueError, IndexError, OverflowError) as error:
            raise ReadError(str(error)) from error


def read_samples(file: TarStream, is_wanted: Callable[[str], bool] = lambda _: False) -> Iterator[TarSample]:
    """The samples of a tar in order, with the data of the components whose extension `is_wanted`.

    Members group as in webdataset and in DALI's wds2idx: the key is the name up to the first dot of its base name,
    folder included; folders, links and hidden files are skipped. Formats: ustar, GNU and pax.

    Raises:
        InputError: the tar is cut off, damaged, compressed, empty, or no tar.
    """
    base, components = "", []
    for component in _read_components(file, is_wanted):
        its_base, _ = split_name(component.name)
        if components and its_base != base:
            yield TarSample(base, tuple(components))
            components = []
        base = its_base
        components.append(component)
    if not components:
        raise InputError(f"{file.label} holds no samples: leave it out")
    yield TarSample(base, tuple(components))


def split_name(name: str) -> tuple[str, str]:
    """("a/b.c/d", "e.f") for "a/b.c/d.e.f", as DALI's wds2idx does it, without a dot too."""
    dot = name.find(".", name.rfind("/") + 1)
    return name[:dot], name[dot + 1 :]


def _read_components(file: TarStream, is_wanted: Callable[[str], bool]) -> Iterator[Component]:
    for info in _read_members(file):
        name = _escape(info.name)
        base, extension = split_name(name)
        if info.type not in REGULAR:
            continue
        if info.issparse():
            raise InputError(f"{file.label} stores {name} with holes: write the tar again without --sparse")
        wanted = is_wanted(extension)
        found = file.read_data(info.size, wanted)
        if found is None:
            raise _cut_off(file)
        if not base or base.endswith("/"):  # hidden
            continue
        yield Component(extension, info.offset_data, info.size, name, found[1], found[0] if wanted else None)


def _read_members(file: TarStream) -> Iterator[TarInfo]:
    """Every member, with the file read as far as its data; then whatever follows the archive's end is looked at."""
    try:
        tar: Any = TarFile(fileobj=file, tarinfo=_StrictInfo, encoding="utf-8")  # type: ignore[arg-type]
        while (info := tar.next()) is not None:
            yield info
            tar.members.clear()  # or it keeps them all
    except TarError as error:
        raise _explain(file, error) from error
    if not file.ends_in_zeros():
        raise InputError(f"{file.label} goes on after its end (two tars joined?), where no reader looks: {AGAIN}")


def _explain(file: TarStream, error: TarError) -> InputError:
    kind = next((COMPRESSIONS[start] for start in COMPRESSIONS if file.start.startswith(start)), None)
    at_first_header = file.size_bytes <= BLOCKSIZE
    text = describe_text(file.start)
    if not file.size_bytes:
        return InputError(f"{file.label} is empty (0 bytes): {AGAIN}")
    if text and at_first_header:
        return InputError(f"{file.label} is {text[0]}, not a tar: {text[1]}")
    if kind and at_first_header:
        return InputError(f"{file.label} is compressed ({kind}): unpack it to a plain .tar, images are read in place")
    if at_first_header:
        return InputError(f"{file.label} is no tar, or cut off at its start ({error}): give WebDataset tars")
    if file.read(1) == b"":
        return _cut_off(file)
    return InputError(f"{file.label} is damaged before byte {file.size_bytes:,} ({error}): {AGAIN}")


def _cut_off(file: TarStream) -> InputError:
    return InputError(f"{file.label} is cut off (or damaged) at its end, byte {file.size_bytes:,}: {AGAIN}")


def _escape(name: str) -> str:
    """A member's name in one line of UTF-8, as GNU tar lists it."""
    return re.sub(r"[\x00-\x1f\x7f\\\udc80-\udcff]", lambda found: _escape_character(found.group()), name)


def _escape_character(character: str) -> str:
    letter = dict(zip("\a\b\t\n\v\f\r\\", "abtnvfr\\", strict=True)).get(character)
    return f"\\{letter}" if letter else f"\\{ord(character) & 0xFF:03o}"


def _escape_blank(text: str) -> str:
    return text.replace(" ", "\\040")
