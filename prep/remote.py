"""Read and write objects in an S3 bucket, for those who use a dataset or a run that is kept there.

obstore repeats a failed request for some seconds. `Remote` is patient above it: while S3 does not answer, it tries
again for 10 minutes, and says what it waits for and since when. Each method may be called from any thread.
`prep/object_store.py` is the other half: it writes a dataset that is being prepared.
"""

import copy
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

from prep.errors import InputError, warn
from prep.s3 import is_object_name, open_bucket, split_url
from prep.s3_errors import (
    describe_error,
    explain_error,
    find_code,
    find_status,
    is_about_credentials,
    is_absent,
    is_of_obstore,
    is_transient,
)

PATIENCE_SECONDS = 600.0
FIRST_CONTACT_SECONDS = 60.0  # before the first answer: the endpoint itself may be wrong
SECONDS_BEFORE_REPORT = 3.0  # S3 answers single requests with 503 while it grows with the load
SECONDS_BETWEEN_REPORTS = 30.0
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0  # seconds between two attempts
SECONDS_BETWEEN_LOOKS = 0.5  # at whether Ctrl-C was pressed
CREATE_ATTEMPTS = 3  # while others write the same object
PIECE_BYTES = 1 << 18
UPLOAD_PART_BYTES, UPLOAD_CONNECTIONS = 8 << 20, 8  # of a file that is uploaded in parts

Result = TypeVar("Result")


class RemoteError(InputError):
    """An object or bucket that cannot be used; the message is one line without credentials.

    Attributes:
        code: S3's code, such as AccessDenied; None without an answer.
    """

    code: str | None = None


class MissingObjectError(RemoteError):
    """An object that does not exist."""


class ShortObjectError(RemoteError):
    """An object that has fewer bytes than it should have."""


class StoppedError(RemoteError):
    """The transfer was ended by `Remote.stop`."""


class Patience:
    """How long to wait for S3, shared by all threads that use it; together they report once.

    Args:
        seconds: from the first attempt of a request until it raises its error. Before the first answer of S3 it is at
            most a minute, because the endpoint itself may be wrong.
        report: is called with one line 3 seconds after waiting began, every 30 seconds, and when it ends.
    """

    def __init__(self, seconds: float = PATIENCE_SECONDS, report: Callable[[str], None] = warn) -> None:
        self.seconds, self.report = seconds, report
        self.stopped = threading.Event()
        self.lock = threading.Lock()
        self.was_reached = False
        self.since: float | None = None  # time.monotonic() of when waiting began; None: nothing waits
        self.reason = ""
        self.is_reported = False
        self.next_report = 0.0

    def describe(self) -> str:
        """Return what is waited for and since when, for a line of progress; empty if nothing waits."""
        with self.lock:
            return self._describe() if self.since is not None else ""

    def _describe(self) -> str:
        assert self.since is not None
        began = datetime.fromtimestamp(time.time() - (time.monotonic() - self.since))
        return f"waiting since {began:%H:%M:%S}: {self.reason}"

    def wait(self, reason: str, began: float, pause: float) -> bool:
        """Sleep before the next attempt; return False if the patience is at its end.

        Args:
            reason: what is waited for, and what the last attempt found.
            began: time.monotonic() of the first attempt.
            pause: seconds.

        Raises:
            StoppedError: `stopped` was set.
        """
        line, now = "", time.monotonic()
        with self.lock:
            limit = self.seconds if self.was_reached else min(self.seconds, FIRST_CONTACT_SECONDS)
            if now + pause - began > limit:
                return False
            self.since = began if self.since is None else min(self.since, began)
            self.reason = reason
            if now - self.since >= SECONDS_BEFORE_REPORT and now >= self.next_report:
                self.is_reported, self.next_report = True, now + SECONDS_BETWEEN_REPORTS
                line = f"{self._describe()}; giving up after {limit:.0f} s"
        if line:  # without the lock, because it may call `describe`
            self.report(line)
        if self.stopped.wait(pause):
            raise StoppedError("stopped")
        return True

    def reach(self) -> None:
        """Note that S3 answered."""
        if self.was_reached and self.since is None:  # without the lock: the usual case
            return
        line = ""
        with self.lock:
            self.was_reached = True
            if self.since is not None and self.is_reported:
                line = f"S3 answers again, after {time.monotonic() - self.since:.0f} s"
            self.since, self.is_reported = None, False
        if line:
            self.report(line)


class Remote:
    """A prefix in a bucket; names are relative to it.

    Args:
        url: s3://BUCKET/PREFIX.
        patience: shared by the stores of one transfer; by default one of its own.

    Raises:
        InputError: the URL is not of this form, obstore is missing, or no credentials are found. No request is made.
    """

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        self.url, self.patience = url.rstrip("/"), patience or Patience()
        self.reading, self.prefix = open_bucket(self.url, "read")
        self.writing, _ = open_bucket(self.url, "write")

    def __str__(self) -> str:
        return self.url

    def child(self, name: str) -> "Remote":
        """Return a prefix below this one."""
        other = copy.copy(self)  # it keeps the connections and the credentials
        other.url, other.prefix = f"{self.url}/{name}", self._path(name)
        return other

    def stop(self) -> None:
        """End the waiting of all threads with a StoppedError."""
        self.patience.stopped.set()

    def read(self, name: str) -> bytes | None:
        """Return the content of an object; None if it does not exist.

        Raises:
            RemoteError: it cannot be read.
        """
        import obstore  # noqa: PLC0415 - an extra

        try:
            return self._ask("read", name, lambda path: obstore.get(self.reading, path).bytes().to_bytes())
        except MissingObjectError:
            return None

    def read_range(self, name: str, start: int, stop: int, into: Any) -> None:
        """Read the bytes [start, stop) of an object into a writable buffer of that length.

        Raises:
            MissingObjectError: the object does not exist.
            ShortObjectError: it ends before `stop`.
            RemoteError: it cannot be read.
        """
        memoryview(into).cast("B")[:] = memoryview(self.fetch_range(name, start, stop))

    def fetch_range(self, name: str, start: int, stop: int) -> Any:
        """Return the bytes [start, stop) of an object in a buffer, without a copy; otherwise as `read_range`."""
        import obstore  # noqa: PLC0415 - an extra

        if start == stop:
            return b""
        try:
            data = self._ask("read", name, lambda path: obstore.get_range(self.reading, path, start=start, end=stop))
        except RemoteError as error:
            if error.code == "InvalidRange":
                raise ShortObjectError(f"{self.url}/{name} ends before byte {start:,}") from None
            raise
        if len(data) != stop - start:  # S3 shortens a range that ends after the object
            raise ShortObjectError(f"{self.url}/{name} ends after {start + len(data):,} bytes, before byte {stop:,}")
        return data

    def read_pieces(self, name: str, start: int, stop: int, write: Callable[[memoryview, int], None]) -> None:
        """Read the bytes [start, stop) of an object in pieces of about 256 KB; otherwise as `read_range`.

        A buffer of 16 MB for each range would be new memory every time: 230,000 page faults per GB.

        Args:
            write: is called with each piece and its position in the object.
        """
        import obstore  # noqa: PLC0415 - an extra

        position = start

        def read(path: str) -> None:
            """Read from where the last attempt ended."""
            nonlocal position
            found = obstore.get(self.reading, path, options={"range": (position, stop)})
            for piece in found.stream(PIECE_BYTES):
                write(memoryview(piece), position)
                position += len(piece)

        if start == stop:
            return
        try:
            self._ask("read", name, read)
        except RemoteError as error:
            if error.code == "InvalidRange":
                raise ShortObjectError(f"{self.url}/{name} ends before byte {start:,}") from None
            raise
        if position != stop:  # S3 shortens a range that ends after the object
            raise ShortObjectError(f"{self.url}/{name} ends after {position:,} bytes, before byte {stop:,}")

    def read_in_parts(
        self, read_part: Callable[[int, int], None], size_bytes: int, part_bytes: int, num_connections: int
    ) -> None:
        """Read an object in parts, in threads. Ctrl-C ends their waiting for S3.

        Args:
            read_part: reads the bytes [start, stop); it is called with each part of an object of `size_bytes`.
            num_connections: threads.

        Raises:
            Exception: what `read_part` raised. Parts that were not begun are left out; those that were begun end first.
                So do requests that were begun before Ctrl-C, which takes up to a minute.
        """
        pool = ThreadPoolExecutor(num_connections)
        try:
            starts = range(0, size_bytes, part_bytes)
            parts = [pool.submit(read_part, start, min(start + part_bytes, size_bytes)) for start in starts]
            # Wait for all parts or for an error, then for the parts that were begun. With a limit, because a signal
            # that arrives just before this thread begins to wait does not end the wait.
            is_done = False
            while not is_done:
                finished, unfinished = wait(parts, SECONDS_BETWEEN_LOOKS, FIRST_EXCEPTION)
                is_done = not unfinished or any(each.exception() for each in finished)
            begun = [each for each in parts if not each.cancel()]
            while wait(begun, SECONDS_BETWEEN_LOOKS).not_done:
                pass
        except KeyboardInterrupt:
            self.stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        for each in begun:
            each.result()

    def folders(self) -> list[str]:
        """Return the names directly below this prefix, folders with a slash at their end; sorted."""
        import obstore  # noqa: PLC0415 - an extra

        found = self._ask("list", "", lambda path: obstore.list_with_delimiter(self.reading, path or None))
        paths = [f"{path}/" for path in found["common_prefixes"]] + [each["path"] for each in found["objects"]]
        skipped = len(f"{self.prefix}/") if self.prefix else 0
        return sorted(path[skipped:] for path in paths)

    def put(self, name: str, data: bytes | Path) -> None:
        """Write an object, from bytes or from a file; it appears only when it is complete.

        Raises:
            RemoteError: it cannot be written.
            OSError: the file cannot be read.
        """
        import obstore  # noqa: PLC0415 - an extra

        def upload(path: str) -> None:
            size, most = UPLOAD_PART_BYTES, UPLOAD_CONNECTIONS
            obstore.put(self.writing, path, data, chunk_size=size, max_concurrency=most)

        self._ask("write", name, upload)

    def create(self, name: str, data: bytes) -> bool:
        """Write an object that does not exist; return False, and change nothing, if it exists with other content.

        Raises:
            RemoteError: it cannot be written.
        """
        import obstore  # noqa: PLC0415 - an extra
        from obstore.exceptions import AlreadyExistsError  # noqa: PLC0415

        def create_once(path: str) -> bool:
            try:
                obstore.put(self.writing, path, data, mode="create")
            except AlreadyExistsError:
                return False
            return True

        for _ in range(CREATE_ATTEMPTS):
            if self._ask("write", name, create_once):
                return True
            found = self.read(name)  # an attempt may have succeeded although its answer was lost
            if found is not None:
                return found == data
        raise RemoteError(f"{self.url}/{name} cannot be written (others are writing it): run the same command again")

    def delete(self, name: str) -> None:
        """Delete an object; do nothing if it does not exist."""
        import obstore  # noqa: PLC0415 - an extra

        self._ask("delete", name, lambda path: obstore.delete(self.writing, path))

    def list(self, prefix: str = "") -> dict[str, int]:
        """Return the names below a prefix, at any depth, and the sizes of the objects in bytes; sorted by name."""
        import obstore  # noqa: PLC0415 - an extra

        def list_all(path: str) -> dict[str, int]:
            chunks = obstore.list(self.reading, path or None)
            return {each["path"]: each["size"] for chunk in chunks for each in chunk}

        found = self._ask("list", prefix.rstrip("/"), list_all)
        skipped = len(f"{self.prefix}/") if self.prefix else 0
        return {path[skipped:]: found[path] for path in sorted(found)}

    def _path(self, name: str) -> str:
        """Return the path in the bucket of a name, which may be empty.

        Raises:
            RemoteError: it cannot be the name of an object.
        """
        if name and not is_object_name(name):
            raise RemoteError(f"expected the name of an object in {self.url}, got {name!r}")
        return "/".join(filter(None, (self.prefix, name)))

    def _ask(self, action: str, name: str, request: Callable[[str], Result]) -> Result:
        """Make a request, and repeat it while S3 does not answer and the patience lasts.

        Args:
            action: read, list, write or delete.
            request: is called with the object's path in the bucket.
        """
        path, url = self._path(name), "/".join(filter(None, (self.url, name)))
        began, pause = time.monotonic(), FIRST_PAUSE
        while True:
            if self.patience.stopped.is_set():
                raise StoppedError(f"{url}: stopped")
            try:
                result = request(path)
                self.patience.reach()
                return result
            except Exception as error:
                if not is_of_obstore(error):
                    raise  # of a local file that is to be uploaded
                if self._is_worth_waiting(error):
                    reason, _ = explain_error(str(error), action, split_url(self.url)[0])
                    if self.patience.wait(f"{url}: {reason}", began, random.uniform(pause / 2, pause)):
                        pause = min(2 * pause, LONGEST_PAUSE)
                        continue
                    raise self._explained(error, action, url) from None
                self.patience.reach()
                is_forbidden = action == "read" and find_status(str(error)) == HTTPStatus.FORBIDDEN
                if is_absent(error) or (is_forbidden and self._is_unlisted(path)):
                    raise MissingObjectError(f"{url} does not exist") from None
                raise self._explained(error, action, url) from None

    def _is_worth_waiting(self, error: BaseException) -> bool:
        # The metadata service gives the credentials, and may be late too. If S3 never answered, there is no role.
        return is_transient(error) or (self.patience.was_reached and is_about_credentials(str(error)))

    def _is_unlisted(self, path: str) -> bool:
        """Return True if a listing shows that an object does not exist.

        Where a policy allows to list some prefixes alone, S3 answers 403 instead of 404 for an object that is absent.
        """
        import obstore  # noqa: PLC0415 - an extra

        try:
            found = obstore.list_with_delimiter(self.reading, path.rpartition("/")[0] or None)
        except Exception as error:
            if not is_of_obstore(error):
                raise
            return False
        return path not in [each["path"] for each in found["objects"]]

    def _explained(self, error: BaseException, action: str, url: str) -> RemoteError:
        explained = RemoteError(describe_error(error, action, url))
        explained.code = find_code(str(error))
        return explained
