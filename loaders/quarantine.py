"""The images of a split that turned out not to decode: a run that is paid by the hour goes on without them.

Found by any process, shared by the trainer, kept in checkpoints by their keys; the plan deals with them.
"""

import logging
import threading
from collections.abc import Iterable

import numpy as np

from loaders.blame import DecodeError
from prep.dataset import Split

MOST_LISTED = 20
log = logging.getLogger("penstock")


class Quarantine:
    """Rows of damaged images, which only become more. `rows` is replaced, never changed: any thread may read it."""

    def __init__(self, split: Split, most: int, outcome: str) -> None:
        self.split, self.most, self.outcome = split, most, outcome
        self.rows = np.empty(0, np.int64)
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.rows)

    def keys(self) -> list[str]:
        """The images' keys, in the index's order."""
        return self.split.keys(self.rows)

    def add(self, rows: Iterable[int], reason: str) -> None:
        """Take in images that cannot be decoded, and say so.

        Raises:
            DecodeError: there are more now than a run may go on without; it lists them.
        """
        with self.lock:
            new = sorted(set(rows) - set(self.rows.tolist()))
            self.rows = np.union1d(self.rows, np.array(new, np.int64))
        if len(self.rows) > self.most:
            raise DecodeError(self.rows.tolist(), self._complaint())
        for name in self._names(new):
            log.warning("%s cannot be decoded: %s from now on (%s)", name, self.outcome, reason)

    def add_keys(self, keys: Iterable[str]) -> None:
        """Take in what other processes, or this run before, found.

        Raises:
            InputError: a key is not in the split.
            DecodeError: as `add`.
        """
        if unknown := sorted(set(keys) - set(self.keys())):
            self.add(self.split.rows_of(unknown), "found before, or by another process")

    def _names(self, rows: list[int]) -> list[str]:
        shards = self.split.column("shard")
        named = zip(rows, self.split.keys(rows), strict=True)
        return [f"{key} in {self.split.shard_paths[shards[row]]}" for row, key in named]

    def _complaint(self) -> str:
        listed, more = self._names(self.rows[:MOST_LISTED].tolist()), len(self.rows) - MOST_LISTED
        rest = f" and {more} more" if more > 0 else ""
        return (
            f"cannot decode {'; '.join(listed)}{rest}: more than the {self.most} that a run may go on without "
            f"(loader.most_damaged); `python prep/verify.py {self.split.folder} --repair` mends what is damaged on disk"
        )
