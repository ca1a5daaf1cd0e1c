"""Images that cannot be decoded: find them, and continue the run without them.

A decoder reports only that a batch failed. `find_bad_images` decodes the images of that batch one by one to find the
ones that fail; `Quarantine` keeps their rows. The trainer exchanges their keys between processes, and checkpoints
store the keys. The plan then shows another image instead (training) or a black one (evaluation).
"""

import logging
import re
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from loaders.plan import Plan
from loaders.reader import Encoded
from prep.errors import InputError, RankError

if TYPE_CHECKING:
    from prep.dataset import Split

MAX_LISTED = 20  # images named in one error
MAX_CHARACTERS = 500  # of a decoder's message
# Phrases of CUDA, DALI, torch and the C++ library for a failed allocation, which says nothing about the image.
SHORTAGES = ("out of memory", "memoryallocation", "bad_alloc", "t allocate memory", "not allocate memory")
log = logging.getLogger("penstock")


class DecodeError(RankError):
    """The images of these rows cannot be decoded; without rows, decoding failed for another reason."""

    def __init__(self, rows: list[int], message: str) -> None:
        super().__init__(message)
        self.rows = rows


class MemoryShortageError(RankError):
    """An allocation failed, on the GPU or the host; the images are not the cause."""

    def __init__(self, found: str) -> None:
        super().__init__(
            f"too little memory ({' '.join(found.split())[:MAX_CHARACTERS]}): use fewer images at once "
            "(--speed.microbatch in train/main.py, else --batch-size) or fewer batches ahead "
            "(--loader.batches-ahead 1), and look for other processes with nvidia-smi and free -g"
        )


class Quarantine:
    """The rows of damaged images; rows are only added.

    `add` assigns a new array and never writes into the old one, so any thread may read `rows` without the lock.
    """

    def __init__(self, split: "Split", most: int, outcome: str) -> None:
        """Start with no damaged images.

        Args:
            most: the number of damaged images with which a run may continue.
            outcome: what happens to such an image, for the log.
        """
        self.split, self.most, self.outcome = split, most, outcome
        self.rows = np.empty(0, np.int64)
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.rows)

    def keys(self) -> list[str]:
        """Return the keys of the images, in the index's order."""
        return self.split.keys(self.rows)

    def add(self, rows: Iterable[int], reason: str) -> None:
        """Add images that cannot be decoded, and log a warning for each new one.

        Raises:
            DecodeError: there are now more than `most`; the error lists them.
        """
        with self.lock:
            new = sorted(set(rows) - set(self.rows.tolist()))
            self.rows = np.union1d(self.rows, np.array(new, np.int64))
        if len(self.rows) > self.most:
            raise DecodeError(self.rows.tolist(), self._describe_excess())
        for name in self._name_images(new):
            log.warning("%s cannot be decoded: %s from now on (%s)", name, self.outcome, reason)

    def add_keys(self, keys: Iterable[str]) -> None:
        """Add images found by other processes, or by this run before it was interrupted.

        Raises:
            InputError: a key is not in the split.
            DecodeError: see `add`.
        """
        if unknown := sorted(set(keys) - set(self.keys())):
            self.add(self.split.rows_of(unknown), "found before, or by another process")

    def _name_images(self, rows: list[int]) -> list[str]:
        shards = self.split.column("shard")
        named = zip(rows, self.split.keys(rows), strict=True)
        return [f"{key} in {self.split.name_shard(shards[row])}" for row, key in named]

    def _describe_excess(self) -> str:
        listed, more = self._name_images(self.rows[:MAX_LISTED].tolist()), len(self.rows) - MAX_LISTED
        rest = f" and {more} more" if more > 0 else ""
        return (
            f"cannot decode {'; '.join(listed)}{rest}: more than the {self.most} damaged images with which a run may "
            f"continue (loader.most_damaged); `python prep/verify.py {self.split.place} --repair` repairs files"
        )


def find_bad_images(
    pairs: Iterable[tuple[Plan, Encoded]],
    find_failing: Callable[[Plan, Encoded], list[int]],
    error: Exception,
    reason: str,
) -> InputError:
    """Return the error to raise for batches on which a decoder was working when it raised `error`.

    Decodes the images of each batch one by one, up to the first batch in which some fail. After a failed allocation
    it decodes nothing: the images are intact, and quarantining them would remove good images from the run.

    Args:
        pairs: the batches that the decoder had begun.
        find_failing: returns the indices within a batch of the images that fail to decode alone.
        reason: the decoder's message.

    Returns:
        A MemoryShortageError, or a DecodeError with the rows of the bad images (none if each decodes alone).
    """
    if shortage := explain_shortage(error):
        return shortage
    # Pillow's message shows a Python object, which says nothing to a user.
    reason = re.sub(r"cannot identify image file <[^>]*>", "these bytes are not a JPEG of 8 bits per sample", reason)
    reason = " ".join(reason.split())[:MAX_CHARACTERS]
    for plan, encoded in pairs:
        if rows := sorted({int(plan.rows_B[i]) for i in find_failing(plan, encoded)}):
            return DecodeError(rows, reason)
    return DecodeError([], f"decoding failed, though each image of the batch can be decoded alone: {reason}")


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
