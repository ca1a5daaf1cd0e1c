"""A tree of class folders, as torchvision's `ImageFolder` reads it, but with every file offered, whatever its name.

A file that is no image, or cannot be read, so ends in the ledger rather than nowhere: kept + rejected = offered.
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
from prep.folder_splits import MOST_NAMED, Splits, describe_empty, find_splits, relative_to
from prep.folder_tree import Folder, check_no_pointer
from prep.source import Item, Reading, oversize

KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder that cannot be listed"}
OUR_OWN_TROUBLES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}  # no fault of the file
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")

Listing = list[tuple[str, int, int]]  # (path below the root, label, size in bytes)


@dataclass(frozen=True)
class Findings:
    """What is to be said of an image folder: of each split for its manifest, and of all of it for the user alone."""

    split_map: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # split -> {folder: split}
    passed_over: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()  # parts that are not there, of any split: labels and revision depend on all
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageFolder:
    """A tree SPLIT/CLASS/**/IMAGE, or CLASS/**/IMAGE for a lone train split, in a fixed permuted order."""

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
        """Lines for the user about all of it."""
        return self.findings.notes

    def reading(self, split: str) -> dict[str, Any]:
        """Return how a split was read, for the manifest; only what there is to say."""
        found = self.findings
        facts = {
            "split_map": dict(found.split_map.get(split, {})),
            "passed_over": list(found.passed_over),
            "missing": list(found.missing),
        }
        return {name: fact for name, fact in facts.items() if fact}

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


def open_image_folder(root: Folder, wanted: Reading, passed_over: Iterable[str] = ()) -> ImageFolder:
    """Open an image folder; a class is a folder, its label its sorted rank among those of the train split.

    Args:
        passed_over: what else lies in it and is not read, a line each.

    Raises:
        InputError: it can be read in several ways, a part is missing, or a split has a class that train lacks.
    """
    splits = find_splits(root, wanted.split_map)
    names = {split: _class_names(folders) for split, folders in splits.folders.items()}
    class_names = names.get("train") or _class_names(
        folder for folders in splits.folders.values() for folder in folders
    )
    check_missing(root.path, splits.missing, wanted)
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
            passed_over.append(f"test is left out: {relative_to(root, str(error))}")  # it is unless asked for
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
    """The source of some listings; `salt` is what its revision depends on beside them."""
    origin = Origin(root.resolve().name, _digest(listings, salt))
    files = {split: tuple(_permuted([entry[:2] for entry in listing])) for split, listing in listings.items()}
    sizes = {split: sum(size for _, _, size in listing) for split, listing in listings.items()}
    return ImageFolder(root, origin, tuple(class_names), files, sizes, findings)


def check_classes(
    root: Folder, split: str, folders: Iterable[Folder], names: Iterable[str], class_names: Iterable[str]
) -> None:
    """Raises InputError where a split has a class that train lacks, or what one of our own commands wrote."""
    for name in sorted(set(names) - set(class_names)):
        places = [folder.shown[name].path for folder in folders if name in folder.shown]
        raise InputError(f"{places[0]} is no class of the train split: remove it or add it there")
    for folder in folders:
        for each in folder.walk():
            if each.is_output:
                raise InputError(
                    f"{each.path} was written by one of Penstock's commands and lies among the images of {split}: "
                    f"move it out of {root.path}"
                )


def find_missing(folders: Sequence[Folder], names: Iterable[str]) -> list[str]:
    """A line for each class of a split that has no image, and for each that is still in its archive.

    Paths in it are relative to the source, since the manifest records it.
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
    """Raises InputError where parts are missing and the user did not say to go on without them."""
    if missing and not wanted.allow_missing:
        more = f" (and {len(missing) - 1:,} more)" if len(missing) > 1 else ""
        raise InputError(
            f"{root}/{missing[0]}{more}: put back what is missing, remove it, or go on with --allow-missing"
        )


def list_classes(root: Folder, folders: Sequence[Folder], class_names: Sequence[str], ignored: str = "") -> Listing:
    """Every file below the class folders of a split, sorted; CLASS/CLASS + `ignored` is left out.

    Raises:
        InputError: there is no file at all, or one is a pointer of Git LFS.
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
    """Raises InputError where a split has no file at all, or a pointer of Git LFS instead of one."""
    if not listing:
        raise InputError(f"{folder} holds no parquet file and no CLASS/IMAGE.jpg: nothing to prepare")
    for name, _, size_bytes in listing:
        check_no_pointer(root, name, size_bytes)


def _describe_junk(splits: Splits) -> list[str]:
    """One line on files of operating systems and file browsers, which are left out; none where there are none."""
    folders = [folder for each in splits.folders.values() for folder in each]
    junk = [name for folder in folders for each in folder.walk() for name in each.junk]
    return [f"{len(junk):,} system files ({', '.join(sorted(set(junk))[:MOST_NAMED])})"] if junk else []


def _compare_classes(splits: Splits, names: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """A line where a split lacks classes of the train split."""
    for split, folders in splits.folders.items():
        lacking = sorted(set(names.get("train", ())) - set(names[split]))
        if lacking and split != "test":
            shown = ", ".join(lacking[:MOST_NAMED]) + (", ..." if len(lacking) > MOST_NAMED else "")
            yield f"{folders[0].path} has no folder for {len(lacking):,} classes of the train split ({shown})"


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
