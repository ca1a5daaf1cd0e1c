"""Finding the images that a decoder failed on: DALI ends its pipeline without saying which they were."""

from collections.abc import Callable, Iterable

from loaders.plan import Plan
from loaders.reader import Encoded
from prep.dataset import InputError

MOST_CHARACTERS = 500


class DecodeError(InputError):
    """Images of these rows cannot be decoded; without rows, decoding failed for another reason."""

    def __init__(self, rows: list[int], message: str) -> None:
        super().__init__(message)
        self.rows = rows


def blame(
    pairs: Iterable[tuple[Plan, Encoded]], find_failing: Callable[[Plan, Encoded], list[int]], reason: str
) -> DecodeError:
    """The error for batches that a decoder had begun: it is tried on each image alone, in the first batch that fails.

    Args:
        find_failing: the places in a batch of the images that the decoder cannot decode.
    """
    reason = " ".join(reason.split())[:MOST_CHARACTERS]
    for plan, encoded in pairs:
        if rows := sorted({int(plan.rows_B[i]) for i in find_failing(plan, encoded)}):
            return DecodeError(rows, reason)
    return DecodeError([], f"decoding failed, though each image of the batch can be decoded alone: {reason}")
