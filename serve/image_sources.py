"""Find the labelled pictures that a user's path means, with the model's labels.

A path is a split of shards (`serve/shards.py`), a folder with one folder of images per class, tiny-imagenet-200 as its
archive unpacks, or the flat validation folder of Kaggle's ImageNet. `serve/class_matching.py` matches the classes.
"""

import csv
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from prep.errors import InputError, list_some
from serve.artifact import Served
from serve.class_matching import (
    DEFAULT_SAMPLE,
    Sample,
    apply_candidate,
    choose_by_names,
    choose_matching,
    find_candidates,
    refuse_classes,
    refuse_undecided,
)
from serve.class_names import Match
from serve.picture_files import NEXT_TO_CLASSES, describe_left_out, list_class_folders, list_pictures
from serve.pictures import Encoded, Source
from serve.shards import MANIFEST, open_split

VALIDATION_FOLDERS = ("val", "valid", "validation")
SPLIT_FOLDERS = frozenset([*VALIDATION_FOLDERS, "train", "training", "test", "testing"])
KAGGLE_FOLDER = Path("ILSVRC") / "Data" / "CLS-LOC"
ANNOTATIONS, WNIDS, WORDS, MAPPING = "val_annotations.txt", "wnids.txt", "words.txt", "LOC_synset_mapping.txt"
SOLUTION, GROUND_TRUTH = "LOC_val_solution.csv", "ILSVRC2012_validation_ground_truth.txt"
LEVELS_ABOVE = 4  # between Kaggle's val/ and the archive's tables


def open_images(path: Path, num_classes: int, class_names: Sequence[str] | None) -> Source:
    """Open a split of shards, an ImageFolder, tiny-imagenet-200 (or its val/ alone), or Kaggle's val/.

    Args:
        class_names: the model's, in the order of its labels; None if unknown: then the pictures' own names are used.

    Returns:
        Pictures whose labels are the model's, with the classes named in words.

    Raises:
        InputError: the path is none of these, the pictures have other classes than the model, or their names leave
            open which class is which output (`open_matched` measures it).
    """
    source, words = open_layout(path)
    left = choose_by_names(source, find_candidates(source, words, num_classes, class_names), None)
    if not left:
        raise refuse_classes(source, num_classes)
    if len(left) > 1:
        raise refuse_undecided(source, left)
    return apply_candidate(source, left[0])


def open_matched(served: Served, path: Path, match: Match | None = None, sample: Sample = DEFAULT_SAMPLE) -> Source:
    """Open labelled pictures for a model, whose measured accuracy decides if the names of the classes do not.

    Args:
        match: how to match the classes; None: by name, otherwise by accuracy.
        sample: the images on which the accuracy is measured.

    Raises:
        InputError: as for `open_images`; or the accuracy does not decide.
    """
    source, words = open_layout(path)
    candidates = find_candidates(source, words, served.num_classes, served.class_names)
    found = choose_matching(served, source, candidates, match, sample)
    if served.recorded is not None and found.num_present < served.num_classes:
        note = "the recorded accuracy is of all classes and is not compared with the measured one"
        return replace(found, notes=(*found.notes, note))
    return found


def open_layout(path: Path) -> tuple[Source, Mapping[str, str]]:
    """Return the pictures at a path with the class names of their own, and the words for WordNet numbers.

    Raises:
        InputError: the path is not a folder of labelled images.
    """
    if not path.is_dir():
        raise InputError(f"{path} is not a folder: give a split of shards or a folder of images")
    if (path / MANIFEST).is_file():
        return open_split(path), {}
    if is_tiny_imagenet(path):
        return open_tiny_imagenet(path), _read_words(path)

    # The path may be one level too high: the folder of a dataset's splits.
    splits = sorted(each.name for each in path.iterdir() if (each / MANIFEST).is_file())
    if splits:
        raise InputError(f"{path} is a prepared dataset: give one of its splits, {list_some(splits)}")
    inner = next((path / name for name in VALIDATION_FOLDERS if (path / name).is_dir()), None)
    if inner is not None and (path / "train").is_dir():
        return open_layout(inner)
    if (path / KAGGLE_FOLDER).is_dir():
        return open_layout(path / KAGGLE_FOLDER)
    return open_class_folders(path), _read_words(path)


# One folder per class


def open_class_folders(folder: Path) -> Source:
    """Open a folder in which each folder is a class, with its images in it or in folders below it.

    Class i is the i-th folder in the order of strings, as in torchvision: `10` comes before `2`.

    Raises:
        InputError: the folder holds no images, they are not in class folders, or the folders are splits.
    """
    classes, loose = list_class_folders(folder)
    if len(classes) > 1 and {name.casefold() for name in classes} <= SPLIT_FOLDERS:
        raise InputError(f"{folder} holds splits, not classes: give one of its folders, {list_some(classes)}")

    # List the images of each class. What is next to the class folders has no label.
    files: list[tuple[Path, int]] = []
    left_out, empty = loose.left_out.copy(), []
    for label, name in enumerate(classes):
        listing = list_pictures(folder / name)
        left_out += listing.left_out
        files += [(path, label) for path in listing.pictures]
        empty += [] if listing.pictures else [name]
    if loose.pictures and not files:
        return _open_flat(folder, loose.pictures, left_out)
    if loose.pictures:
        left_out[NEXT_TO_CLASSES] = len(loose.pictures)
    source = make_source(folder, classes, files, left_out)
    if empty:
        note = f"{len(empty):,} of {len(classes):,} class folders hold no images: {list_some(empty)}"
        return replace(source, notes=(*source.notes, note))
    return source


def make_source(
    folder: Path, classes: Sequence[str], files: Sequence[tuple[Path, int]], left_out: Counter[str]
) -> Source:
    """Return the source of a list of (image, class), with a note on the files that were left out.

    Raises:
        InputError: the list is empty.
    """
    notes = describe_left_out(left_out)
    if not files:
        found = f" ({notes[0]})" if notes else ""
        raise InputError(
            f"{folder} holds no images{found}: give a split of shards, or a folder with one folder of images per class"
        )

    def read(wanted: Container[int]) -> Iterator[Encoded]:
        for row, (path, label) in enumerate(files):
            if row in wanted:
                yield Encoded(row, str(path.relative_to(folder)), label, path.read_bytes())

    present = frozenset(label for _, label in files)
    return Source(folder.resolve().name, tuple(classes), len(files), read, notes, present)


# Folders whose labels are in a table


def is_tiny_imagenet(folder: Path) -> bool:
    """Return True if a folder is the val/ of tiny-imagenet-200, whose labels are in a text file."""
    return (folder / ANNOTATIONS).is_file() and (folder / "images").is_dir()


def open_tiny_imagenet(folder: Path) -> Source:
    """Open the val/ of tiny-imagenet-200 as its archive unpacks.

    Raises:
        InputError: an image has no label, or its label is unknown.
    """
    # The annotations give each image's WordNet id. The labels follow the sorted list of all ids, which is next to val/;
    # without it the ids in use have to do.
    lines = (line.split() for line in (folder / ANNOTATIONS).read_text().splitlines())
    wnids = {words[0]: words[1] for words in lines if len(words) >= 2}
    listing = folder.parent / WNIDS
    classes = sorted(set(listing.read_text().split() if listing.is_file() else wnids.values()))
    images = list_pictures(folder / "images")
    unknown = [path.name for path in images.pictures if wnids.get(path.name) not in classes]
    if unknown:
        raise InputError(
            f"{folder / ANNOTATIONS} has no known label for {list_some(unknown)}: unpack the archive again"
        )
    labelled = [(path, classes.index(wnids[path.name])) for path in images.pictures]
    return make_source(folder, classes, labelled, images.left_out)


def _open_flat(folder: Path, images: Sequence[Path], left_out: Counter[str]) -> Source:
    """Open images that are not in class folders, with the labels of Kaggle's table.

    Raises:
        InputError: the table is not there, or does not name an image.
    """
    table = _find_above(folder, SOLUTION)
    if table is None:
        raise InputError(_explain_flat(folder, len(images)))
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.reader(file) if len(row) == 2 and row[1].strip()]
    # The first word of an image's boxes is its class; the first line is the heading.
    wnids = {row[0]: row[1].split()[0] for row in rows if row[0] != "ImageId"}
    unknown = [path.name for path in images if path.stem not in wnids]
    if unknown:
        raise InputError(f"{table} has no label for {list_some(unknown)}: unpack the archive again")
    classes = sorted(set(wnids.values()))
    labels = {wnid: label for label, wnid in enumerate(classes)}
    return make_source(folder, classes, [(path, labels[wnids[path.stem]]) for path in images], left_out)


def _explain_flat(folder: Path, num_images: int) -> str:
    start = f"{folder} holds {num_images:,} images that are not in class folders, so they have no labels"
    fix = f"move each into the folder of its class (CLASS/IMAGE.jpg), or put Kaggle's {SOLUTION} into it"
    if _find_above(folder, GROUND_TRUTH) is not None:
        return (
            f"{start}; {GROUND_TRUTH} numbers the classes in an order of its own, which is not that of the sorted "
            f"WordNet numbers: {fix}"
        )
    return f"{start}: {fix}"


def _find_above(folder: Path, name: str) -> Path | None:
    """Return a file with this name in a folder or one of the four above it."""
    places = [folder.resolve(), *folder.resolve().parents][: LEVELS_ABOVE + 1]
    return next((place / name for place in places if (place / name).is_file()), None)


def _read_words(folder: Path) -> dict[str, str]:
    """Return WordNet id -> name from a list in the folder or one of the two above it; empty without a list."""
    mapping = _find_above(folder, MAPPING)
    places = (folder, folder.parent, folder.parent.parent)
    for path in [*(place / WORDS for place in places), *([] if mapping is None else [mapping])]:
        if path.is_file():
            lines = (line.split(maxsplit=1) for line in path.read_text(encoding="utf-8-sig").splitlines())
            return {words[0]: words[1].strip() for words in lines if len(words) == 2}
    return {}
