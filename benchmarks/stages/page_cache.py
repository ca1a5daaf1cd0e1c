"""Remove files from the kernel's page cache, and check how much of them is still there, so that "cold" is verified."""

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

libc = ctypes.CDLL(None, use_errno=True)
libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]


def drop_from_cache(paths: Iterable[Path]) -> None:
    """Ask the kernel to drop files from the page cache; it keeps what others have mapped, and everything on tmpfs."""
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def share_resident(paths: Iterable[Path]) -> float:
    """Return the share of the files' pages that is in memory, by mincore(2), which does not read them.

    For files that the caller may not write, the kernel answers 1. So reading them is never called cold by mistake.
    """
    num_resident = num_pages = 0
    for path in paths:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if not size_bytes:
                continue
            with mmap.mmap(file.fileno(), size_bytes, prot=mmap.PROT_READ) as mapped:
                resident = _find_resident_pages(mapped, size_bytes)
        num_resident += int((resident & 1).sum())
        num_pages += len(resident)
    return num_resident / num_pages if num_pages else 0.0


def _find_resident_pages(mapped: mmap.mmap, size_bytes: int) -> np.ndarray:
    """Return one byte per page; its lowest bit is 1 if the page is in memory."""
    resident = np.zeros(-(-size_bytes // mmap.PAGESIZE), np.uint8)
    start = np.frombuffer(mapped, np.uint8).ctypes.data  # keeps no reference, so that the mapping can be closed
    if libc.mincore(start, size_bytes, resident.ctypes.data):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return resident
