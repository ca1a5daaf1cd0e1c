"""Made-up fat binaries, as nvcc writes them: see benchmarks/packing/device_code.py."""

import struct

MAGIC = 0xBA55ED50
PTX, MACHINE_CODE, OTHER = 1, 2, 16


def entry(kind: int, architecture: int, payload: bytes, header_size: int = 64) -> bytes:
    """One entry: its header, 64 bytes as nvcc's are, and its payload."""
    header = struct.pack("<HHIQIIHHI", kind, 0x101, header_size, len(payload), 0, 0, 3, 1, architecture)
    return header.ljust(header_size, b"\xee") + payload


def fat_binary(*entries: bytes) -> bytes:
    """A header and entries."""
    return struct.pack("<IHHQ", MAGIC, 1, 16, sum(map(len, entries))) + b"".join(entries)


def code(architecture: int) -> bytes:
    """A payload that can be found again."""
    return f"<code for {architecture}>".encode().ljust(40, b"!")
