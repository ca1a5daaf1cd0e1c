"""A big file written once, front to back: past the page cache, and on disk when closed."""

import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from prep.files import sync_file

ALIGNMENT = 4096  # of length and memory, for O_DIRECT; open(2)
BUFFER_BYTES = 1 << 22
NO_DIRECT_WRITE = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # of a file opened for it


class DirectFile:
    """Two buffers: while one is filled, a thread writes the other.

    Writing past the page cache (O_DIRECT, where the file system can) saves the kernel's copy of every byte, and
    leaves nothing for the closing fsync to wait for. Errors of the disk are raised by a later `write` or `close`.
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
        """Append some bytes."""
        self.size_bytes += len(data)
        done = 0
        while done < len(data):
            length = min(len(data) - done, BUFFER_BYTES - self._filled)
            self._buffers[self._current][self._filled : self._filled + length] = data[done : done + length]
            self._filled, done = self._filled + length, done + length
            if self._filled == BUFFER_BYTES:
                self._hand_over()

    def close(self) -> None:
        """Everything on disk."""
        self._hand_over()
        self._wait()
        sync_file(self._descriptor, self.path)
        self._release()

    def discard(self) -> None:
        """Give up: the file goes, but for one that has got another name by now."""
        if self._descriptor >= 0:
            self._release()
        self.path.unlink(missing_ok=True)

    def _release(self) -> None:
        self._writer.shutdown()
        os.close(self._descriptor)
        self._descriptor = -1

    def _hand_over(self) -> None:
        self._wait()
        self._written = self._writer.submit(self._store, self._buffers[self._current][: self._filled])
        self._current, self._filled = 1 - self._current, 0

    def _wait(self) -> None:
        if self._written:
            self._written.result()

    def _store(self, content: memoryview) -> None:
        if len(content) % ALIGNMENT:
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
        self._set_direct(False)  # a file system that opens for O_DIRECT and then cannot, or a rest of odd length
        return os.write(self._descriptor, content)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Errors on a descriptor do not say which file."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def _set_direct(self, wanted: bool) -> None:
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL) & ~os.O_DIRECT
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags | (os.O_DIRECT if wanted else 0))
            self._is_direct = wanted
        except OSError:  # tmpfs before Linux 6.6, some network file systems
            self._is_direct = False
