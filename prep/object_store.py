"""Write a dataset to an object store (s3://bucket/prefix, or another protocol of fsspec).

Each file is put in one piece, then read back and compared. S3 is reached by obstore, other protocols by the package
that fsspec names. `prep/remote.py` is the other half: it reads a dataset that is complete.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from prep.direct_file import DirectFile
from prep.errors import InputError
from prep.files import sha256_of
from prep.remote import Patience, Remote
from prep.s3_errors import ForbiddenError, explain_errors, hide_secrets

CHUNK_BYTES = 1 << 23
ATTEMPTS = 3  # to put a file


def open_object_store(url: str) -> "ObjectStore":
    """Return the store at a URL, after one request that shows that it can be reached.

    Raises:
        InputError: the protocol's package is missing, or the bucket cannot be listed.
    """
    protocol, _, path = url.partition("://")
    if not path.strip("/") or set(path) & set("*?[]"):  # fsspec reads these as patterns, even when it removes files
        raise InputError(f"cannot write to {hide_secrets(url)}: expected s3://BUCKET/PREFIX without any of *?[]")
    store = ObjectStore(url.rstrip("/"))
    if protocol == "s3":
        Remote(store.url, Patience(0)).folders()  # a mistake is refused at once, without the many retries of `store`
        return store
    try:
        fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        raise InputError(f"{url} needs fsspec's package for {protocol} ({error}): install it with pip") from error
    store.names()
    return store


class StagedFile(DirectFile):
    """A file to be put later, in the folder for temporary files (TMPDIR).

    It has no name, so that it disappears with its process.
    """

    def __init__(self, name: str) -> None:
        descriptor, path = tempfile.mkstemp(prefix="penstock-", suffix=f"-{name}")
        self._reader, self._hash = os.fdopen(descriptor, "rb"), hashlib.sha256()
        try:
            super().__init__(Path(path))
        finally:
            Path(path).unlink()

    @property
    def source(self) -> str:
        """Path under which this process can read it."""
        return f"/proc/self/fd/{self._reader.fileno()}"

    @property
    def sha256(self) -> str:
        """SHA-256 of everything written."""
        return self._hash.hexdigest()

    def write(self, data: bytes | memoryview) -> None:
        super().write(data)
        self._hash.update(data)

    def discard(self) -> None:
        super().discard()
        self._reader.close()


@dataclass(frozen=True)
class ObjectStore:
    """A prefix in a bucket. An object appears only when it is complete; it is then read back and compared.

    `lock` does nothing: two runs of the same job put the same bytes.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def _files(self) -> Any:
        if self.url.startswith("s3://"):
            from prep.s3_files import open_s3_files  # noqa: PLC0415 - an extra

            return open_s3_files()
        return fsspec.url_to_fs(self.url, use_listings_cache=False)[0]  # fsspec keeps one instance per process

    def child(self, name: str) -> "ObjectStore":
        return ObjectStore(f"{self.url}/{name}")

    def names(self) -> list[str]:
        try:
            with _explained(self.url, "list", absent_passes=True):
                paths = self._files.ls(self.url, detail=False)
        except FileNotFoundError:
            return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)

    def size(self, name: str) -> int | None:
        return self._find(name, lambda files, url: files.info(url)["size"])

    def read(self, name: str) -> bytes | None:
        return self._find(name, lambda files, url: files.cat_file(url))

    def _find(self, name: str, request: Callable[[Any, str], Any]) -> Any:
        """Return what a request to a file system about an object gives; None if the object does not exist."""
        url = f"{self.url}/{name}"
        try:
            with _explained(url, "read", absent_passes=True):
                return request(self._files, url)
        except FileNotFoundError:
            return None
        except ForbiddenError:
            if self._is_unlisted(name):
                return None
            raise

    def _is_unlisted(self, name: str) -> bool:
        """Return True if a listing shows that an object does not exist; see `Remote._is_unlisted`."""
        folder, _, last = name.rpartition("/")
        try:
            return last not in (self.child(folder) if folder else self).names()
        except InputError:  # it may not be listed either
            return False

    def open(self, name: str) -> BinaryIO:
        return self._open(f"{self.url}/{name}")

    def _open(self, url: str) -> BinaryIO:
        with _explained(url, "read"):
            return self._files.open(url, "rb", block_size=CHUNK_BYTES, cache_type="readahead")

    def write(self, name: str, content: bytes) -> None:
        self._put(name, sha256_of(content), lambda url: self._files.pipe_file(url, content))

    def create(self, name: str) -> StagedFile:
        return StagedFile(name)

    def publish(self, file: DirectFile, name: str) -> None:
        assert isinstance(file, StagedFile)
        self._put(name, file.sha256, lambda url: self._files.put_file(file.source, url))

    def _put(self, name: str, sha256: str, put: Callable[[str], None]) -> None:
        """Put an object and compare its SHA-256; after several attempts remove it and raise InputError."""
        url = f"{self.url}/{name}"
        # Some stores accept damaged data: read each object back.
        for _ in range(ATTEMPTS):
            with _explained(url, "write"):
                put(url)
                if self._digest(url) == sha256:
                    return
        with _explained(url, "delete"):
            self._files.rm_file(url)  # otherwise the next run would consider it done
        raise InputError(f"{url} came back different from what was put, {ATTEMPTS} times: check the store, run again")

    def _digest(self, url: str) -> str:
        digest = hashlib.sha256()
        with self._open(url) as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    def remove(self, name: str) -> None:
        try:
            with _explained(f"{self.url}/{name}", "delete", absent_passes=True):
                self._files.rm(f"{self.url}/{name}", recursive=True)
        except FileNotFoundError:
            return

    def lock(self, wait: bool = False) -> AbstractContextManager[None]:
        return nullcontext()

    def free_bytes(self) -> int | None:
        return None


@contextmanager
def _explained(url: str, action: str, absent_passes: bool = False) -> Iterator[None]:
    """Raise the errors of any protocol, some of which cannot be pickled, as an InputError of one line.

    Args:
        action: read, list, write or delete.
        absent_passes: leave the FileNotFoundError of an object or folder that does not exist as it is.
    """
    try:
        with explain_errors(url, action, absent_passes) if url.startswith("s3://") else nullcontext():
            yield
    except InputError:
        raise
    except Exception as error:
        if absent_passes and isinstance(error, FileNotFoundError):
            raise
        cause = hide_secrets(str(error))[:300] or type(error).__name__
        raise InputError(
            f"{url} cannot be reached ({cause}): check the bucket, the credentials, the region and the network"
        ) from None
