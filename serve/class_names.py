"""Class names in words, and finding a class by a name that a user types.

ImageNet datasets often name each class by its WordNet number, `n01443537` for a goldfish. timm provides the words.
"""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from prep.errors import InputError

WORDNET_NUMBER = re.compile(r"n\d{8}")


def to_words(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names in words if all of them are WordNet numbers, otherwise unchanged."""
    if not all(WORDNET_NUMBER.fullmatch(name) for name in names):
        return tuple(names)
    return tuple(map(_look_up, names))


def _look_up(number: str) -> str:
    try:
        return _load_imagenet_info().label_name_to_description(number)
    except KeyError:  # it is not one of ImageNet's 21,841 classes
        return number


@cache
def _load_imagenet_info() -> Any:
    from timm.data import ImageNetInfo  # noqa: PLC0415 - takes seconds

    return ImageNetInfo()


def find_class(word: str, class_names: Sequence[str]) -> int:
    """Return the label of a class, given by its name, the first word of its name, its WordNet number, or its label.

    Raises:
        InputError: no class has this name, or several have.
    """
    # Compare the word, and its meaning if it is a WordNet number, with complete names and with their first words.
    words = {word, *to_words((word,))}
    found = [label for label, name in enumerate(class_names) if words & {name, name.split(",")[0]}]
    if not found and word.isdecimal() and int(word) < len(class_names):
        return int(word)
    if len(found) != 1:
        problem = "several classes are" if found else "no class is"
        raise InputError(f"{problem} named {word}: give the complete name, or a number below {len(class_names)}")
    return found[0]
