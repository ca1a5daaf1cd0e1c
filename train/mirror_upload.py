"""Keep a run's copy in a bucket up to date while it trains: fetch at the start, upload in a thread, wait at the end.

`Mirror` is what `fit` uses, with or without --run.mirror. Rank 0 uploads, and the first rank of each node downloads, so
that several nodes need no shared folder. What is in the bucket, and who may write it: `train/mirror_store.py`.
"""

import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from loaders import World
from loaders.world import make_machine_error
from prep.errors import InputError, describe_os_error, print_or_discard, warn
from prep.remote import Patience, RemoteError, StoppedError
from train.checkpoint import META, PARTIAL, list_checkpoints, newest_complete, read_meta
from train.config import CHECKPOINTS, CONTINUE, HOLDER, STARTS, Recipe
from train.dist import resolve_on_every_node, resolve_on_rank0
from train.mirror_fetch import fetch_checkpoint, fetch_logs, fetch_newest
from train.mirror_store import LOGS, RunStore, TakenOverError
from train.preemption import Reason, find_instance_id
from train.run_lock import RunLock, read_holder

SECONDS_BETWEEN_WARNINGS = 60.0
RETRY_SECONDS = 10.0  # after an upload that failed
POLL_SECONDS = 0.5  # between two looks of all ranks at an upload that they wait for
LEAVE_SECONDS = 90.0  # for the upload of a run that is asked to leave: a spot notice comes 120 s ahead
FINISH_SECONDS = 600.0  # of a run that is trained to its end
ERROR_SECONDS = 20.0  # of a run that ends with an error: torchrun kills it after 30 s


class Uploader:
    """Brings a bucket up to date in a thread of its own; training never waits for it.

    There is no queue: the thread compares the run folder with the bucket. It uploads the logs that changed, then the
    newest checkpoint that is missing there, until none is missing; so of several that wait the newest goes first.

    Args:
        store: must have claimed the run.
        run_dir: run folder.
        keep: number of newest checkpoints to keep, besides the best.
        since: clock from which on the run folder's checkpoints belong to this run.
        on_taken: is called once if another start takes the run over; then nothing more is uploaded.
    """

    def __init__(self, store: RunStore, run_dir: Path, keep: int, since: int, on_taken: Callable[[], None]) -> None:
        self.store, self.run_dir, self.keep, self.since, self.on_taken = store, run_dir, keep, since, on_taken
        self.changed = threading.Condition()
        self.wanted = self.done = 0  # number of requests to bring the bucket up to date, and how many are done
        self.in_use: Path | None = None  # the checkpoint that is being uploaded
        self.names: tuple[str, ...] = LOGS
        self.taken_over: TakenOverError | None = None
        self.failure: Exception | None = None  # of the last attempt, if S3 and the disk are not its cause
        self.thread = threading.Thread(target=self._run, name="penstock-mirror", daemon=True)
        self.thread.start()

    def offer(self) -> list[Path]:
        """Ask for an upload of what is new, such as a checkpoint; return the checkpoints that must not be deleted."""
        with self.changed:
            self.wanted += 1
            self.changed.notify_all()
            return [self.in_use] if self.in_use else []

    def wait(self, seconds: float) -> bool:
        """Wait until all that was asked for is in the bucket; return whether it is.

        Raises:
            TakenOverError: another start has taken the run over.
            Exception: the last attempt failed, and S3 and the disk are not the cause.
        """
        with self.changed:
            self.changed.wait_for(lambda: self.done >= self.wanted or self.taken_over or self.failure, seconds)
            if error := self.taken_over or self.failure:
                raise error
            return self.done >= self.wanted

    def stop(self) -> None:
        """End the thread, at once if it waits; it is not waited for if it is in the middle of a request."""
        with self.changed:
            self.store.remote.stop()
            self.changed.notify_all()

    def _run(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.done < self.wanted or self._is_stopped())
                goal = self.wanted
            if self._is_stopped():
                return
            try:
                self._bring_up_to_date()
            except StoppedError:
                return
            except TakenOverError as error:
                self._note(taken_over=error)
                self.on_taken()
                return
            except Exception as error:
                known = isinstance(error, RemoteError | OSError)
                self._note(failure=None if known else error)
                text = str(error) if known else f"{type(error).__name__}: {error}"
                self.store.remote.patience.report(f"{text}; training goes on, and the upload is tried again")
                self.store.remote.patience.stopped.wait(RETRY_SECONDS)
                continue
            self._note(done=goal)

    def _note(self, done: int = 0, taken_over: TakenOverError | None = None, failure: Exception | None = None) -> None:
        """Record how an attempt ended, for who waits."""
        with self.changed:
            self.done, self.taken_over, self.failure = max(self.done, done), taken_over, failure
            self.changed.notify_all()

    def _is_stopped(self) -> bool:
        return self.store.remote.patience.stopped.is_set()

    def _bring_up_to_date(self) -> None:
        self.store.confirm()
        self.store.put_logs(self.run_dir, self.names)
        while (path := self.store.find_missing(self.run_dir, self.since, self.keep)) is not None:
            with self.changed:
                self.in_use = path
            try:
                self.store.put_checkpoint(path)
            except FileNotFoundError:
                if path.exists():
                    raise
                continue  # it was deleted before `in_use` was known
            finally:
                with self.changed:
                    self.in_use = None
            self.store.prune(self.keep)


class Mirror:
    """A run's copy in a bucket. Use as a context manager on every rank; without --run.mirror it does nothing.

    Raises:
        InputError: the URL, obstore or the credentials cannot be used.
    """

    def __init__(self, recipe: Recipe, world: World) -> None:
        self.recipe, self.world = recipe, world
        self.url, self.run_dir = recipe.run.mirror, recipe.run_dir
        self.store: RunStore | None = None
        self.uploader: Uploader | None = None  # on rank 0, once `start` was called
        self.was_fetched = False  # the newest checkpoint came from the bucket
        if self.url is not None:
            try:
                self.store = RunStore(self.url, Patience(report=MinuteReport()))
            except InputError as error:
                raise make_machine_error(str(error), world) from None

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self.uploader is None:
            return
        # After an error: a last upload, with bad_batches.json. Not after a second Ctrl-C.
        if isinstance(error, Exception):
            self.uploader.offer()
            with suppress(Exception):  # the error that ended the run counts
                self.uploader.wait(ERROR_SECONDS)
        self.uploader.stop()

    # At the start.

    def fetch(self, lock: RunLock) -> None:
        """Fetch what the bucket has and the run folder lacks, on each node. Every rank must call it.

        Raises:
            InputError: another process holds the run folder; the bucket holds another run, or cannot be read.
        """
        if self.store is None:
            return
        fetched = resolve_on_rank0(lambda: self._fetch_or_refuse(lock), self.world)
        if self.world.size > self.world.local_size:
            resolve_on_every_node(lambda: self._fetch_on_other_node(*fetched), self.world)

    def _fetch_or_refuse(self, lock: RunLock) -> tuple[str, str]:
        """Call `_fetch_on_rank0`; a full disk is an InputError, which all ranks get."""
        try:
            return self._fetch_on_rank0(lock)
        except OSError as error:
            raise InputError(describe_os_error(error)) from error

    def _fetch_on_rank0(self, lock: RunLock) -> tuple[str, str]:
        """Return the name in the bucket of the checkpoint to start from, for other nodes; and this folder's holder."""
        assert self.store is not None
        lock.confirm()
        self.store.check(self.recipe, self.run_dir)
        local, _ = newest_complete(self.run_dir / CHECKPOINTS)
        clock = read_meta(local)["clock"] if local else -1
        name = fetch_newest(self.store, self.run_dir, clock, print_or_discard)
        self.was_fetched = name is not None
        if name:
            print_or_discard(f"fetched {self.store.url}/{CHECKPOINTS}/{name}")
        elif local and self.world.size > self.world.local_size:
            # The newest one is here alone: other nodes get it through the bucket.
            if self.store.find_copy(local) is None:
                self.store.take(clock, self._find_instance())
                self.store.put_checkpoint(local)
            stored = self.store.find_copy(local)
            name = stored.name if stored else None
        elif not local and not (self.run_dir / STARTS).exists():
            fetch_logs(self.store, self.run_dir, {})
        return name or "", lock.holder.token

    def _fetch_on_other_node(self, name: str, token: str) -> None:
        """Fetch the checkpoint that rank 0 starts from, unless this node sees rank 0's folder or has it already."""
        assert self.store is not None
        holder = read_holder(self.run_dir / HOLDER)
        if self.world.rank == 0 or (holder and holder.token == token):
            return
        folder = self.run_dir / CHECKPOINTS
        folder.mkdir(parents=True, exist_ok=True)
        if not name:
            return
        stored = next(each for each in self.store.list_folders() if each.name == name)
        path, _ = newest_complete(folder)
        if path is None or (path / META).read_bytes() != self.store.read_meta(stored):
            path = fetch_checkpoint(self.store, stored, self.run_dir, with_logs=False)
        # No save ever comes to this folder, which would delete old checkpoints.
        for each in [*(each for each in list_checkpoints(folder) if each < path), *folder.glob(f"{PARTIAL}*")]:
            shutil.rmtree(each)

    def claim(self, clock: int) -> None:
        """Become the run's writer. Every rank must call it, when all that the run needs has been found.

        Args:
            clock: images seen, where this run starts.

        Raises:
            InputError: the bucket cannot be written.
        """
        store = self.store
        if store is not None:
            resolve_on_rank0(lambda: store.claim or store.take(clock, self._find_instance()), self.world)

    def start(self, notify: Callable[[Reason], None]) -> None:
        """Start uploading, on rank 0. Call this when the logs of this start exist.

        Args:
            notify: is called if the run has to leave because another one has taken over.
        """
        if self.store is None or self.world.rank > 0:
            return
        assert self.store.claim is not None
        since = self.store.claim.clock if self.was_fetched else 0
        self.uploader = Uploader(
            self.store, self.run_dir, self.recipe.run.keep, since, lambda: notify(Reason.TAKEN_OVER)
        )
        self.uploader.offer()

    def _find_instance(self) -> str | None:
        return find_instance_id() if self.recipe.run.spot != "off" else None

    # While it trains.

    def offer(self, path: Path) -> list[Path]:
        """Upload a checkpoint soon; return the checkpoints that must not be deleted. For `Saver`."""
        return self.uploader.offer() if self.uploader else []

    def put_hang(self, path: Path) -> None:
        """Upload hang.txt at once. For `Watchdog`, whose process ends some seconds later in any case."""
        if self.uploader and self.uploader.taken_over is None:
            self.uploader.store.remote.put(path.name, path)

    # At the end.

    def finish(self, leaves: Callable[[], bool], with_marker: bool) -> bool:
        """Wait until the bucket has all of the run; return whether it does. Every rank must call it.

        Args:
            leaves: is called about twice a second; returns True if the run is asked to leave. Then the time is short.
            with_marker: upload continue.json too.

        Raises:
            InputError: another start has taken the run over.
        """
        if self.store is None:
            return True
        if self.uploader:
            self.uploader.names = (*LOGS, CONTINUE) if with_marker else LOGS
            self.uploader.offer()
        began, left_at = time.monotonic(), None
        while True:
            now = time.monotonic()
            if leaves() and left_at is None:
                left_at = now
            is_late = now - began > FINISH_SECONDS or (left_at is not None and now - left_at > LEAVE_SECONDS)
            state = resolve_on_rank0(lambda is_late=is_late: self._look(is_late), self.world)
            if state != "waiting":
                return state == "uploaded"

    def _look(self, is_late: bool) -> str:
        """Return uploaded, late or waiting."""
        assert self.uploader is not None
        if self.uploader.wait(0 if is_late else POLL_SECONDS):
            return "uploaded"
        return "late" if is_late else "waiting"


class MinuteReport:
    """Prints warnings, at most one a minute."""

    def __init__(self) -> None:
        self.last = -SECONDS_BETWEEN_WARNINGS

    def __call__(self, line: str) -> None:
        """Print a line, or discard it."""
        if time.monotonic() - self.last >= SECONDS_BETWEEN_WARNINGS:
            self.last = time.monotonic()
            with suppress(OSError):  # the terminal may have been closed
                warn(f"mirror: {line}")
