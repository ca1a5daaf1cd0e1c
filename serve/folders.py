"""Folders of pictures as a source: a folder a class, or tiny-imagenet-200's validation folder as its archive unpacks.

Labels follow the sorted folder names or WordNet ids, as everywhere for ImageNet.
"""

from collections.abc import Container, Iterator, Sequence
from pathlib import Path

from prep.errors import InputError, list_some
from serve.source import Encoded, Source

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
ANNOTATIONS, WNIDS, WORDS, MAPPING = "val_annotations.txt", "wnids.txt", "words.txt", "LOC_synset_mapping.txt"


def open_class_folders(folder: Path) -> Source:
    """Each folder in it is a class; its images lie in it, or in folders below it.

    Raises:
        InputError: there is no image.
    """
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    files = [(path, label) for label, name in enumerate(classes) for path in _list_images(folder / name)]
    return _make(folder, classes, files)


def is_tiny_imagenet(folder: Path) -> bool:
    """Whether a folder is the val/ of tiny-imagenet-200, its labels in a text file."""
    return (folder / ANNOTATIONS).is_file() and (folder / "images").is_dir()


def open_tiny_imagenet(folder: Path) -> Source:
    """The val/ of tiny-imagenet-200 as its archive unpacks.

    Raises:
        InputError: an image has no label, or a label is unknown.
    """
    lines = (line.split() for line in (folder / ANNOTATIONS).read_text().splitlines())
    wnids = {words[0]: words[1] for words in lines if len(words) >= 2}
    listing = folder.parent / WNIDS
    classes = sorted(set(listing.read_text().split() if listing.is_file() else wnids.values()))
    images = _list_images(folder / "images")
    strange = [path.name for path in images if wnids.get(path.name) not in classes]
    if strange:
        raise InputError(f"{folder / ANNOTATIONS} has no known label for {list_some(strange)}: unpack the archive anew")
    return _make(folder, classes, [(path, classes.index(wnids[path.name])) for path in images])


def _list_images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _make(folder: Path, classes: Sequence[str], files: Sequence[tuple[Path, int]]) -> Source:
    if not files:
        raise InputError(
            f"{folder} holds no images: give a split of shards, or a folder with a folder of images a class"
        )

    def read(wanted: Container[int]) -> Iterator[Encoded]:
        for row, (path, label) in enumerate(files):
            if row in wanted:
                yield Encoded(row, str(path.relative_to(folder)), label, path.read_bytes())

    words = _read_words(folder)
    return Source(folder.name, tuple(words.get(name, name) for name in classes), len(files), read)


def _read_words(folder: Path) -> dict[str, str]:
    """WordNet id -> name, from a list in the folder or one of the two above it; none where there is no list."""
    for place in (folder, folder.parent, folder.parent.parent):
        for path in (place / WORDS, place / MAPPING):
            if path.is_file():
                lines = (line.split(maxsplit=1) for line in path.read_text(encoding="utf-8-sig").splitlines())
                return {words[0]: words[1].strip() for words in lines if len(words) == 2}
    return {}
