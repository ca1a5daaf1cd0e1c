"""What a folder holds, listed once: every later decision about a source is made from this listing.

Links to folders are followed, as torchvision does. Files that an operating system or a file browser leaves in folders
(`.DS_Store`, `Thumbs.db`, `__MACOSX`) are not data: they are counted and left out of the listing.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from prep.dataset import MANIFEST, SAMPLES, WORK_FOLDER
from prep.errors import InputError
from prep.source import is_lfs_pointer


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# torchvision's suffixes, and other images that Pillow may read.
IMAGE_SUFFIXES = _names(".jpg .jpeg .png .ppm .bmp .pgm .tif .tiff .webp .jpe .jfif .jp2 .gif .avif .heic .heif")
# Files with these suffixes are known to be something else; any other file is looked into where it matters.
OTHER_SUFFIXES = _names(
    ".txt .csv .tsv .json .jsonl .xml .yaml .yml .md .rst .html .log .ini .py .ipynb .sh .m .mat .npy .npz .pkl .pt"
    " .pth .h5 .hdf5 .parquet .arrow .tar .tgz .gz .bz2 .xz .zst .zip .7z .rar .db .pdf .mp4 .avi .mov .idx .lock"
)
IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")
# What systems and file browsers leave behind, in lower case.
JUNK_FOLDERS = _names(
    ".ipynb_checkpoints __macosx @eadir #recycle @recycle $recycle.bin .appledouble .trashes .spotlight-v100"
    " .fseventsd lost+found"
) | {"system volume information"}
JUNK_FILES = _names(".ds_store thumbs.db ehthumbs.db desktop.ini .localized .directory .nomedia") | {"icon\r"}
POINTER_SIZES = range(100, 200)  # bytes of a Git LFS pointer
RUN_FILES = frozenset(["recipe.json", "metrics.jsonl"])  # of a training run


@dataclass(slots=True)
class Folder:
    """One folder and all below it; `name` is its path below the source, with slashes, "" for the source itself."""

    path: Path
    name: str
    identity: tuple[int, int]
    files: dict[str, int] = field(default_factory=dict)  # name -> bytes; 0 for what is no file or cannot be looked at
    folders: dict[str, "Folder"] = field(default_factory=dict)
    junk: list[str] = field(default_factory=list)  # names that are left out
    loops: list[str] = field(default_factory=list)  # links to a folder that they lie in
    fault: str = ""  # why it cannot be listed
    has_image: bool = False  # directly in it
    holds_image: bool = False  # in it or anywhere below it, hidden folders apart

    @property
    def base(self) -> str:
        return self.path.name

    @property
    def shown(self) -> dict[str, "Folder"]:
        """The folders directly in it that are not hidden, sorted by name."""
        return {name: self.folders[name] for name in sorted(self.folders) if not name.startswith(".")}

    @property
    def holders(self) -> dict[str, "Folder"]:
        """Those of them that hold images, at any depth."""
        return {name: folder for name, folder in self.shown.items() if folder.holds_image}

    @property
    def is_flat(self) -> bool:
        """Whether it holds images, and no folder with images."""
        return self.has_image and not self.holders

    @property
    def is_output(self) -> bool:
        """Whether one of Penstock's commands wrote it: a prepared split, one being prepared, or a training run."""
        names = self.files.keys()
        return {MANIFEST, SAMPLES} <= names or WORK_FOLDER in self.folders or names >= RUN_FILES

    def walk(self) -> "Iterator[Folder]":
        """It and every folder below it."""
        to_do: list[Folder] = [self]
        while to_do:
            folder = to_do.pop()
            yield folder
            to_do.extend(folder.folders.values())

    def walk_files(self) -> Iterator[tuple[str, int]]:
        """(path below the source, bytes) of each file in it and below; a folder that cannot be listed counts as one."""
        for folder in self.walk():
            prefix = f"{folder.name}/" if folder.name else ""
            if folder.fault:
                yield folder.name, 0
            yield from ((prefix + name, size) for name, size in folder.files.items())

    def find_images(self) -> list[str]:
        """The names of the images directly in it, hidden ones apart, sorted."""
        return sorted(name for name in self.files if not name.startswith(".") and looks_like_image(self.path / name))

    def find_child(self, path: str) -> "Folder | None":
        """The folder at a path below this one, "." for this one itself."""
        found: Folder | None = self
        for part in PurePath(path).parts:
            found = found.folders.get(part) if found else None
        return found


def list_folder(root: Path) -> Folder:
    """List a folder and all below it.

    A link to a folder that it lies in is not followed: what is there is listed already.

    Raises:
        InputError: the folder itself cannot be listed.
    """
    top = Folder(root, "", _identity(root.stat()))
    found: list[Folder] = []
    to_do = [(top, _identities_above(root))]
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
    for folder in reversed(found):  # a folder comes after the one that it lies in
        folder.has_image = _has_image(folder)
        folder.holds_image = folder.has_image or any(child.holds_image for child in folder.shown.values())
    return top


def _add_entry(folder: Folder, entry: os.DirEntry[str], above: frozenset[tuple[int, int]]) -> Folder | None:
    """Add what a folder has to its listing; returns it where it is a folder to be listed too."""
    try:
        status = entry.stat()
    except OSError:
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
    """Whether an image lies directly in a folder; files are only opened where no name has the suffix of an image."""
    if any(name[name.rfind(".") :].lower() in IMAGE_SUFFIXES for name in folder.files):  # PurePath takes 2 s a million
        return True
    return any(looks_like_image(folder.path / name) for name in folder.files)


def looks_like_image(path: Path) -> bool:
    """Whether a file seems to be an image: by its suffix, or by its first bytes where the suffix says nothing."""
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return True
    return suffix not in OTHER_SUFFIXES and _starts_like_image(path)


def _starts_like_image(path: Path) -> bool:
    start = read_start(path)
    is_webp, is_bmp = start[:4] == b"RIFF" and start[8:12] == b"WEBP", start[:2] == b"BM" and start[6:10] == bytes(4)
    return start.startswith(IMAGE_STARTS) or is_webp or is_bmp


def read_start(path: Path) -> bytes:
    """The first bytes of a regular file, empty where it cannot be read or is something else."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe waits, to open a device may be to act on it
            return b""
        with path.open("rb") as file:
            return file.read(POINTER_SIZES.stop)
    except OSError:
        return b""


def _is_junk_file(entry: os.DirEntry[str]) -> bool:
    """Whether a file was left by a system; `._NAME` has macOS's attributes of NAME, but may be an image."""
    if entry.name.startswith("._"):
        return not _starts_like_image(Path(entry.path))
    return entry.name.casefold() in JUNK_FILES


def check_no_pointer(root: Path, name: str, size_bytes: int) -> None:
    """Raises InputError where a file is a pointer of Git LFS: the repository was cloned without its files."""
    if size_bytes in POINTER_SIZES and is_lfs_pointer(read_start(root / name)):
        raise InputError(f"{root / name} is a Git LFS pointer, not the file itself: run `git lfs pull` in {root}")


def is_dangling(path: Path) -> bool:
    """Whether a path is a link to nothing."""
    return path.is_symlink() and not path.exists()


def _identities_above(folder: Path) -> frozenset[tuple[int, int]]:
    """The folder itself and all that it lies in, as given and with links resolved."""
    resolved = folder.resolve()
    return frozenset(_identity(path.stat()) for path in (resolved, *resolved.parents, *folder.absolute().parents))


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
