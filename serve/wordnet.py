"""ImageNet's classes in words: its datasets often name them by WordNet's numbers, `n01443537` for a goldfish.

Beside `serve/images.py`; whatever shows classes to people asks here. The words come with timm.
"""

import re
from collections.abc import Sequence
from functools import cache

from timm.data import ImageNetInfo

NUMBER = re.compile(r"n\d{8}")


def to_words(names: Sequence[str]) -> tuple[str, ...]:
    """The names in words where all of them are WordNet's numbers, else as they are."""
    if not all(NUMBER.fullmatch(name) for name in names):
        return tuple(names)
    return tuple(map(_look_up, names))


def _look_up(number: str) -> str:
    try:
        return _open().label_name_to_description(number)
    except KeyError:  # later than ImageNet's 21,841
        return number


@cache
def _open() -> ImageNetInfo:
    return ImageNetInfo()
