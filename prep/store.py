"""Where a dataset is written: a local folder, or a prefix in an object store. Nothing is there but whole.

Names are relative to the store, with slashes. Stores are small and picklable, so that workers can have them.
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

UNFINISHED = re.compile(r"\..+\.[0-9a-f]{16}\.partial")  # what `LocalStore.write` leaves when its process is killed


class Store(Protocol):
    """A folder to write to, here or elsewhere."""

    def __str__(self) -> str: ...
    def child(self, name: str) -> "Store": ...

    def names(self) -> list[str]:
        """What lies directly in it, sorted; empty where it does not exist."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where it is not there."""
        ...

    def read(self, name: str) -> bytes | None:
        """A whole file; None where it is not there."""
        ...

    def open(self, name: str) -> BinaryIO:
        """A file to read from its start on."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Write a small file: under its name only when whole and durable."""
        ...

    def create(self, name: str) -> DirectFile:
        """A big file to be filled and closed, then given its name by `publish` or dropped by its `discard`."""
        ...

    def publish(self, file: DirectFile, name: str) -> None:
        """Give a closed file its name, durably."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all that is in it; nothing happens where it is not there."""
        ...

    def lock(self, wait: bool = False) -> AbstractContextManager[None]:
        """Keep other processes of this machine out."""
        ...

    def free_bytes(self) -> int | None:
        """What still fits; None where that is unknown."""
        ...


def open_store(out: str) -> Store:
    """The store that a user's --out means: a folder, or a url such as s3://bucket/prefix.

    Raises:
        InputError: what the url's protocol needs is not installed, or the store cannot be reached.
    """
    if "://" not in out:
        return LocalStore(Path(out))
    from prep.object_store import open_object_store  # noqa: PLC0415 - an extra

    return open_object_store(out)


@dataclass(frozen=True)
class LocalStore:
    """A folder of this machine, or of a file system that all workers see."""

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
        return DirectFile(work / f"{name}.{secrets.token_hex(8)}{PARTIAL}")  # a writer taken for lost may yet write

    def publish(self, file: DirectFile, name: str) -> None:
        try:
            replace_file(file.path, self.folder / name)
        except FileNotFoundError as error:
            raise InputError(
                f"{file.path} was taken away by another run: let one run at a time write there, and run again"
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
        """The lock is on the folder itself and goes with its process, however that ends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                is_held = stack.enter_context(hold_lock(self.folder, wait))
            except BlockingIOError as error:
                raise InputError(f"{self.folder} is being written by another process: wait for it") from error
            if is_held:
                self._remove_unfinished()
            yield

    def _remove_unfinished(self) -> None:
        """Remove what runs that were killed have not finished; with the lock held, no other run is writing it."""
        for name in self.names():
            if UNFINISHED.fullmatch(name):
                self.remove(name)

    def free_bytes(self) -> int | None:
        there = next(folder for folder in (self.folder.absolute(), *self.folder.absolute().parents) if folder.exists())
        return shutil.disk_usage(there).free
