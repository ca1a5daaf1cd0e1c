"""Which pictures a path means, and which of the model's classes each is of.

From a user's path to a `Source` whose labels are the model's, for `serve/judge.py`.
"""

from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from prep.errors import InputError, list_some
from serve.folders import is_tiny_imagenet, open_class_folders, open_tiny_imagenet
from serve.shards import MANIFEST, open_split
from serve.source import Encoded, Source
from serve.wordnet import to_words

VALIDATION_FOLDERS = ("val", "valid", "validation")


def open_images(path: Path, num_classes: int, class_names: Sequence[str] | None) -> Source:
    """The pictures of a split of shards, an ImageFolder, or tiny-imagenet-200 (or its val/ alone).

    Args:
        class_names: of the model, one a label; None: not known, so the pictures' own are taken.

    Returns:
        Pictures whose labels are the model's, their classes named in words.

    Raises:
        InputError: it is none of these, or of other classes.
    """
    source = match_classes(_open_layout(path), num_classes, class_names)
    return replace(source, class_names=to_words(source.class_names))


def _open_layout(path: Path) -> Source:
    if not path.is_dir():
        raise InputError(f"{path} is no folder: give a split of shards or a folder of images")
    if (path / MANIFEST).is_file():
        return open_split(path)
    if is_tiny_imagenet(path):
        return open_tiny_imagenet(path)
    splits = sorted(each.name for each in path.iterdir() if (each / MANIFEST).is_file())
    if splits:
        raise InputError(f"{path} is a prepared dataset: give one of its splits, {list_some(splits)}")
    inner = next((path / name for name in VALIDATION_FOLDERS if (path / name).is_dir()), None)
    if inner is not None and (path / "train").is_dir():
        return _open_layout(inner)
    return open_class_folders(path)


def match_classes(source: Source, num_classes: int, class_names: Sequence[str] | None) -> Source:
    """A source whose labels are the model's: by name where the names are the same words, else by position.

    Images of classes that the model was not trained on are left out.

    Raises:
        InputError: the numbers of classes differ, and the model's names are not among the pictures'.
    """
    own = source.class_names
    if class_names is not None and set(class_names) <= set(own) and len(set(own)) == len(own):
        return _select(source, class_names)
    if len(own) != num_classes:
        raise InputError(
            f"{source.name} has {len(own):,} classes and the model {num_classes:,}: give images of its own"
        )
    return source if class_names is None else replace(source, class_names=tuple(class_names))


def _select(source: Source, class_names: Sequence[str]) -> Source:
    if tuple(class_names) == source.class_names:
        return source
    labels = {source.class_names.index(name): label for label, name in enumerate(class_names)}

    def read(wanted: Container[int]) -> Iterator[Encoded]:
        for each in source.read(wanted):
            if each.label in labels:
                yield replace(each, label=labels[each.label])

    return replace(source, class_names=tuple(class_names), read=read)
