"""Read a tree of class folders, as torchvision's `ImageFolder` does, but with every file, whatever its name.

A file that is not an image, or cannot be read, is recorded in the ledger: kept + rejected = all files.
`prep/folder_tree.py` lists the tree, `prep/folder_splits.py` decides which folders are splits and classes.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from prep.dataset import Origin
from prep.errors import InputError
from prep.file_kinds import check_no_pointer
from prep.folder_splits import MOST_NAMED, Splits, find_splits, relative_to
from prep.folder_tree import Folder, describe_empty
from prep.source import Item, Reading, explain_oversize

KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder that cannot be listed"}
FAULTS_OF_THE_PROCESS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}  # the file itself may be good
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")

Listing = list[tuple[str, int, int]]  # (path below the root, label, size in bytes)


@dataclass(frozen=True)
class Findings:
    """Findings about an image folder; each one is a line of text."""

    split_map: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # split -> {folder: split}
    passed_over: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()  # absent parts of any split: labels and revision depend on all splits
    notes: tuple[str, ...] = ()  # for the user; not in the manifest


@dataclass(frozen=True)
class ImageFolder:
    """A `Source`: a tree SPLIT/CLASS/**/IMAGE, or CLASS/**/IMAGE for a single train split, in a fixed random order."""

    root: Path
    origin: Origin
    class_names: tuple[str, ...]
    files: dict[str, tuple[tuple[str, int], ...]]  # split -> (path below root, label), permuted
    size_bytes: dict[str, int]
    findings: Findings = Findings()

    @property
    def num_rows(self) -> dict[str, int]:
        return {split: len(files) for split, files in self.files.items()}

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for the user about the folder as a whole."""
        return self.findings.notes

    def reading(self, split: str) -> dict[str, Any]:
        """Return how a split was read, for the manifest, without empty entries."""
        found = self.findings
        facts = {
            "split_map": dict(found.split_map.get(split, {})),
            "passed_over": list(found.passed_over),
            "missing": list(found.missing),
        }
        return {name: fact for name, fact in facts.items() if fact}

    def check_split(self, split: str) -> None:
        """Do nothing: labels come from the class folders themselves, so that all of them are classes."""

    def rows(self, split: str, start: int, stop: int) -> "ImageFiles":
        return ImageFiles(self.root, self.files[split][start:stop])


@dataclass(frozen=True)
class ImageFiles:
    """A range of a split's images: (path below root, label) of each file."""

    root: Path
    files: tuple[tuple[str, int], ...]

    def __iter__(self) -> Iterator[Item]:
        for name, label in self.files:
            path = self.root / name
            try:
                data, fault = _read_file(path)
            except OSError as error:
                if error.errno in FAULTS_OF_THE_PROCESS:
                    raise
                data, fault = b"", _explain_os_error(path, error)
            yield Item(name, data, label, fault)


def open_image_folder(root: Folder, wanted: Reading, passed_over: Iterable[str] = ()) -> ImageFolder:
    """Open an image folder. Each class is a folder; its label is its rank among the sorted folders of the train split.

    Args:
        passed_over: lines for the manifest on other things in the folder, which are not read.

    Raises:
        InputError: it can be read in several ways, a part is missing, or a split has a class that train lacks.
    """
    # Find the splits and the classes. Without a train split, the classes of all splits count.
    splits = find_splits(root, wanted.split_map)
    names = {split: _class_names(folders) for split, folders in splits.folders.items()}
    class_names = names.get("train") or _class_names(
        folder for folders in splits.folders.values() for folder in folders
    )
    check_missing(root.path, splits.missing, wanted)

    # List the images of each split. A test split that cannot be read is left out unless the user named it.
    passed_over = [*splits.passed_over, *passed_over]
    listings: dict[str, Listing] = {}
    missing = list(splits.missing)
    for split, folders in splits.folders.items():
        try:
            check_classes(root, split, folders, names[split], class_names)
            absent = find_missing(folders, names[split])
            check_missing(root.path, absent, wanted)
        except InputError as error:
            if split != "test" or len(splits.folders) == 1 or split in dict(wanted.split_map).values():
                raise
            passed_over.append(f"test is left out: {relative_to(root, str(error))}")
            continue
        missing += absent
        listings[split] = list_classes(root, folders, class_names)

    findings = Findings(
        {split: splits.map_names(split) for split in listings},
        (*passed_over, *_describe_junk(splits)),
        tuple(missing),
        tuple(_compare_classes(splits, names)),
    )
    return make_image_folder(root.path, class_names, listings, findings)


def _class_names(folders: Iterable[Folder]) -> list[str]:
    return sorted({name for folder in folders for name in folder.shown})


def make_image_folder(
    root: Path, class_names: Iterable[str], listings: dict[str, Listing], findings: Findings, salt: str = ""
) -> ImageFolder:
    """Return the source that listings make; its revision is a digest of the listings and of `salt`."""
    origin = Origin(root.resolve().name, _digest_listings(listings, salt))
    files = {split: tuple(_permute([entry[:2] for entry in listing])) for split, listing in listings.items()}
    sizes = {split: sum(size for _, _, size in listing) for split, listing in listings.items()}
    return ImageFolder(root, origin, tuple(class_names), files, sizes, findings)


def check_classes(
    root: Folder, split: str, folders: Iterable[Folder], names: Iterable[str], class_names: Iterable[str]
) -> None:
    """Check that a split has only classes of the train split, and no output of a Penstock command.

    Raises:
        InputError: it has others.
    """
    for name in sorted(set(names) - set(class_names)):
        places = [folder.shown[name].path for folder in folders if name in folder.shown]
        raise InputError(f"{places[0]} is not a class of the train split: remove it, or add it to the train split")
    for folder in folders:
        for each in folder.walk():
            if each.is_output:
                raise InputError(
                    f"{each.path} was written by one of Penstock's commands and is among the images of {split}: "
                    f"move it out of {root.path}"
                )


def find_missing(folders: Sequence[Folder], names: Iterable[str]) -> list[str]:
    """Return a line for each class of a split without images, and for each that is still in its archive.

    Paths in the lines are relative to the source, because the manifest records them.
    """
    missing = []
    for name in names:
        places = [folder.shown[name] for folder in folders if name in folder.shown]
        if not any(each.holds_image for each in places):
            missing.append(describe_empty(next((each for each in places if each.fault), places[0])))
    for folder in folders:
        for name in sorted(folder.files):
            stem = name.partition(".")[0]
            if name.endswith(ARCHIVES) and not name.startswith(".") and folder.name and stem not in folder.folders:
                missing.append(f"{folder.name}/{name} is not unpacked")
    return missing


def check_missing(root: Path, missing: Sequence[str], wanted: Reading) -> None:
    """Check that no parts are missing, or that the user allowed it.

    Raises:
        InputError: parts are missing.
    """
    if missing and not wanted.allow_missing:
        more = f" (and {len(missing) - 1:,} more)" if len(missing) > 1 else ""
        raise InputError(
            f"{root}/{missing[0]}{more}: put back what is missing, remove it, or continue with --allow-missing"
        )


def list_classes(root: Folder, folders: Sequence[Folder], class_names: Sequence[str], ignored: str = "") -> Listing:
    """Return every file below the class folders of a split, sorted.

    Args:
        ignored: the end of a file name; the file CLASS/CLASS + `ignored` of each class is left out.

    Raises:
        InputError: the folder has no files, or a file is a Git LFS pointer.
    """
    listing: Listing = []
    for label, name in enumerate(class_names):
        for folder in folders:
            if name in folder.shown:
                left_out = f"{folder.shown[name].name}/{name}{ignored}"
                files = folder.shown[name].walk_files()
                listing += [(file, label, size) for file, size in files if file != left_out]
    check_files(root.path, folders[0].path, listing)
    return sorted(listing)


def check_files(root: Path, folder: Path, listing: Listing) -> None:
    """Check that a split has files, and that none is a Git LFS pointer.

    Raises:
        InputError: it has no files, or a pointer.
    """
    if not listing:
        raise InputError(f"{folder} holds no parquet file and no CLASS/IMAGE.jpg: nothing to prepare")
    for name, _, size_bytes in listing:
        check_no_pointer(root, name, size_bytes)


def _describe_junk(splits: Splits) -> list[str]:
    """Return one line on files of operating systems and file browsers, which are left out; no line without them."""
    folders = [folder for each in splits.folders.values() for folder in each]
    junk = [name for folder in folders for each in folder.walk() for name in each.junk]
    return [f"{len(junk):,} system files ({', '.join(sorted(set(junk))[:MOST_NAMED])})"] if junk else []


def _compare_classes(splits: Splits, names: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield a line for each split that lacks classes of the train split."""
    for split, folders in splits.folders.items():
        lacking = sorted(set(names.get("train", ())) - set(names[split]))
        if lacking and split != "test":
            shown = ", ".join(lacking[:MOST_NAMED]) + (", ..." if len(lacking) > MOST_NAMED else "")
            yield f"{folders[0].path} has no folder for {len(lacking):,} classes of the train split ({shown})"


def _read_file(path: Path) -> tuple[bytes, str]:
    """Return (content, "") or (no bytes, why the file is not read): never wait for a pipe or read too many bytes."""
    # Check before opening it, since opening a device may trigger an action; and again, since it may have changed.
    fault = _find_fault(path.stat())
    if fault:
        return b"", fault
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
        fault = _find_fault(os.fstat(file.fileno()))
        return (b"", fault) if fault else (file.read(), "")


def _find_fault(status: os.stat_result) -> str:
    """Return why a file is not read, for the ledger; empty if it can be read."""
    if not stat.S_ISREG(status.st_mode):
        return f"{KINDS.get(stat.S_IFMT(status.st_mode), 'a device')}, not a file"
    return explain_oversize(status.st_size)


def _explain_os_error(path: Path, error: OSError) -> str:
    """Return the fault of a file that cannot be read, for the ledger."""
    if isinstance(error, FileNotFoundError):
        return "a link to nothing" if path.is_symlink() else "no such file"
    return f"cannot be read: {(error.strerror or str(error)).lower()}"


def _permute(entries: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return a fixed permutation: the listing is sorted by class, and readers without a full shuffle need a mix."""
    draws = np.random.Philox(key=0).random_raw(len(entries))  # raw streams are stable across numpy versions
    return [entries[i] for i in np.argsort(draws, kind="stable")]


def _digest_listings(listings: dict[str, Listing], salt: str) -> str:
    """Return a SHA-256 of all names, labels and sizes."""
    digest = hashlib.sha256(salt.encode(errors="surrogateescape"))
    for split, listing in sorted(listings.items()):
        for name, label, size in listing:
            digest.update(f"{split}\0{name}\0{label}\0{size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
