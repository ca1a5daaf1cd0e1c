"""A tree of class folders, as torchvision's `ImageFolder` reads it, but with every file offered, whatever its name.

A file that is no image, or cannot be read, so ends in the ledger rather than nowhere: kept + rejected = offered.
Links are followed, as torchvision does; a hidden folder (`.name`) is no class.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prep.dataset import InputError, Origin
from prep.source import Item, Reading, oversize

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}  # as torchvision's
SPLIT_FOLDERS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation"}
KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder that cannot be listed"}
OUR_OWN_TROUBLES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}  # no fault of the file

Listing = list[tuple[str, int, int]]  # (path below the root, label, size in bytes)


@dataclass(frozen=True)
class ImageFolder:
    """A tree SPLIT/CLASS/**/IMAGE, or CLASS/**/IMAGE for a lone train split, in a fixed permuted order."""

    root: Path
    origin: Origin
    class_names: tuple[str, ...]
    files: dict[str, tuple[tuple[str, int], ...]]  # split -> (path below root, label), permuted
    size_bytes: dict[str, int]

    @property
    def num_rows(self) -> dict[str, int]:
        return {split: len(files) for split, files in self.files.items()}

    def reading(self, split: str) -> dict[str, Any]:
        """Return the facts for the manifest; an image folder has none yet."""
        return {}

    def check(self, split: str) -> None:
        """Labels come from the class folders themselves: none can be outside."""

    def rows(self, split: str, start: int, stop: int) -> "ImageFiles":
        return ImageFiles(self.root, self.files[split][start:stop])


@dataclass(frozen=True)
class ImageFiles:
    """Some image files: (path below root, label) each."""

    root: Path
    files: tuple[tuple[str, int], ...]

    def __iter__(self) -> Iterator[Item]:
        for name, label in self.files:
            path = self.root / name
            try:
                data, fault = _read(path)
            except OSError as error:
                if error.errno in OUR_OWN_TROUBLES:
                    raise
                data, fault = b"", _explain(path, error)
            yield Item(name, data, label, fault)


def open_image_folder(root: Path, wanted: Reading) -> ImageFolder:
    """An image folder as torchvision's `ImageFolder` reads it; a class is a folder, its label its sorted rank.

    Raises:
        InputError: a split holds no file, a class that train lacks, or images outside its class folders.
    """
    folders = _split_folders(root) or {"train": root}
    classes = {split: class_folders(folder) for split, folder in folders.items()}
    class_names = classes.get("train") or next(iter(classes.values()))
    for split, names in classes.items():
        check_classes(folders[split], names, class_names)
    listings = {split: list_classes(root, folder, class_names) for split, folder in folders.items()}
    return make_image_folder(root, root.resolve().name, class_names, listings)


def make_image_folder(
    root: Path, name: str, class_names: Iterable[str], listings: dict[str, Listing], salt: str = ""
) -> ImageFolder:
    """The source of some listings; `salt` is what its revision depends on beside them."""
    origin = Origin(name, _digest(listings, salt))
    files = {split: tuple(_permuted([entry[:2] for entry in listing])) for split, listing in listings.items()}
    sizes = {split: sum(size for _, _, size in listing) for split, listing in listings.items()}
    return ImageFolder(root, origin, tuple(class_names), files, sizes)


def class_folders(folder: Path) -> list[str]:
    """The sorted names of a folder's class folders.

    Raises:
        InputError: beside them lies an image, which has no class, or a link to nothing, which may have been one.
    """
    names = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            names.append(path.name)
        elif path.is_symlink() and not path.exists():
            raise InputError(f"{path} is a link to nothing: mend it or remove it")
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            raise InputError(f"{path} is in no class folder: move it into one or away")
    return names


def check_classes(folder: Path, names: Iterable[str], class_names: Iterable[str]) -> None:
    """Raises InputError where a split has a class that train lacks."""
    for name in sorted(set(names) - set(class_names)):
        raise InputError(f"{folder / name} is no class of the train split: remove it or add it there")


def list_classes(root: Path, folder: Path, class_names: Sequence[str], ignored: str = "") -> Listing:
    """Every file below the class folders of a split, sorted; CLASS/CLASS + `ignored` is left out.

    Raises:
        InputError: there is no file at all.
    """
    listing: Listing = []
    prefix = "" if folder == root else f"{folder.relative_to(root)}/"
    for label, name in enumerate(class_names):
        if (folder / name).is_dir():
            left_out = f"{prefix}{name}/{name}{ignored}"
            listing += [(file, label, size) for file, size in _walk(folder / name, prefix + name) if file != left_out]
    check_not_empty(folder, listing)
    return sorted(listing)


def check_not_empty(folder: Path, listing: Listing) -> None:
    """Raises InputError where a split has no file at all."""
    if not listing:
        raise InputError(f"{folder} holds no parquet file and no CLASS/IMAGE.jpg: nothing to prepare")


def _split_folders(root: Path) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for name in class_folders(root):
        split = SPLIT_FOLDERS.get(name)
        if split in folders:
            raise InputError(f"{root / name} and {folders[split]} are both the {split} split: keep one of them")
        if split:
            folders[split] = root / name
    return folders


def _walk(folder: Path, name: str) -> Iterator[tuple[str, int]]:
    """(path, size) of every file below a class folder; what is no file, or cannot be listed, counts as one of 0 bytes.

    A link to a folder that it lies in itself is not followed: what is there has been listed.
    """
    resolved = folder.resolve()
    above = frozenset(_identity(path.stat()) for path in (resolved, *resolved.parents, *folder.absolute().parents))
    to_do = [(str(folder), name, above)]
    while to_do:
        path, name, above = to_do.pop()
        try:
            with os.scandir(path) as scanned:
                entries = list(scanned)
        except OSError:
            yield name, 0
            continue
        for entry in entries:
            try:
                status = entry.stat()
            except OSError:
                yield f"{name}/{entry.name}", 0
                continue
            if not stat.S_ISDIR(status.st_mode):
                yield f"{name}/{entry.name}", status.st_size if stat.S_ISREG(status.st_mode) else 0
            elif _identity(status) not in above:
                to_do.append((entry.path, f"{name}/{entry.name}", above | {_identity(status)}))


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _read(path: Path) -> tuple[bytes, str]:
    """A file's content, or why it is not read: never waits for a pipe, never takes in more than the bound."""
    fault = _find_fault(path.stat())  # before it is opened: to open a device may be to act on it
    if fault:
        return b"", fault
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
        fault = _find_fault(os.fstat(file.fileno()))
        return (b"", fault) if fault else (file.read(), "")


def _find_fault(status: os.stat_result) -> str:
    if not stat.S_ISREG(status.st_mode):
        return f"{KINDS.get(stat.S_IFMT(status.st_mode), 'a device')}, not a file"
    return oversize(status.st_size)


def _explain(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "a link to nothing" if path.is_symlink() else "no such file"
    return f"cannot be read: {(error.strerror or str(error)).lower()}"


def _permuted(entries: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """A fixed permutation: class folders come sorted by class, and readers without a full shuffle want them mixed."""
    draws = np.random.Philox(key=0).random_raw(len(entries))  # raw streams are stable across numpy versions
    return [entries[i] for i in np.argsort(draws, kind="stable")]


def _digest(listings: dict[str, Listing], salt: str) -> str:
    digest = hashlib.sha256(salt.encode(errors="surrogateescape"))
    for split, listing in sorted(listings.items()):
        for name, label, size in listing:
            digest.update(f"{split}\0{name}\0{label}\0{size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
