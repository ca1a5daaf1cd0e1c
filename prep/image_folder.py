"""A tree of class folders, as torchvision's `ImageFolder` reads it."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prep.dataset import InputError, Origin
from prep.source import Item

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}  # as torchvision's
SPLIT_FOLDERS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation"}


@dataclass(frozen=True)
class ImageFolder:
    """A tree SPLIT/CLASS/**/IMAGE, or CLASS/**/IMAGE for a lone train split, in a fixed permuted order."""

    root: Path
    origin: Origin
    class_names: tuple[str, ...]
    files: dict[str, tuple[tuple[str, int], ...]]  # split -> (path below root, label), permuted

    @property
    def num_rows(self) -> dict[str, int]:
        return {split: len(files) for split, files in self.files.items()}

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
            yield Item(name, (self.root / name).read_bytes(), label)


def open_image_folder(root: Path) -> ImageFolder:
    """An image folder as torchvision's `ImageFolder` reads it; a class is a folder, its label its sorted rank."""
    folders = _split_folders(root) or {"train": root}
    classes = {split: [d.name for d in _folders(folder)] for split, folder in folders.items()}
    class_names = classes.get("train") or next(iter(classes.values()))
    for split, names in classes.items():
        for name in sorted(set(names) - set(class_names)):
            raise InputError(f"{folders[split] / name} is no class of the train split: remove it or add it there")
    listing = {split: _list_images(root, folder, class_names) for split, folder in folders.items()}
    for split, files in listing.items():
        if not files:
            raise InputError(f"{folders[split]} holds no parquet file and no CLASS/IMAGE.jpg: nothing to prepare")
    files = {split: tuple(_permuted(entries)) for split, entries in listing.items()}
    return ImageFolder(root, Origin(root.resolve().name, _listing_digest(root, listing)), tuple(class_names), files)


def _split_folders(root: Path) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for folder in _folders(root):
        split = SPLIT_FOLDERS.get(folder.name)
        if split in folders:
            raise InputError(f"{folder} and {folders[split]} are both the {split} split: keep one of them")
        if split:
            folders[split] = folder
    return folders


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _list_images(root: Path, folder: Path, class_names: list[str]) -> list[tuple[str, int]]:
    listing = []
    for label, name in enumerate(class_names):
        for directory, _, names in os.walk(folder / name):
            images = [n for n in names if Path(n).suffix.lower() in IMAGE_SUFFIXES]
            listing += [(str((Path(directory) / n).relative_to(root)), label) for n in images]
    return sorted(listing)


def _permuted(entries: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """A fixed permutation: class folders come sorted by class, and readers without a full shuffle want them mixed."""
    draws = np.random.Philox(key=0).random_raw(len(entries))  # raw streams are stable across numpy versions
    return [entries[i] for i in np.argsort(draws, kind="stable")]


def _listing_digest(root: Path, listing: dict[str, list[tuple[str, int]]]) -> str:
    digest = hashlib.sha256()
    for split, entries in sorted(listing.items()):
        for name, label in entries:
            digest.update(
                f"{split}\0{name}\0{label}\0{(root / name).stat().st_size}\n".encode(errors="surrogateescape")
            )
    return digest.hexdigest()
