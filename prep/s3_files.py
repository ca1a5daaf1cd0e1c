"""S3 as a file system of fsspec, on obstore: shards are put in parts, and errors are one line without credentials.

Each request is made in the thread that asks. obstore's own file system makes them in background threads; one of those
could still use Python when the process ended, and crashed one command in twenty after its work was done.
"""

import os
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import fsspec
import obstore
from obstore.fsspec import BufferedFile, FsspecStore

from prep.s3 import find_settings
from prep.s3_errors import explain_errors

CHUNK_BYTES = 1 << 23  # of one read, or of one part of an upload
NUM_PARTS = 4  # in memory at once
# A dataset takes hours to prepare: try for longer than obstore's 10 times in 3 minutes would, but less than a minute.
RETRIES = {
    "max_retries": 10,
    "retry_timeout": timedelta(seconds=45),
    "backoff": {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=10), "base": 2},
}


class S3File(BufferedFile):
    """An object that is read from its start on."""

    def read(self, length: int = -1) -> bytes:
        with explain_errors(f"s3://{self.path}", "read"):
            return super().read(length)


class S3Files(FsspecStore):
    """All buckets; paths are s3://BUCKET/NAME or BUCKET/NAME."""

    protocol = "s3"

    def _split_path(self, path: str) -> tuple[str, str]:
        bucket, _, name = path.removeprefix("s3://").partition("/")  # urlparse would cut the name at a #
        return bucket, name

    def _locate(self, path: str) -> tuple[Any, str]:
        """Return obstore's store of the bucket of a path, and the name in it."""
        bucket, name = self._split_path(path)
        return self._construct_store(bucket), name

    def ls(self, path: str, detail: bool = False, **_: Any) -> list[Any]:
        store, name = self._locate(path)
        found = obstore.list_with_delimiter(store, name or None)
        bucket = self._split_path(path)[0]
        entries = [
            *({"name": f"{bucket}/{each['path']}", "size": each["size"], "type": "file"} for each in found["objects"]),
            *({"name": f"{bucket}/{each}", "size": 0, "type": "directory"} for each in found["common_prefixes"]),
        ]
        if not entries:
            raise FileNotFoundError(path)
        return entries if detail else sorted(each["name"] for each in entries)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        store, name = self._locate(path)
        return {"name": path, "size": obstore.head(store, name)["size"], "type": "file"}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        assert start is None
        assert end is None
        return obstore.get(*self._locate(path)).bytes().to_bytes()

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        obstore.put(*self._locate(path), value)

    def put_file(self, lpath: str, rpath: str, *_: Any, **__: Any) -> None:
        obstore.put(*self._locate(rpath), Path(lpath), chunk_size=CHUNK_BYTES, max_concurrency=NUM_PARTS)

    def rm_file(self, path: str) -> None:
        obstore.delete(*self._locate(path))

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Delete an object, or with `recursive` all objects below a folder."""
        assert maxdepth is None
        store, name = self._locate(path)
        below = [each["path"] for chunk in obstore.list(store, name) for each in chunk] if recursive else []
        obstore.delete(store, below or name)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> S3File:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert mode == "rb", "objects are put in one piece"
        return S3File(self, path, mode, buffer_size=CHUNK_BYTES)


fsspec.register_implementation("s3", S3Files, clobber=True)


def open_s3_files() -> S3Files:
    """Return the file system with the settings of the environment; one per process, so that connections are kept.

    Raises:
        InputError: the credentials cannot be used.
    """
    return _open_s3_files(os.getpid(), tuple(sorted(each for each in os.environ.items() if each[0].startswith("AWS_"))))


@lru_cache(maxsize=1)
def _open_s3_files(process: int, environment: tuple[tuple[str, str], ...]) -> S3Files:
    settings = {**find_settings("write"), "retry_config": RETRIES}
    settings["skip_instance_cache"] = True  # fsspec's own cache would keep one for each thread
    return S3Files(**settings)
