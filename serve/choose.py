"""Which pictures a gallery shows: of those that the model got wrong (or of all), in an order that has a reason.

Between `serve/judge.py` and `serve/gallery.py`.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from prep.errors import InputError
from serve.judge import Verdict
from serve.wordnet import to_words

Order = Literal["confidence", "class", "pair", "random"]
ORDERS: tuple[Order, ...] = get_args(Order)


@dataclass(frozen=True)
class Choice:
    """What a user wants to see."""

    num_show: int = 20
    order: Order = "confidence"
    show_all: bool = False  # those that it got right, too
    true_class: int | None = None  # of this class alone
    predicted_class: int | None = None  # taken for this class alone
    seed: int = 0  # of ties and of the random order


def choose(verdicts: Sequence[Verdict], choice: Choice) -> list[Verdict]:
    """At most `num_show` verdicts.

    confidence: the surest mistakes first; then, where right ones are wanted, those that came closest to a mistake.
    class: the first of these of each class in turn. pair: those of the most frequent confusion first. random: as the
    seed says. What cannot be decoded is never among them.

    Raises:
        InputError: there is none.
    """
    found = [each for each in verdicts if _is_wanted(each, choice)]
    if not found:
        raise InputError(_say_why_none(verdicts, choice))
    np.random.default_rng(choice.seed).shuffle(found)  # pyright: ignore[reportArgumentType, reportCallIssue]
    if choice.order != "random":
        found.sort(key=_by_worth)
    if choice.order == "class":
        found = _take_turns(found)
    if choice.order == "pair":
        frequency = Counter((each.label, each.guess) for each in found)
        found.sort(key=lambda each: (each.is_right, -frequency[each.label, each.guess], each.label, each.guess))
    return found[: choice.num_show]


def _by_worth(verdict: Verdict) -> tuple[bool, float]:
    """What teaches most comes first: a mistake that was sure, a hit that was not."""
    return verdict.is_right, verdict.confidence if verdict.is_right else -verdict.confidence


def _say_why_none(verdicts: Sequence[Verdict], choice: Choice) -> str:
    num_right = sum(each.is_right for each in verdicts)
    if choice.true_class is None and choice.predicted_class is None and num_right:
        return (
            f"there is no mistake to show, all {num_right:,} images are right: --all shows them, the least sure first"
        )
    return "no image is as asked for: take --all, or other --true_class and --predicted_class"


def _is_wanted(verdict: Verdict, choice: Choice) -> bool:
    return (
        verdict.guess >= 0
        and (choice.show_all or not verdict.is_right)
        and choice.true_class in (None, verdict.label)
        and choice.predicted_class in (None, verdict.guess)
    )


def _take_turns(found: Sequence[Verdict]) -> list[Verdict]:
    """One of each class, then a second of each, and so on."""
    taken: dict[int, int] = defaultdict(int)
    turns = []
    for each in found:
        turns.append((taken[each.label], each.label, each))
        taken[each.label] += 1
    return [each for _, _, each in sorted(turns, key=lambda turn: turn[:2])]


def find_class(word: str, class_names: Sequence[str]) -> int:
    """The class of a name (also the first of its words, or WordNet's number), or of a number.

    Raises:
        InputError: there is none, or there are two of that name.
    """
    words = {word, *to_words((word,))}
    found = [label for label, name in enumerate(class_names) if words & {name, name.split(",")[0]}]
    if not found and word.isdecimal() and int(word) < len(class_names):
        return int(word)
    if len(found) != 1:
        problem = "are several classes" if found else "is no class"
        raise InputError(f"there {problem} named {word}: give its whole name, or a number below {len(class_names)}")
    return found[0]
