"""The kernel's page cache: emptied of some files, and how much of them is still there, so that "cold" is a fact."""

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

libc = ctypes.CDLL(None, use_errno=True)
libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]


def drop(paths: Iterable[Path]) -> None:
    """Ask the kernel to forget these files; it keeps what others have mapped, and on tmpfs everything."""
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def share_resident(paths: Iterable[Path]) -> float:
    """The share of these files' pages that is in memory, by mincore(2), which reads none of them.

    For files that the caller may not write the kernel says 1, so that what cannot be known is not called cold.
    """
    num_resident = num_pages = 0
    for path in paths:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if not size_bytes:
                continue
            with mmap.mmap(file.fileno(), size_bytes, prot=mmap.PROT_READ) as mapped:
                resident = _ask(mapped, size_bytes)
        num_resident += int((resident & 1).sum())
        num_pages += len(resident)
    return num_resident / num_pages if num_pages else 0.0


def _ask(mapped: mmap.mmap, size_bytes: int) -> np.ndarray:
    """One byte a page, whose lowest bit says whether it is in memory."""
    resident = np.zeros(-(-size_bytes // mmap.PAGESIZE), np.uint8)
    start = np.frombuffer(mapped, np.uint8).ctypes.data  # keeps no reference beyond this line
    if libc.mincore(start, size_bytes, resident.ctypes.data):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return resident
