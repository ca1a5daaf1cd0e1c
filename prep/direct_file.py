"""Write a big file once, front to back, bypassing the page cache; it is on disk when closed."""

import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from prep.files import sync_file

ALIGNMENT = 4096  # bytes, of length and memory, for O_DIRECT; open(2)
BUFFER_BYTES = 1 << 22
NO_DIRECT_WRITE = (
    errno.EINVAL,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
)  # errors of a file that was opened for O_DIRECT


class DirectFile:
    """A file with two buffers: while one is filled, a thread writes the other.

    Bypassing the page cache (O_DIRECT, if the file system supports it) saves the kernel's copy of every byte, and
    leaves nothing for the final fsync to wait for. Errors of the disk are raised by a later `write` or `close`.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.size_bytes = path, 0
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        self._set_direct(True)
        self._buffers = [memoryview(mmap.mmap(-1, BUFFER_BYTES)) for _ in range(2)]  # page-aligned
        self._current = self._filled = 0
        self._writer = ThreadPoolExecutor(1)
        self._written: Future[None] | None = None

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes.

        Raises:
            OSError: an earlier write failed; `filename` is the path.
        """
        self.size_bytes += len(data)
        # Copy into the current buffer; start writing it whenever it is full.
        done = 0
        while done < len(data):
            length = min(len(data) - done, BUFFER_BYTES - self._filled)
            self._buffers[self._current][self._filled : self._filled + length] = data[done : done + length]
            self._filled, done = self._filled + length, done + length
            if self._filled == BUFFER_BYTES:
                self._flush_buffer()

    def close(self) -> None:
        """Write the rest, wait until everything is on disk, and release the file."""
        self._flush_buffer()
        self._wait()
        sync_file(self._descriptor, self.path)
        self._release()

    def discard(self) -> None:
        """Delete the file, if it still has its first name; a file that was renamed is kept."""
        if self._descriptor >= 0:
            self._release()
        self.path.unlink(missing_ok=True)

    def _release(self) -> None:
        self._writer.shutdown()
        os.close(self._descriptor)
        self._descriptor = -1

    def _flush_buffer(self) -> None:
        """Start writing the current buffer, when the other one is written, and continue with that one."""
        self._wait()
        self._written = self._writer.submit(self._store, self._buffers[self._current][: self._filled])
        self._current, self._filled = 1 - self._current, 0

    def _wait(self) -> None:
        if self._written:
            self._written.result()

    def _store(self, content: memoryview) -> None:
        if len(content) % ALIGNMENT:  # the last part of the file
            self._set_direct(False)
        with self._named():
            while content:
                content = content[self._write_some(content) :]

    def _write_some(self, content: memoryview) -> int:
        try:
            return os.write(self._descriptor, content)
        except OSError as error:
            if error.errno not in NO_DIRECT_WRITE or not self._is_direct:
                raise
        self._set_direct(False)  # the file system accepted O_DIRECT at first, or the rest has an odd length
        return os.write(self._descriptor, content)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Add the path to errors: those of a descriptor do not name the file."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def _set_direct(self, wanted: bool) -> None:
        """Switch O_DIRECT on or off, as far as the file system supports it."""
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL) & ~os.O_DIRECT
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags | (os.O_DIRECT if wanted else 0))
            self._is_direct = wanted
        except OSError:  # tmpfs before Linux 6.6, some network file systems
            self._is_direct = False
