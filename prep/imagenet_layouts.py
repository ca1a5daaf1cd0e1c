"""ImageNet as its archives unpack, found by their files: Kaggle's ILSVRC and Stanford's tiny-imagenet-200.

Both keep the training images in class folders named by WordNet id (WNID) and the validation images in one folder,
their labels in a text file beside it. Labels follow the sorted WNIDs, as everywhere for ImageNet. The test images
have no labels and are left out.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from prep.dataset import InputError
from prep.image_folder import (
    IMAGE_SUFFIXES,
    ImageFolder,
    Listing,
    check_classes,
    check_not_empty,
    class_folders,
    list_classes,
    make_image_folder,
)

SOLUTION, MAPPING = "LOC_val_solution.csv", "LOC_synset_mapping.txt"
KAGGLE = "https://www.kaggle.com/c/imagenet-object-localization-challenge/data"
WNIDS, WORDS, ANNOTATIONS, BOXES = "wnids.txt", "words.txt", "val_annotations.txt", "_boxes.txt"


@dataclass(frozen=True)
class Labels:
    """A text file that labels the images of one folder: name of an image, less its suffix -> WNID."""

    path: Path
    wnids: dict[str, str]


def find_kaggle(root: Path) -> Path | None:
    """The CLS-LOC folder of an unpacked Kaggle archive, given it or a folder above it; None where there is none.

    A folder of another name is taken for one where val/ is flat.
    """
    for folder in (root / "ILSVRC" / "Data" / "CLS-LOC", root / "Data" / "CLS-LOC"):
        if folder.is_dir():
            return folder
    is_kaggle = root.resolve().name == "CLS-LOC" or _is_flat(root / "val")
    return root if is_kaggle else None


def open_kaggle(folder: Path) -> ImageFolder:
    """The CLS-LOC folder of Kaggle's archive: train/WNID/*.JPEG and val/*.JPEG, or val/WNID/*.JPEG if sorted since.

    Raises:
        InputError: the file of validation labels is missing or damaged, or lacks an image or names another class.
    """
    train, val, mapping = folder / "train", folder / "val", _find_above(folder, MAPPING)
    labels = _read_solution(folder) if _is_flat(val) else None
    if labels and not train.is_dir():
        wnids = sorted(set(labels.wnids.values()))
    else:
        wnids = next((class_folders(split) for split in (train, val) if split.is_dir()), [])
    listings: dict[str, Listing] = {}
    if train.is_dir():
        listings["train"] = list_classes(folder, train, wnids)
    if val.is_dir():
        listings["validation"] = _list_validation(folder, val, labels, wnids)
    if not listings:
        raise InputError(f"{folder} holds neither train/ nor val/: unpack the archive anew")
    return _make(folder, wnids, _read_names(mapping) if mapping else {}, listings)


def is_tiny_imagenet(root: Path) -> bool:
    """Whether a folder is tiny-imagenet-200 as its archive unpacks."""
    return (root / WNIDS).is_file() and (root / "train").is_dir()


def open_tiny_imagenet(root: Path) -> ImageFolder:
    """The folder tiny-imagenet-200: train/WNID/images/*.JPEG and val/images/*.JPEG, or val/WNID/ if sorted since.

    Raises:
        InputError: a class folder or the file of validation labels is missing, or lacks an image.
    """
    train, val = root / "train", root / "val"
    wnids = sorted({line.strip() for line in _read_lines(root / WNIDS)})
    found = class_folders(train)
    check_classes(train, found, wnids)
    for wnid in sorted(set(wnids) - set(found)):
        raise InputError(f"{train / wnid} is missing, though {root / WNIDS} names it: unpack the archive anew")
    listings = {"train": list_classes(root, train, wnids, ignored=BOXES)}
    if val.is_dir():
        labels = _read_annotations(val / ANNOTATIONS) if class_folders(val) == ["images"] else None
        listings["validation"] = _list_validation(root, val / "images" if labels else val, labels, wnids)
    names = _read_names(root / WORDS) if (root / WORDS).is_file() else {}
    return _make(root, wnids, names, listings)


def _make(root: Path, wnids: list[str], names: dict[str, str], listings: dict[str, Listing]) -> ImageFolder:
    class_names = [names.get(wnid, wnid) for wnid in wnids]
    return make_image_folder(root, root.resolve().name, class_names, listings, salt="\n".join(class_names))


def _is_flat(folder: Path) -> bool:
    """Whether a folder holds images and no folders."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not entry.name.startswith(".")]
    return not any(entry.is_dir() for entry in shown) and any(_is_image(entry.name) for entry in shown)


def _is_image(name: str) -> bool:
    return PurePath(name).suffix.lower() in IMAGE_SUFFIXES


def _list_validation(root: Path, folder: Path, labels: Labels | None, wnids: Sequence[str]) -> Listing:
    """The validation images: by the file that labels them, or by their class folders where there is none."""
    if labels is None:
        check_classes(folder, class_folders(folder), wnids)
        return list_classes(root, folder, wnids)
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    for stem, wnid in labels.wnids.items():
        if wnid not in label_of:
            raise InputError(f"{labels.path} gives {stem} the class {wnid}, which train lacks: unpack it all anew")
    prefix = folder.relative_to(root)
    files = _pair(folder, labels)
    listing = sorted((f"{prefix}/{name}", label_of[labels.wnids[stem]], size) for name, stem, size in files)
    check_not_empty(folder, listing)
    return listing


def _pair(folder: Path, labels: Labels) -> Iterator[tuple[str, str, int]]:
    """(file, its name in the labels, size) for each labelled image; one that is missing is offered, to be a reject."""
    missing = dict.fromkeys(labels.wnids)
    for name, size in _scan(folder):
        stem = PurePath(name).stem
        if stem in labels.wnids:
            missing.pop(stem, None)
            yield name, stem, size
        elif _is_image(name):
            raise InputError(f"{folder / name} has no label in {labels.path}: add its line or move the image away")
    yield from ((f"{stem}.JPEG", stem, 0) for stem in missing)


def _scan(folder: Path) -> Iterator[tuple[str, int]]:
    """(name, size) of each file; what is no file, or a link to nothing, counts as one of 0 bytes."""
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            raise InputError(f"{path} is a folder among images: move its images up or away")
        yield path.name, path.stat().st_size if path.is_file() else 0


def _above(folder: Path) -> list[Path]:
    """A CLS-LOC folder, Data, ILSVRC and the one above, as given and with links resolved."""
    resolved = folder.resolve()
    given = [folder, *folder.absolute().parents[:3], resolved, *resolved.parents[:3]]
    return list(dict.fromkeys(given))


def _find_above(folder: Path, name: str) -> Path | None:
    return next((above / name for above in _above(folder) if (above / name).is_file()), None)


def _read_solution(folder: Path) -> Labels:
    """LOC_val_solution.csv, as "ILSVRC2012_val_00048981,n03995372 85 1 499 272 ...": the first WNID is the label."""
    path = _find_above(folder, SOLUTION)
    if path is None:
        looked_in = ", ".join(map(str, _above(folder)))
        raise InputError(f"{SOLUTION}, which labels {folder / 'val'}, is not in {looked_in}: get it at {KAGGLE}")
    lines = [line for line in _read_lines(path) if not line.startswith("ImageId,")]
    return _read_labels(path, (line.replace(",", " ", 1) for line in lines))


def _read_annotations(path: Path) -> Labels:
    """val_annotations.txt, as "val_0.JPEG n03444034 0 32 44 62"."""
    return _read_labels(path, _read_lines(path))


def _read_labels(path: Path, lines: Iterable[str]) -> Labels:
    wnids: dict[str, str] = {}
    for line in lines:
        words = line.split()
        stem = PurePath(words[0]).stem
        if len(words) < 2 or wnids.get(stem, words[1]) != words[1]:
            raise InputError(f"{path} gives {stem} {'two labels' if words[1:] else 'no label'}: download it anew")
        wnids[stem] = words[1]
    return Labels(path, wnids)


def _read_names(path: Path) -> dict[str, str]:
    """WNID -> class name, as "n01440764 tench, Tinca tinca"."""
    split = (line.split(maxsplit=1) for line in _read_lines(path))
    return {words[0]: words[1].strip() for words in split if len(words) == 2}


def _read_lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: unpack the archive anew") from error
    except ValueError as error:
        raise InputError(f"{path} is no text: unpack the archive anew") from error
