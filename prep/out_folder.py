"""Whether the folder that shards go to can be one: not the source, not a file, and to be written."""

import os
from pathlib import Path

from prep.errors import InputError


def check_out(source: str, out: str) -> None:
    """Check a user's --out before anything is listed or written.

    Raises:
        InputError: it is, lies in, or holds the source's folder, however linked; or nothing can be written there.
    """
    if "://" in out:
        return
    folder = Path(out)
    _check_writable(folder)
    source_folder = Path(source)
    if source_folder.is_dir():
        _check_apart(source_folder, folder)


def _check_writable(folder: Path) -> None:
    """Whether the folder, or the deepest one above it that is there, is a folder that can be written to."""
    there = folder.absolute()
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        what = "is a link to nothing" if there.is_symlink() and not there.exists() else "is not a folder"
        raise InputError(f"{there} {what}, so --out {folder} cannot be made: choose another --out")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(
            f"{there} cannot be written (a read-only file system, or not yours): choose another --out, or see to its "
            f"permissions (ls -ld {there})"
        )


def _check_apart(source: Path, out: Path) -> None:
    """Folders are compared by what they are, not by their paths: links and mounts have many."""
    identities = {"source": _find_identities(source), "out": _find_identities(out)}
    same = identities["source"][0] == identities["out"][0]
    if same or identities["source"][0] in identities["out"]:
        where = "is the source itself" if same else f"lies in the source {source}"
        raise InputError(f"--out {out} {where}, and would be read as part of it: choose a folder outside of it")
    if identities["out"][0] in identities["source"]:
        other = f"{out.resolve()}-shards"
        raise InputError(f"the source {source} lies in --out {out}: choose an --out of its own, such as {other}")


def _find_identities(folder: Path) -> list[tuple[int, int] | None]:
    """What tells a folder and each one above it from all others; None for those that are not there yet."""
    found: list[tuple[int, int] | None] = []
    resolved = folder.resolve()
    for path in (resolved, *resolved.parents):
        status = path.stat() if path.exists() else None
        found.append((status.st_dev, status.st_ino) if status else None)
    return found
