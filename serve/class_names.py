"""Class names in words, and finding a class by a name that a user types.

ImageNet datasets often name each class by its WordNet number, `n01443537` for a goldfish. timm provides the words.
"""

import argparse
import re
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, get_args

from prep.errors import InputError

# By the classes' names; the i-th class is the i-th output; the class named 10 is output 10.
Match = Literal["name", "position", "number"]
MATCHES: tuple[Match, ...] = get_args(Match)
WORDNET_NUMBER = re.compile(r"n\d{8}")
NUM_IMAGENET = 1000  # classes of ImageNet-1k
LEAST_AGREEMENT = 0.9  # of the names with ImageNet's, to take a list for ImageNet-1k


def to_words(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names in words if all of them are WordNet numbers, otherwise unchanged."""
    if not all(WORDNET_NUMBER.fullmatch(name) for name in names):
        return tuple(names)
    return tuple(map(look_up_words, names))


def look_up_words(name: str) -> str:
    """Return a WordNet number in words; any other name, or an unknown number, unchanged."""
    if not WORDNET_NUMBER.fullmatch(name):
        return name
    try:
        return _load_imagenet_info().label_name_to_description(name)
    except KeyError:  # it is not one of ImageNet's 21,844 WordNet numbers that timm lists
        return name


@cache
def _load_imagenet_info() -> Any:
    from timm.data import ImageNetInfo  # noqa: PLC0415 - takes seconds

    return ImageNetInfo()


@cache
def list_imagenet_wnids() -> tuple[str, ...]:
    """Return the WordNet numbers of ImageNet-1k, in the order of its labels."""
    return tuple(_load_imagenet_info().label_names())


def simplify(name: str) -> str:
    """Return a name for comparison: lower case, single spaces, underscores as spaces."""
    return " ".join(name.replace("_", " ").casefold().split())


def simplify_first(name: str) -> str:
    """Return the first of a name's synonyms, simplified: `goldfish` for `Goldfish, Carassius auratus`."""
    return simplify(name.split(",", maxsplit=1)[0])


def are_imagenet(names: Sequence[str]) -> bool:
    """Return True if names are those of ImageNet-1k in the order of its labels, by number or in words.

    Lists in use differ in single names (`crane`, `crane bird`), so nine of ten have to agree.
    """
    if len(names) != NUM_IMAGENET:
        return False
    wnids = list_imagenet_wnids()
    agree = [
        name == wnid or simplify_first(name) == simplify_first(look_up_words(wnid))
        for name, wnid in zip(names, wnids, strict=True)
    ]
    return sum(agree) >= LEAST_AGREEMENT * NUM_IMAGENET


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


def add_match_flag(parser: argparse.ArgumentParser) -> None:
    """Add --match to a command line that measures a model on labelled images."""
    parser.add_argument(
        "--match",
        choices=MATCHES,
        help="how the images' classes become the model's outputs (default: by name if the names are known, otherwise "
        "the way whose measured accuracy is significantly higher)",
    )
