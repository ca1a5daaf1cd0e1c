"""Choose which predictions a gallery shows, and in which order: the mistakes, or all.

Between `serve/predict.py` and `serve/gallery.py`. Command lines need its orders, so it imports nothing heavy.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from prep.errors import InputError

if TYPE_CHECKING:
    from serve.predict import Prediction

Order = Literal["confidence", "class", "pair", "random"]
ORDERS: tuple[Order, ...] = get_args(Order)


@dataclass(frozen=True)
class Choice:
    """Which predictions to show."""

    num_show: int = 20
    order: Order = "confidence"
    show_all: bool = False  # right predictions as well
    true_class: int | None = None  # only pictures with this label
    predicted_class: int | None = None  # only pictures predicted as this class
    seed: int = 0  # of the random order, and of the order of ties


def select_predictions(predictions: Sequence[Prediction], choice: Choice) -> list[Prediction]:
    """Return at most `num_show` predictions in the chosen order, without pictures that cannot be decoded.

    confidence: mistakes first, the most confident one at the front; then, with `show_all`, right predictions, the least
    confident one at the front. class: one of each class, then a second one of each, in the order of confidence.
    pair: by (label, guess), the most frequent confusion first. random: shuffled with the seed.

    Raises:
        InputError: no prediction fits the choice.
    """
    found = [each for each in predictions if _is_wanted(each, choice)]
    if not found:
        raise InputError(_explain_empty(predictions, choice))

    # Shuffle first: sorting is stable, so ties stay in the random order of the seed.
    np.random.default_rng(choice.seed).shuffle(found)  # pyright: ignore[reportArgumentType, reportCallIssue]
    if choice.order != "random":
        found.sort(key=_by_confidence)
    if choice.order == "class":
        found = _interleave_classes(found)
    if choice.order == "pair":
        frequency = Counter((each.label, each.guess) for each in found)
        found.sort(key=lambda each: (each.is_right, -frequency[each.label, each.guess], each.label, each.guess))
    return found[: choice.num_show]


def _by_confidence(prediction: Prediction) -> tuple[bool, float]:
    """Return a sort key: confident mistakes first, confident right predictions last."""
    return prediction.is_right, prediction.confidence if prediction.is_right else -prediction.confidence


def _explain_empty(predictions: Sequence[Prediction], choice: Choice) -> str:
    num_right = sum(each.is_right for each in predictions)
    if choice.true_class is None and choice.predicted_class is None and num_right:
        return f"no mistake to show, all {num_right:,} images are right: use --all to show them, least confident first"
    return "no image matches the flags: use --all, or change --true_class and --predicted_class"


def _is_wanted(prediction: Prediction, choice: Choice) -> bool:
    return (
        prediction.guess >= 0
        and (choice.show_all or not prediction.is_right)
        and choice.true_class in (None, prediction.label)
        and choice.predicted_class in (None, prediction.guess)
    )


def _interleave_classes(found: Sequence[Prediction]) -> list[Prediction]:
    """Return one prediction of each class, then a second one of each, and so on."""
    num_seen: dict[int, int] = defaultdict(int)
    rounds = []
    for each in found:
        rounds.append((num_seen[each.label], each.label, each))
        num_seen[each.label] += 1
    return [each for _, _, each in sorted(rounds, key=lambda entry: entry[:2])]
