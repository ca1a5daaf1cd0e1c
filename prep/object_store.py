"""A dataset in an object store (s3://bucket/prefix and fsspec's others), each file put whole and read back."""

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
ATTEMPTS = 3
PUT_OPTIONS = {"s3": {"chunksize": CHUNK_BYTES, "max_concurrency": 4}}  # s3fs holds 10 parts of 50 MB unless told


def open_object_store(url: str) -> "ObjectStore":
    """The store at a url, proved to be reachable.

    Raises:
        InputError: the protocol's package is missing, or the bucket cannot be listed.
    """
    protocol, _, path = url.partition("://")
    if not path.strip("/") or set(path) & set("*?[]"):  # fsspec would take these for patterns, in removing too
        raise InputError(f"{url} is no place to write to: give a bucket and a prefix without any of *?[]")
    try:
        fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        raise InputError(f"{url} needs the package for {protocol} ({error}): pip install 'penstock[s3]'") from error
    store = ObjectStore(url.rstrip("/"))
    store.names()
    return store


class StagedFile(DirectFile):
    """A file that waits to be put, in the folder for temporary ones (TMPDIR), nameless: it goes with its process."""

    def __init__(self, name: str) -> None:
        descriptor, path = tempfile.mkstemp(prefix="penstock-", suffix=f"-{name}")
        self._reader, self._hash = os.fdopen(descriptor, "rb"), hashlib.sha256()
        try:
            super().__init__(Path(path))
        finally:
            Path(path).unlink()

    @property
    def source(self) -> str:
        """Where this process can read it."""
        return f"/proc/self/fd/{self._reader.fileno()}"

    @property
    def sha256(self) -> str:
        """Of everything written."""
        return self._hash.hexdigest()

    def write(self, data: bytes | memoryview) -> None:
        super().write(data)
        self._hash.update(data)

    def discard(self) -> None:
        super().discard()
        self._reader.close()


@dataclass(frozen=True)
class ObjectStore:
    """A prefix in a bucket. Objects appear whole by nature; what was put is read back and compared.

    There is no lock: two runs of the same job put the same bytes.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def _files(self) -> Any:
        return fsspec.url_to_fs(self.url, use_listings_cache=False)[0]  # fsspec keeps one a process

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
        url = f"{self.url}/{name}"
        with _explained(url):
            for _ in range(ATTEMPTS):
                put(url)
                if self._digest(url) == sha256:
                    return
            self._files.rm_file(url)  # or the next run would take it for done
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
    """Errors of any protocol's own kinds, some of which cannot be pickled, as one line for users."""
    try:
        yield
    except Exception as error:
        cause = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(
            f"{url} cannot be reached ({cause}): check the bucket, the credentials, the region and the network"
        ) from error
