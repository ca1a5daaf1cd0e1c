"""Find the labelled pictures that a user's path means, with the model's labels.

A path is a split of shards (`serve/shards.py`), a folder with one folder of images per class, or tiny-imagenet-200 as
its archive unpacks. Labels follow the sorted folder names or WordNet ids, as everywhere for ImageNet.
"""

from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from prep.errors import InputError, list_some
from serve.class_names import to_words
from serve.pictures import Encoded, Source
from serve.shards import MANIFEST, open_split

VALIDATION_FOLDERS = ("val", "valid", "validation")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
ANNOTATIONS, WNIDS, WORDS, MAPPING = "val_annotations.txt", "wnids.txt", "words.txt", "LOC_synset_mapping.txt"


def open_images(path: Path, num_classes: int, class_names: Sequence[str] | None) -> Source:
    """Open a split of shards, an ImageFolder, or tiny-imagenet-200 (or its val/ alone).

    Args:
        class_names: the model's, in the order of its labels; None if unknown: then the pictures' own names are used.

    Returns:
        Pictures whose labels are the model's, with the classes named in words.

    Raises:
        InputError: the path is none of these, or the pictures have other classes than the model.
    """
    source = match_classes(_open_layout(path), num_classes, class_names)
    return replace(source, class_names=to_words(source.class_names))


def _open_layout(path: Path) -> Source:
    if not path.is_dir():
        raise InputError(f"{path} is not a folder: give a split of shards or a folder of images")
    if (path / MANIFEST).is_file():
        return open_split(path)
    if is_tiny_imagenet(path):
        return open_tiny_imagenet(path)

    # The path may be one level too high: the folder of a dataset's splits.
    splits = sorted(each.name for each in path.iterdir() if (each / MANIFEST).is_file())
    if splits:
        raise InputError(f"{path} is a prepared dataset: give one of its splits, {list_some(splits)}")
    inner = next((path / name for name in VALIDATION_FOLDERS if (path / name).is_dir()), None)
    if inner is not None and (path / "train").is_dir():
        return _open_layout(inner)
    return open_class_folders(path)


def match_classes(source: Source, num_classes: int, class_names: Sequence[str] | None) -> Source:
    """Return a source with the model's labels: matched by name if the names are equal, otherwise by position.

    When matching by name, images of classes that the model does not have are left out.

    Raises:
        InputError: the numbers of classes differ, and the pictures lack some of the model's names.
    """
    own = source.class_names
    if class_names is not None and set(class_names) <= set(own) and len(set(own)) == len(own):
        return _select_classes(source, class_names)
    if len(own) != num_classes:
        raise InputError(
            f"{source.name} has {len(own):,} classes and the model {num_classes:,}: give images of the model's classes"
        )
    return source if class_names is None else replace(source, class_names=tuple(class_names))


def _select_classes(source: Source, class_names: Sequence[str]) -> Source:
    if tuple(class_names) == source.class_names:
        return source
    # From the source's labels to the model's.
    labels = {source.class_names.index(name): label for label, name in enumerate(class_names)}

    def read(wanted: Container[int]) -> Iterator[Encoded]:
        for each in source.read(wanted):
            if each.label in labels:
                yield replace(each, label=labels[each.label])

    return replace(source, class_names=tuple(class_names), read=read)


def open_class_folders(folder: Path) -> Source:
    """Open a folder in which each folder is a class, with its images in it or in folders below it.

    Raises:
        InputError: there are no images.
    """
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    files = [(path, label) for label, name in enumerate(classes) for path in _list_images(folder / name)]
    return _make_source(folder, classes, files)


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
    images = _list_images(folder / "images")
    unknown = [path.name for path in images if wnids.get(path.name) not in classes]
    if unknown:
        raise InputError(
            f"{folder / ANNOTATIONS} has no known label for {list_some(unknown)}: unpack the archive again"
        )
    return _make_source(folder, classes, [(path, classes.index(wnids[path.name])) for path in images])


def _list_images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _make_source(folder: Path, classes: Sequence[str], files: Sequence[tuple[Path, int]]) -> Source:
    if not files:
        raise InputError(
            f"{folder} holds no images: give a split of shards, or a folder with one folder of images per class"
        )

    def read(wanted: Container[int]) -> Iterator[Encoded]:
        for row, (path, label) in enumerate(files):
            if row in wanted:
                yield Encoded(row, str(path.relative_to(folder)), label, path.read_bytes())

    words = _read_words(folder)
    return Source(folder.name, tuple(words.get(name, name) for name in classes), len(files), read)


def _read_words(folder: Path) -> dict[str, str]:
    """Return WordNet id -> name from a list in the folder or one of the two above it; empty if there is no list."""
    for place in (folder, folder.parent, folder.parent.parent):
        for path in (place / WORDS, place / MAPPING):
            if path.is_file():
                lines = (line.split(maxsplit=1) for line in path.read_text(encoding="utf-8-sig").splitlines())
                return {words[0]: words[1].strip() for words in lines if len(words) == 2}
    return {}
