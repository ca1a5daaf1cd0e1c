"""Read ImageNet as its archives unpack, recognized by their files: Kaggle's ILSVRC and Stanford's tiny-imagenet-200.

Both keep the training images in class folders named by WordNet id (WNID), and the validation images in one folder with
their labels in a text file. Labels are the ranks of the sorted WNIDs, as is usual for ImageNet. The test images have no
labels and are left out.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from prep.errors import InputError
from prep.file_kinds import IMAGE_SUFFIXES
from prep.folder_splits import MOST_NAMED
from prep.folder_tree import JUNK_FOLDERS, Folder, check_loose, list_folder
from prep.image_folder import (
    Findings,
    ImageFolder,
    Listing,
    check_classes,
    check_files,
    check_missing,
    find_missing,
    list_classes,
    make_image_folder,
)
from prep.source import Reading

SOLUTION, MAPPING = "LOC_val_solution.csv", "LOC_synset_mapping.txt"
TRAIN_LISTS = ("LOC_train_solution.csv", "ImageSets/CLS-LOC/train_cls.txt")  # lists of training images
KAGGLE = "https://www.kaggle.com/c/imagenet-object-localization-challenge/data"
WNID = r"n\d{8}"
WNIDS, WORDS, ANNOTATIONS, BOXES = "wnids.txt", "words.txt", "val_annotations.txt", "_boxes.txt"


@dataclass(frozen=True)
class Labels:
    """A text file with the labels of the images in one folder."""

    path: Path
    wnids: dict[str, str]  # name of an image without its suffix -> WNID


# Kaggle's ILSVRC


def find_kaggle(root: Path) -> Path | None:
    """Return the CLS-LOC folder of an unpacked Kaggle archive, given it or a folder above it; None without one.

    A folder with another name counts if val/ is flat and the classes or the file of labels are ImageNet's.
    """
    for folder in (root / "ILSVRC" / "Data" / "CLS-LOC", root / "Data" / "CLS-LOC"):
        if folder.is_dir():
            return folder
    if root.resolve().name == "CLS-LOC":
        return root
    is_imagenet = _find_above(root, SOLUTION) is not None or _has_wnids(root / "train")
    return root if _is_flat(root / "val") and is_imagenet else None


def open_kaggle(folder: Path, wanted: Reading) -> ImageFolder:
    """Open the CLS-LOC folder of Kaggle's archive: train/WNID/*.JPEG and val/*.JPEG, or val/WNID/*.JPEG.

    Raises:
        InputError: the file of validation labels is missing or damaged, lacks an image or names another class; or a
            class or an image that one of the archive's lists names is missing.
    """
    # Read the class names and the validation labels, if val/ is not sorted into class folders.
    root, mapping = list_folder(folder), _find_above(folder, MAPPING)
    train, val = root.shown.get("train"), root.shown.get("val")
    if not train and not val:
        raise InputError(f"{folder} holds neither train/ nor val/: unpack the archive again")
    names = _read_names(mapping) if mapping else {}
    labels = _read_solution(folder) if val and val.is_flat else None
    wnids = sorted(set(labels.wnids.values()) if labels and not train else (train or val or root).shown)
    listings: dict[str, Listing] = {}
    missing: list[str] = []

    # List train; the mapping and the lists of the archive show what is missing.
    if train:
        check_loose(train)
        absent = sorted(set(names) - set(wnids))
        missing = [f"train/{wnid} is missing, though {MAPPING} names it" for wnid in absent]
        missing += find_missing([train], wnids)
        check_missing(folder, missing, wanted)
        check_classes(root, "train", [train], wnids, wnids)
        listings["train"] = list_classes(root, [train], wnids)
        missing += _find_unlisted(folder, listings["train"])
        check_missing(folder, missing, wanted)

    # List validation.
    if val:
        listings["validation"] = _list_validation(root, val, labels, wnids)
        if not labels:
            missing += find_missing([val], val.shown)
            check_missing(folder, missing, wanted)
    return _make_source(
        folder, wnids, names, listings, Findings(missing=tuple(missing), passed_over=_describe_test(root))
    )


# Stanford's tiny-imagenet-200


def is_tiny_imagenet(root: Path) -> bool:
    """Check whether a folder is tiny-imagenet-200 as its archive unpacks."""
    return (root / WNIDS).is_file() and (root / "train").is_dir()


def open_tiny_imagenet(folder: Path, wanted: Reading) -> ImageFolder:
    """Open the folder tiny-imagenet-200: train/WNID/images/*.JPEG and val/images/*.JPEG, or val/WNID/.

    Raises:
        InputError: a class folder, an image or the file of validation labels is missing, or the file lacks an image.
    """
    # List train; wnids.txt names the classes, and each class has a file of boxes that names its images.
    root = list_folder(folder)
    train, val = root.shown["train"], root.shown.get("val")
    wnids = sorted({line.strip() for line in _read_lines(folder / WNIDS)})
    check_loose(train)
    check_classes(root, "train", [train], train.shown, wnids)
    absent = sorted(set(wnids) - set(train.shown))
    missing = [f"train/{wnid} is missing, though {WNIDS} names it" for wnid in absent]
    missing += [*find_missing([train], train.shown), *_find_boxed(train)]
    check_missing(folder, missing, wanted)
    listings = {"train": list_classes(root, [train], wnids, ignored=BOXES)}

    # List validation. With only a folder `images` in it, the labels are in a text file.
    if val:
        labels = _read_annotations(val.path / ANNOTATIONS) if list(val.shown) == ["images"] else None
        listings["validation"] = _list_validation(root, val.shown["images"] if labels else val, labels, wnids)
        if not labels:
            missing += find_missing([val], val.shown)
            check_missing(folder, missing, wanted)
    names = _read_names(folder / WORDS) if (folder / WORDS).is_file() else {}
    return _make_source(
        folder, wnids, names, listings, Findings(missing=tuple(missing), passed_over=_describe_test(root))
    )


# Both


def _make_source(
    root: Path, wnids: list[str], names: dict[str, str], listings: dict[str, Listing], findings: Findings
) -> ImageFolder:
    class_names = [names.get(wnid, wnid) for wnid in wnids]
    return make_image_folder(root, class_names, listings, findings, salt="\n".join(class_names))


def _describe_test(root: Folder) -> tuple[str, ...]:
    test = root.shown.get("test")
    return ("test holds images without labels",) if test and test.holds_image else ()


def _find_unlisted(folder: Path, listing: Listing) -> list[str]:
    """Return a line for each of the archive's lists of training images that names missing images."""
    present = {PurePath(name).stem for name, _, _ in listing}
    lines = []
    for name in TRAIN_LISTS:
        if path := _find_above(folder, name):
            words = (line.replace(",", " ", 1).split()[0].rpartition("/")[2] for line in _read_lines(path))
            absent = [word for word in words if word not in present and word != "ImageId"]
            if absent:
                shown = ", ".join(absent[:MOST_NAMED])
                lines.append(f"train lacks {len(absent):,} images that {path.name} names ({shown})")
    return lines


def _find_boxed(train: Folder) -> list[str]:
    """Return a line for each class of tiny-imagenet with a file of boxes that names missing images."""
    lines = []
    for wnid, folder in train.shown.items():
        if f"{wnid}{BOXES}" not in folder.files:
            continue
        named = {line.split()[0] for line in _read_lines(folder.path / f"{wnid}{BOXES}")}
        absent = sorted(named - {PurePath(name).name for name, _ in folder.walk_files()})
        if absent:
            shown = ", ".join(absent[:MOST_NAMED])
            lines.append(f"{folder.name} lacks {len(absent):,} images that {wnid}{BOXES} names ({shown})")
    return lines


def _has_wnids(folder: Path) -> bool:
    """Check whether the folders in a folder are named by WordNet ids."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    return bool(names) and all(re.fullmatch(WNID, name) for name in names)


def _is_flat(folder: Path) -> bool:
    """Check whether a folder holds images and no folders, without listing what is below it."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        shown = [e for e in entries if not e.name.startswith(".") and e.name.casefold() not in JUNK_FOLDERS]
    return not any(entry.is_dir() for entry in shown) and any(_is_image(entry.name) for entry in shown)


def _is_image(name: str) -> bool:
    return PurePath(name).suffix.lower() in IMAGE_SUFFIXES


def _list_validation(root: Folder, folder: Folder, labels: Labels | None, wnids: Sequence[str]) -> Listing:
    """List the validation images: by the file with their labels, or by their class folders without one."""
    if labels is None:
        check_loose(folder)
        check_classes(root, "validation", [folder], folder.shown, wnids)
        return list_classes(root, [folder], wnids)
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    for stem, wnid in labels.wnids.items():
        if wnid not in label_of:
            raise InputError(f"{labels.path} gives {stem} the class {wnid}, which train lacks: unpack all of it again")
    files = _pair_with_labels(folder, labels)
    listing = sorted((f"{folder.name}/{name}", label_of[labels.wnids[stem]], size) for name, stem, size in files)
    check_files(root.path, folder.path, listing)
    return listing


def _pair_with_labels(folder: Folder, labels: Labels) -> Iterator[tuple[str, str, int]]:
    """Yield (file, its name in the labels, size) of each labelled image; a missing one too, to become a reject.

    Raises:
        InputError: an image has no label, or the folder holds a folder.
    """
    for name in folder.shown:
        raise InputError(f"{folder.path / name} is a folder among images: move its images up or away")
    missing = dict.fromkeys(labels.wnids)
    for name, size in folder.files.items():
        stem = PurePath(name).stem
        if name.startswith("."):
            continue
        if stem in labels.wnids:
            missing.pop(stem, None)
            yield name, stem, size
        elif _is_image(name):
            raise InputError(f"{folder.path / name} has no label in {labels.path}: add its line or move the image away")
    yield from ((f"{stem}.JPEG", stem, 0) for stem in missing)


def _list_above(folder: Path) -> list[Path]:
    """Return a CLS-LOC folder and the three folders above it, as given and with links resolved."""
    resolved = folder.resolve()
    given = [folder, *folder.absolute().parents[:3], resolved, *resolved.parents[:3]]
    return list(dict.fromkeys(given))


def _find_above(folder: Path, name: str) -> Path | None:
    return next((above / name for above in _list_above(folder) if (above / name).is_file()), None)


def _read_solution(folder: Path) -> Labels:
    """Read LOC_val_solution.csv: "ILSVRC2012_val_00048981,n03995372 85 1 499 272 ..."; the first WNID is the label."""
    path = _find_above(folder, SOLUTION)
    if path is None:
        looked_in = ", ".join(map(str, _list_above(folder)))
        raise InputError(f"{SOLUTION}, with the labels of {folder / 'val'}, is not in {looked_in}: get it at {KAGGLE}")
    lines = [line for line in _read_lines(path) if not line.startswith("ImageId,")]
    return _read_labels(path, (line.replace(",", " ", 1) for line in lines))


def _read_annotations(path: Path) -> Labels:
    """Read val_annotations.txt: "val_0.JPEG n03444034 0 32 44 62"."""
    return _read_labels(path, _read_lines(path))


def _read_labels(path: Path, lines: Iterable[str]) -> Labels:
    wnids: dict[str, str] = {}
    for line in lines:
        words = line.split()
        stem = PurePath(words[0]).stem
        if len(words) < 2 or wnids.get(stem, words[1]) != words[1]:
            raise InputError(f"{path} gives {stem} {'two labels' if words[1:] else 'no label'}: download it again")
        wnids[stem] = words[1]
    return Labels(path, wnids)


def _read_names(path: Path) -> dict[str, str]:
    """Read {WNID: class name} from lines such as "n01440764 tench, Tinca tinca"."""
    split = (line.split(maxsplit=1) for line in _read_lines(path))
    return {words[0]: words[1].strip() for words in split if len(words) == 2}


def _read_lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: unpack the archive again") from error
    except ValueError as error:
        raise InputError(f"{path} is not a text file: unpack the archive again") from error
