"""Check where a command of serve writes, before its slow part. For the commands that write a file or a folder.

`serve/contents.py` tells a folder that an earlier run wrote from one of the user's.
"""

import os
import tempfile
from collections.abc import Collection
from pathlib import Path

from prep.errors import InputError
from serve.contents import check_replaceable


def check_folder(folder: Path, marker: str = "", flag: str = "--out", taken_over: Collection[Path] = ()) -> bool:
    """Check that a folder can be written and replaced as a whole; return True if it holds an earlier result.

    Args:
        marker, taken_over: see `check_replaceable`.

    Raises:
        InputError: it holds other files, its name belongs to something else, or nothing can be written there.
        OSError: the path cannot be used, for example because it is too long.
    """
    # The folder is renamed into place, which the system does not allow for the place where a disk is mounted.
    if folder.exists() and os.path.ismount(folder):
        raise InputError(f"a disk is mounted at {folder}: give {flag} a folder inside of it, such as {folder / 'out'}")
    replaces = check_replaceable(folder, marker, flag, taken_over)
    _check_parent(folder, flag)
    return replaces


def check_file(path: Path, flag: str) -> None:
    """Check that a file can be written, and does not have the name of a folder.

    Raises:
        InputError: the path is a folder, is not a regular file, or its parent is not a folder.
        OSError: the path cannot be used, for example because it is too long.
    """
    if path.is_dir() or not path.name:
        raise InputError(f"{path} is a folder: give {flag} the name of a file, {path / 'gallery.png'}")
    if os.path.lexists(path) and not path.is_file():
        raise InputError(f"{path} is not a file: choose another {flag}")
    _check_parent(path, flag)


def _check_parent(path: Path, flag: str) -> None:
    """Create and delete a file in the folder above a path, or in the deepest one that exists.

    The permissions alone do not tell: root ignores them, and a disk may be full or mounted read-only.
    """
    existing = path.absolute().parent
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(f"{existing} is not a folder, so {path} cannot be written: choose another {flag}")
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"\0")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(existing)) from error


def describe_state(path: Path, content: bytes) -> str:
    """Return what is true after Ctrl-C while a result was written, of which `path` is a file with `content`."""
    is_written = path.is_file() and path.read_bytes() == content
    return f"{path} is complete" if is_written else "nothing was written"
