"""Overwrite the device code of other GPUs in a shared library with zeros, so that a pack of it is small.

A library that nvcc built holds its kernels as fat binaries, one after another in a separate ELF section. A fat binary
is a header and several entries: the same kernels as machine code for each architecture, or as PTX, which the driver
compiles if no machine code fits. The CUDA driver chooses an entry by the entry's header and does not read the payload
of any other one. So the payloads that it would not choose on the target GPU can become zeros: nothing moves, no offset
changes, and the library loads as before.

Of the 68 MiB of device code in DALI 2.4's libdali_operators (CUDA 13), 9.4 are for compute capability 9.0.
"""

import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prep.errors import InputError

SECTIONS = {".nv_fatbin", "__nv_relfatbin"}  # linked device code, and that of separate compilation
ALIGNMENT = 8  # bytes, of a fat binary within its section
MAGIC = 0xBA55ED50
HEADER = struct.Struct("<IHHQ")  # magic, version, size of this header, size of all entries
# kind, version, size of this header, size of the payload, (compressed size, options, version of the code), architecture
ENTRY = struct.Struct("<HHIQ12xI")
PTX, MACHINE_CODE = 1, 2  # the kinds; payloads of other kinds are not changed


@dataclass(frozen=True)
class Entry:
    """One entry of a fat binary; `start` and `stop` are its payload's byte offsets."""

    kind: int
    architecture: int  # 90 for compute capability 9.0
    start: int
    stop: int


def prune_library(path: Path, capability: int) -> int:
    """Zero in place the payloads that a GPU of `capability` (90 for 9.0) does not load; return their size in bytes.

    Raises:
        InputError: the file is not an ELF file, or holds device code in a form that is not understood.
    """
    data = bytearray(path.read_bytes())
    try:
        num_zeroed = sum(prune_section(data, start, stop, capability) for start, stop in find_sections(path))
    except ValueError as error:
        raise InputError(f"{path.name} cannot be pruned: {error}") from error
    if num_zeroed:
        path.write_bytes(data)
    return num_zeroed


def find_sections(path: Path) -> list[tuple[int, int]]:
    """Return the byte ranges of a file's sections of device code, from the output of readelf.

    Raises:
        ValueError: readelf cannot read the file.
    """
    done = subprocess.run(["readelf", "-SW", str(path)], capture_output=True, text=True, check=False)
    if done.returncode or "Error:" in done.stderr:
        raise ValueError(f"it is not an ELF file that readelf can read: {done.stderr.strip()[-200:]}")
    # A row: [number] name type address offset size ..., in hexadecimal. A number below 10 is padded: "[ 1]".
    rows = [line.partition("]")[2].split() for line in done.stdout.splitlines() if "]" in line]
    found = [row for row in rows if len(row) > 4 and row[0] in SECTIONS]
    return [(int(row[3], 16), int(row[3], 16) + int(row[4], 16)) for row in found]


def prune_section(data: bytearray, start: int, stop: int, capability: int) -> int:
    """Zero the payloads in data[start:stop] that a GPU of `capability` does not load; return their size in bytes.

    Raises:
        ValueError: the sizes in a header do not fit into the section.
    """
    num_zeroed = 0
    for entries in read_fat_binaries(data, start, stop):
        kept = choose_entries(entries, capability)
        for entry in entries:
            if entry.kind in (PTX, MACHINE_CODE) and entry not in kept:
                data[entry.start : entry.stop] = bytes(entry.stop - entry.start)
                num_zeroed += entry.stop - entry.start
    return num_zeroed


def read_fat_binaries(data: bytearray, start: int, stop: int) -> Iterator[list[Entry]]:
    """Yield the entries of each fat binary in data[start:stop].

    Raises:
        ValueError: the sizes in a header do not fit into the section.
    """
    position = start
    while position + HEADER.size <= stop:
        magic, _, header_size, size = HEADER.unpack_from(data, position)
        if magic != MAGIC:  # padding
            position += ALIGNMENT
            continue
        end = position + header_size + size
        if header_size < HEADER.size or end > stop:
            raise ValueError(f"the fat binary at byte {position} does not end within its section")
        yield list(_read_entries(data, position + header_size, end))
        position = -(-end // ALIGNMENT) * ALIGNMENT


def _read_entries(data: bytearray, position: int, end: int) -> Iterator[Entry]:
    while position + ENTRY.size <= end:
        kind, _, header_size, size, architecture = ENTRY.unpack_from(data, position)
        start = position + header_size
        if header_size < ENTRY.size or start + size > end:
            raise ValueError(f"the entry at byte {position} does not end within its fat binary")
        yield Entry(kind, architecture, start, start + size)
        position = start + size


def choose_entries(entries: list[Entry], capability: int) -> list[Entry]:
    """Return the entries that the driver may load on a GPU of `capability`.

    Machine code runs on GPUs of the same major version with the same or a higher minor version; PTX runs on all GPUs
    that are not older. The newest machine code that fits is kept, or the newest PTX if none fits. All entries of that
    architecture are kept, because they may be specialised differently (9.0 and 9.0a).
    """
    older = [entry for entry in entries if entry.architecture <= capability]
    code = [each for each in older if each.kind == MACHINE_CODE and each.architecture // 10 == capability // 10]
    fitting = code or [entry for entry in older if entry.kind == PTX]
    newest = max((entry.architecture for entry in fitting), default=None)
    return [entry for entry in fitting if entry.architecture == newest]
