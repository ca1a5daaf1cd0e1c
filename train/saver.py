"""Saving while training goes on: a snapshot is taken at once, a thread writes it. Between the trainer and the disk."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from loaders import World
from train.checkpoint import Snapshot, TrainState, prune, take_snapshot, write_checkpoint


class Saver:
    """Writes checkpoints from rank 0, one at a time. Use as a context manager: leaving it waits for the last one.

    Args:
        folder: of the checkpoints.
        keep: newest ones that stay, beside the best.
    """

    def __init__(self, folder: Path, keep: int, world: World) -> None:
        self.folder, self.keep = folder, keep
        self.writes = world.rank == 0
        self.thread = ThreadPoolExecutor(1, "penstock-saver")
        self.pending: Future[None] | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.thread.shutdown()
        if error is None:
            self.wait()

    def save(self, state: TrainState, facts: dict[str, Any]) -> None:
        """Save the state as it is now; training may change it as soon as this returns.

        Waits for the save before this one, and on a GPU once for the steps queued so far (`take_snapshot`); neither for
        the copies of this one nor for the disk.

        Args:
            facts: as `write_checkpoint` takes them.

        Raises:
            Exception: what the save before this one failed with.
        """
        self.wait()
        if self.writes:
            self.pending = self.thread.submit(self._write, take_snapshot(state), facts)

    def wait(self) -> None:
        """Until the last save is on disk; raises what it failed with."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def _write(self, snapshot: Snapshot, facts: dict[str, Any]) -> None:
        write_checkpoint(self.folder, snapshot, facts)
        prune(self.folder, self.keep)
