"""Stores that a dataset is written to: a local folder, or a prefix in an object store.

A file appears only when it is complete. Names are relative to the store, with slashes. Stores are small and picklable,
so that they can be sent to workers.
"""

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from prep.dataset import WORK_FOLDER
from prep.direct_file import DirectFile
from prep.errors import InputError
from prep.files import PARTIAL, hold_lock, replace_file, sync_folder, write_whole

UNFINISHED = re.compile(r"\..+\.[0-9a-f]{16}\.partial")  # left by `LocalStore.write` if its process is killed


class Store(Protocol):
    """A folder on this machine, or a prefix in an object store."""

    def __str__(self) -> str: ...
    def child(self, name: str) -> "Store": ...

    def names(self) -> list[str]:
        """Return the names of the files and folders directly in it, sorted; empty if it does not exist."""
        ...

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes; None if it does not exist."""
        ...

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None if it does not exist."""
        ...

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading from its start."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Write a small file; it appears under its name only when it is complete and durable."""
        ...

    def create(self, name: str) -> DirectFile:
        """Return a new big file: fill it, close it, then `publish` it or call its `discard`."""
        ...

    def publish(self, file: DirectFile, name: str) -> None:
        """Give a closed file its name, durably."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with its contents; do nothing if it does not exist."""
        ...

    def lock(self, wait: bool = False) -> AbstractContextManager[None]:
        """Lock the store against other processes of this machine; `wait` for one that holds the lock."""
        ...

    def free_bytes(self) -> int | None:
        """Return the free space; None if it is unknown."""
        ...


def open_store(out: str) -> Store:
    """Return the store for a user's --out: a folder, or a URL such as s3://bucket/prefix.

    Raises:
        InputError: a package for the URL's protocol is not installed, or the store cannot be reached.
    """
    if "://" not in out:
        return LocalStore(Path(out))
    from prep.object_store import open_object_store  # noqa: PLC0415 - an extra

    return open_object_store(out)


@dataclass(frozen=True)
class LocalStore:
    """A folder of this machine, or of a file system that all workers share."""

    folder: Path

    def __str__(self) -> str:
        return str(self.folder)

    def child(self, name: str) -> "LocalStore":
        return LocalStore(self.folder / name)

    def names(self) -> list[str]:
        return sorted(os.listdir(self.folder)) if self.folder.is_dir() else []

    def size(self, name: str) -> int | None:
        path = self.folder / name
        return path.stat().st_size if path.is_file() else None

    def read(self, name: str) -> bytes | None:
        path = self.folder / name
        return path.read_bytes() if path.is_file() else None

    def open(self, name: str) -> BinaryIO:
        return open(self.folder / name, "rb")

    def write(self, name: str, content: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content, unique=True)  # two runs may write the same file, where there are no locks

    def create(self, name: str) -> DirectFile:
        work = self.folder / WORK_FOLDER
        work.mkdir(parents=True, exist_ok=True)
        return DirectFile(
            work / f"{name}.{secrets.token_hex(8)}{PARTIAL}"
        )  # unique: a worker given up as lost may still be writing

    def publish(self, file: DirectFile, name: str) -> None:
        try:
            replace_file(file.path, self.folder / name)
        except FileNotFoundError as error:
            raise InputError(
                f"{file.path} was removed by another run: let only one run at a time write there, and run again"
            ) from error
        sync_folder(self.folder)

    def remove(self, name: str) -> None:
        path = self.folder / name
        if path.is_dir():
            try:
                shutil.rmtree(path)
            except FileNotFoundError:  # another run removes it too, where there are no locks
                shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    @contextmanager
    def lock(self, wait: bool = False) -> Iterator[None]:
        """Lock the folder itself, until the process ends in any way; remove files that killed runs or workers left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                is_held = stack.enter_context(hold_lock(self.folder, wait))
            except BlockingIOError as error:
                raise InputError(f"{self.folder} is being written by another process: wait for it") from error
            if is_held:
                self._remove_unfinished()
            yield
            if is_held:
                self._remove_unfinished()  # of this run's own workers

    def _remove_unfinished(self) -> None:
        """Remove the unfinished files of killed processes; while the lock is held, no other run is writing them."""
        for name in self.names():
            if UNFINISHED.fullmatch(name):
                self.remove(name)

    def free_bytes(self) -> int | None:
        folder = self.folder.absolute()
        existing = next(each for each in (folder, *folder.parents) if each.exists())
        return shutil.disk_usage(existing).free
