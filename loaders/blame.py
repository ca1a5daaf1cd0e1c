"""Finding the images that a decoder failed on: DALI ends its pipeline without saying which they were."""

import re
from collections.abc import Callable, Iterable

from loaders.plan import Plan
from loaders.reader import Encoded
from prep.errors import InputError, RankError

MOST_CHARACTERS = 500
# What allocators say, in the words of CUDA, DALI, torch and the C++ library. It says nothing about the image.
SHORTAGES = ("out of memory", "memoryallocation", "bad_alloc", "t allocate memory", "not allocate memory")


class DecodeError(RankError):
    """Images of these rows cannot be decoded; without rows, decoding failed for another reason."""

    def __init__(self, rows: list[int], message: str) -> None:
        super().__init__(message)
        self.rows = rows


class MemoryShortageError(RankError):
    """There was too little memory, on the GPU or the host; no image is to blame."""

    def __init__(self, found: str) -> None:
        super().__init__(
            f"too little memory ({' '.join(found.split())[:MOST_CHARACTERS]}): take fewer images at once "
            "(--speed.microbatch in train/main.py, else --batch-size), fewer batches ahead (--loader.batches-ahead 1), "
            "and look for other processes with nvidia-smi and free -g"
        )


def explain_shortage(error: BaseException) -> MemoryShortageError | None:
    """Return the one-line error for a failed allocation, None for any other error."""
    text = str(error)
    is_shortage = isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in text.lower() for words in SHORTAGES)
    )
    if not is_shortage:
        return None
    line = next((line for line in text.splitlines() if any(words in line.lower() for words in SHORTAGES)), text)
    return MemoryShortageError(line or "allocation failed")


def blame(
    pairs: Iterable[tuple[Plan, Encoded]],
    find_failing: Callable[[Plan, Encoded], list[int]],
    error: Exception,
    reason: str,
) -> InputError:
    """Return the error for batches that a decoder had begun when it raised `error`.

    The decoder is tried on each image alone, in the first batch that fails. A failed allocation is nobody's fault: its
    images would be lost to the run although they are whole.

    Args:
        find_failing: the places in a batch of the images that the decoder cannot decode.
        reason: the decoder's own words.
    """
    if shortage := explain_shortage(error):
        return shortage
    reason = re.sub(r"cannot identify image file <[^>]*>", "these bytes are no JPEG of 8 bits per sample", reason)
    reason = " ".join(reason.split())[:MOST_CHARACTERS]
    for plan, encoded in pairs:
        if rows := sorted({int(plan.rows_B[i]) for i in find_failing(plan, encoded)}):
            return DecodeError(rows, reason)
    return DecodeError([], f"decoding failed, though each image of the batch can be decoded alone: {reason}")
