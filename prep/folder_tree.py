"""List a source folder once, as a tree; every later decision about an image folder is made from this listing.

Links to folders are followed, as torchvision does. Files that an operating system or a file browser leaves in folders
(`.DS_Store`, `Thumbs.db`, `__MACOSX`) are not data: they are counted and left out of the listing.

The second half of the file checks a folder of class folders for images outside of them, which have no label.
"""

import csv
import json
import os
import shlex
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from prep.dataset import MANIFEST, SAMPLES, WORK_FOLDER
from prep.errors import InputError
from prep.file_kinds import IMAGE_SUFFIXES, looks_like_image, starts_like_image

# What systems and file browsers leave in folders, in lower case.
JUNK_FOLDERS = {
    "$recycle.bin",
    "#recycle",
    ".appledouble",
    ".fseventsd",
    ".ipynb_checkpoints",
    ".spotlight-v100",
    ".trashes",
    "@eadir",
    "@recycle",
    "__macosx",
    "lost+found",
    "system volume information",
}
JUNK_FILES = {
    ".directory",
    ".ds_store",
    ".localized",
    ".nomedia",
    "desktop.ini",
    "ehthumbs.db",
    "icon\r",
    "thumbs.db",
}
RUN_FILES = frozenset(["recipe.json", "metrics.jsonl"])  # of a training run

# Hugging Face's imagefolder reads these tables: their column file_name names images next to them.
TABLES = ("metadata.csv", "metadata.jsonl")
LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "fine_label")
LISTS = frozenset([".csv", ".tsv", ".txt", ".json", ".jsonl"])  # suffixes of files that may list labels
MOST_LISTS = 3

Identity = tuple[int, int]  # (device, inode): equal for two paths to the same folder


@dataclass(slots=True)
class Folder:
    """One folder and everything below it; `name` is its path below the source with slashes, "" for the source."""

    path: Path
    name: str
    identity: Identity
    files: dict[str, int] = field(default_factory=dict)  # name -> bytes; 0 if it is not a file or has no status
    folders: dict[str, "Folder"] = field(default_factory=dict)
    junk: list[str] = field(default_factory=list)  # names that are left out
    loops: list[str] = field(default_factory=list)  # links to a folder that contains the link
    fault: str = ""  # why it cannot be listed
    has_image: bool = False  # directly in it
    holds_image: bool = False  # in it or anywhere below it, except in hidden folders

    @property
    def base(self) -> str:
        """The last part of its path."""
        return self.path.name

    @property
    def shown(self) -> dict[str, "Folder"]:
        """The folders directly in it that are not hidden, sorted by name."""
        return {name: self.folders[name] for name in sorted(self.folders) if not name.startswith(".")}

    @property
    def holders(self) -> dict[str, "Folder"]:
        """The folders of `shown` that hold images, at any depth."""
        return {name: folder for name, folder in self.shown.items() if folder.holds_image}

    @property
    def is_flat(self) -> bool:
        """True if it holds images, but no folder with images."""
        return self.has_image and not self.holders

    @property
    def is_output(self) -> bool:
        """True if a Penstock command wrote it: a prepared split, one that is being prepared, or a training run."""
        names = self.files.keys()
        return {MANIFEST, SAMPLES} <= names or WORK_FOLDER in self.folders or names >= RUN_FILES

    def walk(self) -> "Iterator[Folder]":
        """Yield this folder and every folder below it."""
        to_do: list[Folder] = [self]
        while to_do:
            folder = to_do.pop()
            yield folder
            to_do.extend(folder.folders.values())

    def walk_files(self) -> Iterator[tuple[str, int]]:
        """Yield (path below the source, size in bytes) of each file in it and below.

        A folder that cannot be listed is yielded as if it were a file of 0 bytes, so that it is not lost.
        """
        for folder in self.walk():
            prefix = f"{folder.name}/" if folder.name else ""
            if folder.fault:
                yield folder.name, 0
            yield from ((prefix + name, size) for name, size in folder.files.items())

    def find_images(self) -> list[str]:
        """Return the names of the images directly in it, sorted, without hidden ones."""
        return sorted(name for name in self.files if not name.startswith(".") and looks_like_image(self.path / name))

    def find_child(self, path: str) -> "Folder | None":
        """Return the folder at a path below this one, or None; "." is this folder."""
        found: Folder | None = self
        for part in PurePath(path).parts:
            found = found.folders.get(part) if found else None
        return found


# Listing a folder


def list_folder(root: Path) -> Folder:
    """List a folder and everything below it.

    A link to a folder that contains the link is not followed: that folder is being listed already.

    Raises:
        InputError: `root` itself cannot be listed.
    """
    top = Folder(root, "", _identity(root.stat()))
    found: list[Folder] = []
    to_do = [(top, _identities_above(root))]

    # Walk from the top down. Each folder knows the identities of all folders that contain it.
    while to_do:
        folder, above = to_do.pop()
        found.append(folder)
        try:
            with os.scandir(folder.path) as scanned:
                entries = list(scanned)
        except OSError as error:
            folder.fault = (error.strerror or str(error)).lower()
            continue
        for entry in entries:
            if child := _add_entry(folder, entry, above):
                more = _identities_above(child.path) if entry.is_symlink() else frozenset()
                to_do.append((child, above | more | {child.identity}))
    if top.fault:
        raise InputError(f"{root} cannot be listed ({top.fault}): give yourself permission to read it")

    # Find the folders with images from the bottom up: a folder comes after the one that contains it.
    for folder in reversed(found):
        folder.has_image = _has_image(folder)
        folder.holds_image = folder.has_image or any(child.holds_image for child in folder.shown.values())
    return top


def _add_entry(folder: Folder, entry: os.DirEntry[str], above: frozenset[Identity]) -> Folder | None:
    """Add an entry to a folder's listing; return it if it is a folder that has to be listed too."""
    try:
        status = entry.stat()
    except OSError:  # a link to nothing, for example
        folder.files[entry.name] = 0
        return None
    if not stat.S_ISDIR(status.st_mode):
        if _is_junk_file(entry):
            folder.junk.append(entry.name)
        else:
            folder.files[entry.name] = status.st_size if stat.S_ISREG(status.st_mode) else 0
    elif entry.name.casefold() in JUNK_FOLDERS:
        folder.junk.append(entry.name)
    elif _identity(status) in above:
        folder.loops.append(entry.name)
    else:
        name = f"{folder.name}/{entry.name}" if folder.name else entry.name
        folder.folders[entry.name] = Folder(Path(entry.path), name, _identity(status))
        return folder.folders[entry.name]
    return None


def _has_image(folder: Folder) -> bool:
    """Check whether an image is directly in a folder; open files only if no name has an image's suffix."""
    # A slice instead of PurePath(name).suffix, which takes 2 s per million names.
    if any(name[name.rfind(".") :].lower() in IMAGE_SUFFIXES for name in folder.files):
        return True
    return any(looks_like_image(folder.path / name) for name in folder.files)


def _is_junk_file(entry: os.DirEntry[str]) -> bool:
    """Check whether a system left this file; `._NAME` holds macOS's attributes of NAME, but may also be an image."""
    if entry.name.startswith("._"):
        return not starts_like_image(Path(entry.path))
    return entry.name.casefold() in JUNK_FILES


def is_dangling(path: Path) -> bool:
    """Check whether a path is a link to nothing."""
    return path.is_symlink() and not path.exists()


def _identities_above(folder: Path) -> frozenset[Identity]:
    """Return the identities of a folder and of all that contain it, by the given path and with links resolved."""
    resolved = folder.resolve()
    return frozenset(_identity(path.stat()) for path in (resolved, *resolved.parents, *folder.absolute().parents))


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


# Images outside of class folders, which have no label, and folders without images


def check_loose(folder: Folder) -> None:
    """Check that a folder of class folders has no image next to them, and no link that may have been a class.

    Raises:
        InputError: there is such an image or link.
    """
    images = folder.find_images()
    if folder.is_flat:
        raise InputError(describe_flat(folder, images))
    for name in images:
        raise InputError(f"{folder.path / name} is not in a class folder: move it into one or away")
    for name in sorted(folder.files):
        if not name.startswith(".") and is_dangling(folder.path / name):
            raise InputError(f"{folder.path / name} is a link to nothing: repair it or remove it")
    for name in sorted(folder.loops):
        if not name.startswith("."):
            raise InputError(f"{folder.path / name} is a link to a folder that contains it: remove it")


def describe_empty(folder: Folder) -> str:
    """Return a line for the manifest on a folder that should hold images and does not."""
    return f"{folder.name} {f'cannot be listed ({folder.fault})' if folder.fault else 'holds no image'}"


def describe_flat(folder: Folder, images: list[str]) -> str:
    """Return an error's line for a folder that holds images and no class folders."""
    if table := find_label_table(folder):
        return table
    lists = sorted(name for name in folder.files if Path(name).suffix.lower() in LISTS)[:MOST_LISTS]
    hint = f" (the labels may be in {' or '.join(lists)})" if lists else ""
    first = images[0] if images else "a hidden image"
    return (
        f"{folder.path} holds images that are not in a class folder ({first}), so they have no labels: "
        f"move each into the folder of its class, CLASS/IMAGE.jpg{hint}"
    )


def find_label_table(folder: Folder) -> str:
    """Return a line on how to read a folder with a table of Hugging Face's imagefolder; empty if it has none."""
    for place in (folder, *folder.shown.values()):
        for name in TABLES:
            columns = _read_columns(place.path / name) if name in place.files else []
            if "file_name" in columns:
                return _explain_table(folder.path, place.path / name, columns)
    return ""


def _explain_table(folder: Path, table: Path, columns: list[str]) -> str:
    """Return the command that turns such a folder into a saved dataset, which can be a source."""
    start = f"{table} describes the images in the columns {', '.join(columns)}"
    label = next((name for name in LABEL_COLUMNS if name in columns), None)
    if label is None:
        return f"{start}, none of which is called label: sort the images into class folders (CLASS/IMAGE.jpg)"
    saved = folder.absolute().with_name(f"{folder.absolute().name}-saved")
    code = (
        f"import datasets; datasets.load_dataset('imagefolder', data_dir={str(folder)!r})"
        f".class_encode_column({label!r}).save_to_disk({str(saved)!r})"
    )
    return f"{start}: run python -c {shlex.quote(code)} and give --source {shlex.quote(str(saved))}"


def _read_columns(path: Path) -> list[str]:
    """Return the column names of a CSV file or of the first object of a JSON Lines file; empty if it has neither."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                return next(csv.reader(file), [])
            first = json.loads(file.readline() or "{}")
            return list(first) if isinstance(first, dict) else []
    except (OSError, ValueError, csv.Error):
        return []
