"""List the picture files of a folder, and count what is left out.

A file counts by its suffix. Hidden names (a dot first, as macOS's `._x.png` and Jupyter's `.ipynb_checkpoints`) and the
folders of systems and file browsers are left out at every level. Nothing here opens a file.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from glob import glob, has_magic
from pathlib import Path, PurePath

from prep.errors import InputError

# What Pillow reads, of the suffixes that preparation takes for images; it lists .heic and .heif too, and rejects them.
IMAGE_SUFFIXES = frozenset(
    [
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp"),
        *(".gif", ".tif", ".tiff", ".avif", ".ppm", ".pgm", ".jp2"),
    ]
)
# In lower case; the same as in prep/folder_tree.py.
JUNK_FOLDERS = frozenset(
    ["$recycle.bin", "#recycle", "@eadir", "@recycle", "__macosx", "lost+found", "system volume information"]
)
MOST_KINDS = 4  # named in a sentence
LITTER = ("hidden", "broken links", "special files")  # kinds that are named last: they are seldom what a user misses
NEXT_TO_CLASSES = "images next to the class folders"
SINGULAR = {
    "broken links": "broken link",
    "special files": "special file",
    NEXT_TO_CLASSES: "image next to the class folders",
}

Identity = tuple[int, int]  # (device, inode): equal for two paths to the same folder


@dataclass
class Listing:
    """The pictures found below a folder, sorted by path, and the number of other files by kind."""

    pictures: list[Path] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Listing") -> None:
        """Append another listing."""
        self.pictures += other.pictures
        self.left_out += other.left_out


def is_skipped(name: str) -> bool:
    """Return True for the name of a hidden file or folder, or of a folder of an operating system or file browser."""
    return name.startswith(".") or name.casefold() in JUNK_FOLDERS


def is_picture_name(name: str) -> bool:
    """Return True if a file's suffix is that of a picture."""
    return PurePath(name).suffix.lower() in IMAGE_SUFFIXES


def list_pictures(folder: Path, skip: Path | None = None) -> Listing:
    """Return the pictures in a folder and below it, sorted by path. Links are followed, except into a loop.

    Args:
        skip: a folder below it that is left out without being counted, e.g. the folder to write.
    """
    listing = Listing()
    for path, kind in _walk(folder, frozenset(), None if skip is None else _identify(skip)):
        if kind:
            listing.left_out[kind] += 1
        else:
            listing.pictures.append(path)
    listing.pictures.sort()
    return listing


def list_class_folders(folder: Path) -> tuple[list[str], Listing]:
    """Return the names of the folders in a folder, in torchvision's order, and the files next to them."""
    names, loose = [], Listing()
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            if is_skipped(entry.name):
                loose.left_out["hidden"] += sum(1 for _ in _walk(entry, frozenset(), None))
            else:
                names.append(entry.name)
        elif kind := _name_kind(entry):
            loose.left_out[kind] += 1
        else:
            loose.pictures.append(entry)
    return sorted(names), loose


def expand_paths(words: Sequence[str], skip: Path | None = None) -> Listing:
    """Return the pictures that a command line names: files, folders with all that is below them, and patterns.

    The order is that of the words; within a folder or a pattern it is sorted. A file that is named itself counts
    whatever its suffix.

    Args:
        skip: a folder that is left out, e.g. the one to write.

    Raises:
        InputError: a word names nothing, or nothing is a picture.
    """
    found = Listing()
    for word in words:
        path = Path(word)
        if path.is_dir():
            found.add(list_pictures(path, skip))
        elif path.exists():
            found.pictures.append(path)
        elif has_magic(word) and (matches := sorted(glob(word, recursive=True))):
            _add_matches(found, map(Path, matches), skip)
        else:
            raise InputError(f"{word} does not exist: give files, folders, or patterns in quotes")
    if not found.pictures:
        left_out = "".join(f" ({note})" for note in describe_left_out(found.left_out))
        raise InputError(f"found no picture{left_out}: give files, or folders with pictures")
    return found


def _add_matches(found: Listing, matches: Iterable[Path], skip: Path | None) -> None:
    """Add what a pattern matches. The pattern `**` matches a folder and also all that is in it, so take files alone."""
    for path in matches:
        if path.is_dir() or (skip is not None and skip.resolve() in path.resolve().parents):
            continue
        if kind := _name_kind(path):
            found.left_out[kind] += 1
        else:
            found.pictures.append(path)


def describe_left_out(left_out: Counter[str]) -> tuple[str, ...]:
    """Return one sentence on what was left out, by kind, suffixes before litter; none if nothing was."""
    num_files = left_out.total()
    if not num_files:
        return ()
    named = sorted(left_out.most_common(), key=lambda each: (each[0] in LITTER, each[0] != NEXT_TO_CLASSES))
    named = [each for each in named if each[1]][:MOST_KINDS]
    kinds = [f"{count:,} {SINGULAR.get(kind, kind) if count == 1 else kind}" for kind, count in named]
    others = num_files - sum(count for _, count in named)
    kinds += [f"{others:,} other{'s' * (others > 1)}"] if others else []
    return (f"{num_files:,} file{'s were' if num_files > 1 else ' was'} left out: {', '.join(kinds)}",)


def _walk(folder: Path, above: frozenset[Identity], skip: Identity | None) -> Iterator[tuple[Path, str]]:
    """Yield each file with the reason to leave it out, or "" for a picture."""
    identity = _identify(folder)
    if identity is None or identity == skip or identity in above:
        return
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries]
    for path in (folder / name for name in names):
        if not path.is_dir():
            yield path, _name_kind(path)
        elif is_skipped(path.name):
            yield from ((hidden, "hidden") for hidden, _ in _walk(path, above | {identity}, skip))
        else:
            yield from _walk(path, above | {identity}, skip)


def _name_kind(path: Path) -> str:
    if path.name.startswith("."):
        return "hidden"
    if not path.is_file():
        return "broken links" if path.is_symlink() else "special files"
    return "" if is_picture_name(path.name) else path.suffix.lower() or "without a suffix"


def _identify(folder: Path) -> Identity | None:
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
