"""Write files and folders so that they appear complete and survive a power cut; digests and locks.

Network file systems, FUSE, and the mounts of containers and virtual machines may lack fsync, locks or a rename over an
existing file. A step that only protects against a power cut or a second process is then skipped, with one warning; a
step that would change the result raises an error. Every package may import this module; it imports nothing of ours.
"""

import errno
import fcntl
import hashlib
import multiprocessing
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"  # ends the names of files that a writer has not finished
NOT_SUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY}
# A folder cannot be opened for writing, so that some systems refuse to sync it with EBADF or EACCES (Windows mounts).
NO_FOLDER_SYNC = NOT_SUPPORTED | {errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR}
NO_LOCKS = NOT_SUPPORTED | {errno.ENOLCK, errno.EBADF, errno.EPERM}
LOCK_IS_HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}  # flock's, and fcntl's, which NFS uses for it
ATTEMPTS = 3  # to write a file that another process removes; only without locks

_warned: set[tuple[str, int]] = set()


def write_whole(path: Path, content: bytes, *, unique: bool = False) -> None:
    """Write a file so that it appears under its name only when it is complete and on disk.

    Args:
        unique: give the unfinished file a unique name, because another process may write the same file now.

    Raises:
        OSError: the disk failed; `filename` is the path.
    """
    for attempt in range(1, ATTEMPTS + 1):
        # Write and sync the file under a hidden name, then rename it.
        partial = path.with_name(f".{path.name}{f'.{secrets.token_hex(8)}' if unique else ''}{PARTIAL}")
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                sync_file(file.fileno(), path)
            replace_file(partial, path)
            break
        except OSError as error:  # a full disk does not say which file
            # Without locks, another run may remove the unfinished file: try again.
            if unique:
                partial.unlink(missing_ok=True)
            if not (unique and isinstance(error, FileNotFoundError) and path.parent.is_dir()) or attempt == ATTEMPTS:
                raise OSError(error.errno, error.strerror, str(path)) from error
    sync_folder(path.parent)


@contextmanager
def write_folder(out: Path, partial: Path | None = None) -> Iterator[Path]:
    """Yield an empty folder to fill; it replaces `out` only when all of it is on disk. An error deletes it.

    Args:
        partial: the folder's path until then, on the same file system; `.NAME.partial` next to `out` by default.

    Raises:
        OSError: the disk failed.
    """
    partial = partial or out.with_name(f".{out.name}{PARTIAL}")
    old = partial.with_name(f"{partial.name}.old")
    for left in (partial, old):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        _sync_tree(partial)
        _replace_folder(partial, out, old)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_folder(out.parent)


def _replace_folder(partial: Path, out: Path, old: Path) -> None:
    """Rename a folder to `out`. A process that is killed here leaves no folder with half of its files."""
    # A folder cannot be renamed over one with content, so the earlier one gets another name, and is deleted last.
    replaces = out.is_dir() and not out.is_symlink()
    if replaces:
        out.rename(old)
    try:
        partial.rename(out)
    except BaseException:
        if replaces:
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for path in (Path(parent) / name for name in names):
            with path.open("rb") as file:
                sync_file(file.fileno(), path)
        sync_folder(Path(parent))


def sha256_of(content: bytes) -> str:
    """Return the SHA-256 of bytes in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unfinished_name(name: str) -> str | None:
    """Return NAME for `.NAME.partial` and `.NAME.0123456789abcdef.partial`; None for any other name."""
    found = re.fullmatch(r"\.(.+?)(\.[0-9a-f]{16})?\.partial", name)
    return found[1] if found else None


def replace_file(partial: Path, path: Path) -> None:
    """Rename a file over another one; if the file system refuses, remove the other one first."""
    try:
        os.replace(partial, path)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.EPERM) or not path.is_file():
            raise
        path.unlink()
        partial.rename(path)


def sync_file(descriptor: int, path: Path) -> None:
    """Write a file's content to disk; if the file system does not support that, continue with a warning.

    Raises:
        OSError: the disk failed; `filename` is the path.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise OSError(error.errno, error.strerror, str(path)) from error
        _warn_once(
            "fsync",
            path.parent,
            f"{path.parent} cannot store a file at once (fsync: {error.strerror}); continuing: after a power "
            "cut, check the files with prep/verify.py",
        )


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable, if its file system can sync a folder; others do not need it or cannot."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise OSError(error.errno, error.strerror, str(folder)) from error


@contextmanager
def hold_lock(folder: Path, wait: bool = False) -> Iterator[bool]:
    """Hold a lock on a folder, until this process ends in any way; yield whether there is a lock.

    On a file system without locks, print a warning and yield False.

    Raises:
        BlockingIOError: another process holds it, and `wait` is False.
        OSError: the disk failed; `filename` is the folder.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield _lock(descriptor, folder, wait)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path, wait: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in LOCK_IS_HELD:
            raise BlockingIOError(error.errno, error.strerror, str(folder)) from error
        if error.errno not in NO_LOCKS:
            raise OSError(error.errno, error.strerror, str(folder)) from error
        _warn_once(
            "flock",
            folder,
            f"{folder} is on a file system without locks (flock: {error.strerror}); continuing: make sure that no "
            "other run writes there at the same time",
        )
        return False
    return True


def _warn_once(kind: str, folder: Path, message: str) -> None:
    """Warn once per process and file system; worker processes leave it to their parent."""
    try:
        device = folder.stat().st_dev
    except OSError:
        device = 0
    if (kind, device) in _warned or multiprocessing.parent_process() is not None:
        return
    _warned.add((kind, device))
    print(f"warning: {message}", file=sys.stderr, flush=True)
