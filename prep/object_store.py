"""Write a dataset to an object store (s3://bucket/prefix, or another protocol of fsspec).

Each file is put in one piece, then read back and compared.
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

CHUNK_BYTES = 1 << 23
ATTEMPTS = 3  # to put a file
PUT_OPTIONS = {
    "s3": {"chunksize": CHUNK_BYTES, "max_concurrency": 4}
}  # by default s3fs holds 10 parts of 50 MB in memory


def open_object_store(url: str) -> "ObjectStore":
    """Return the store at a URL, after one request that shows that it can be reached.

    Raises:
        InputError: the protocol's package is missing, or the bucket cannot be listed.
    """
    protocol, _, path = url.partition("://")
    if not path.strip("/") or set(path) & set("*?[]"):  # fsspec reads these as patterns, even when it removes files
        raise InputError(f"cannot write to {url}: expected s3://BUCKET/PREFIX without any of *?[]")
    try:
        fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        raise InputError(f"{url} needs the package for {protocol} ({error}): pip install 'penstock[s3]'") from error
    store = ObjectStore(url.rstrip("/"))
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
        return fsspec.url_to_fs(self.url, use_listings_cache=False)[0]  # fsspec keeps one instance per process

    def child(self, name: str) -> "ObjectStore":
        return ObjectStore(f"{self.url}/{name}")

    def names(self) -> list[str]:
        with _explained(self.url):
            try:
                paths = self._files.ls(self.url, detail=False)
            except FileNotFoundError:
                return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)

    def size(self, name: str) -> int | None:
        with _explained(f"{self.url}/{name}"):
            try:
                return self._files.info(f"{self.url}/{name}")["size"]
            except FileNotFoundError:
                return None

    def read(self, name: str) -> bytes | None:
        with _explained(f"{self.url}/{name}"):
            try:
                return self._files.cat_file(f"{self.url}/{name}")
            except FileNotFoundError:
                return None

    def open(self, name: str) -> BinaryIO:
        with _explained(f"{self.url}/{name}"):
            return self._files.open(f"{self.url}/{name}", "rb", block_size=CHUNK_BYTES, cache_type="readahead")

    def write(self, name: str, content: bytes) -> None:
        self._put(name, sha256_of(content), lambda url: self._files.pipe_file(url, content))

    def create(self, name: str) -> StagedFile:
        return StagedFile(name)

    def publish(self, file: DirectFile, name: str) -> None:
        assert isinstance(file, StagedFile)
        options = PUT_OPTIONS.get(self.url.partition("://")[0], {})
        self._put(name, file.sha256, lambda url: self._files.put_file(file.source, url, **options))

    def _put(self, name: str, sha256: str, put: Callable[[str], None]) -> None:
        """Put an object and compare its SHA-256; after several attempts remove it and raise InputError."""
        url = f"{self.url}/{name}"
        with _explained(url):
            # Some stores accept damaged data: read each object back.
            for _ in range(ATTEMPTS):
                put(url)
                if self._digest(url) == sha256:
                    return
            self._files.rm_file(url)  # otherwise the next run would consider it done
        raise InputError(f"{url} came back different from what was put, {ATTEMPTS} times: check the store, run again")

    def _digest(self, url: str) -> str:
        digest = hashlib.sha256()
        with self._files.open(url, "rb", block_size=CHUNK_BYTES, cache_type="readahead") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    def remove(self, name: str) -> None:
        with _explained(f"{self.url}/{name}"):
            try:
                self._files.rm(f"{self.url}/{name}", recursive=True)
            except FileNotFoundError:
                return

    def lock(self, wait: bool = False) -> AbstractContextManager[None]:
        return nullcontext()

    def free_bytes(self) -> int | None:
        return None


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Raise the errors of any protocol, some of which cannot be pickled, as an InputError of one line."""
    try:
        yield
    except Exception as error:
        cause = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(
            f"{url} cannot be reached ({cause}): check the bucket, the credentials, the region and the network"
        ) from error
