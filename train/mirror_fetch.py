"""Fetch a run from a bucket into a run folder: its newest whole checkpoint and the logs, or all of it.

What is in the bucket: `train/mirror_store.py`.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from prep.errors import InputError
from prep.files import sha256_of_file, write_folder, write_whole
from prep.remote import MissingObjectError, ShortObjectError
from train.checkpoint import META, PARTIAL, find_fault, newest_complete, read_meta
from train.config import CHECKPOINTS, RECIPE, TENSORBOARD
from train.mirror_store import JOURNALS, LOGS, WEIGHTS, RunStore, Stored, dump_json, parse_json

PART_BYTES, CONNECTIONS = 16 << 20, 16  # of a download


class DamagedError(InputError):
    """A checkpoint that does not match its digests."""


def fetch_newest(store: RunStore, run_dir: Path, local_clock: int, report: Callable[[str], None]) -> str | None:
    """Fetch the newest whole checkpoint, and the logs, if it is newer than the newest one in the run folder.

    The logs come first: a checkpoint that is there always finds the log that it expects.

    Args:
        local_clock: of the newest whole checkpoint in the run folder; -1 without one.
        report: is called with a line for each damaged checkpoint.

    Returns:
        The name of the checkpoint in the bucket; None if there is nothing newer.

    Raises:
        InputError: S3 does not answer.
        OSError: the disk failed.
    """
    for stored in store.find_checkpoints(store.read_newest_claim()):
        if stored.clock <= local_clock:
            return None
        try:
            fetch_checkpoint(store, stored, run_dir, with_logs=True)
        except DamagedError as error:
            if not store.remote.read(f"{CHECKPOINTS}/{stored.name}/{META}"):
                # A start that is still at work has saved a newer one and deleted this one: look again.
                return fetch_newest(store, run_dir, local_clock, report)
            report(f"{error}: using the previous one")
            continue
        return stored.name
    return None


def fetch_checkpoint(store: RunStore, stored: Stored, run_dir: Path, with_logs: bool) -> Path:
    """Fetch one checkpoint into a run folder, under its local name; it appears there when all of it is whole.

    Args:
        with_logs: also replace the folder's logs, by those of the checkpoint.

    Raises:
        DamagedError: an object is missing or does not match its digest.
    """
    url, meta, digests = f"{store.url}/{CHECKPOINTS}/{stored.name}", store.read_meta(stored), store.read_digests(stored)
    if set(digests) != {*WEIGHTS, *JOURNALS} or parse_json(meta).get("clock") != stored.clock:
        raise DamagedError(f"{url} is damaged ({META} is not that of a checkpoint)")
    final = run_dir / CHECKPOINTS / stored.local_name
    with write_folder(final, final.with_name(f"{PARTIAL}{final.name}")) as partial:
        for name, digest in digests.items():
            _fetch_file(store, stored, name, partial / name)
            if sha256_of_file(partial / name) != digest:
                raise DamagedError(f"{url} is damaged ({name} changed after it was saved)")
        (partial / META).write_bytes(meta)
        journals = {name: (partial / name).read_bytes() for name in JOURNALS}
        for name in JOURNALS:
            (partial / name).unlink()
        if with_logs:
            fetch_logs(store, run_dir, {**journals, RECIPE: dump_json(parse_json(meta)["recipe"])})
    return final


def fetch_logs(store: RunStore, run_dir: Path, known: Mapping[str, bytes]) -> None:
    """Fetch the logs that the last start left.

    Args:
        known: content of those that are taken from elsewhere, by name.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    for name in LOGS:
        content = known[name] if name in known else store.remote.read(name)
        if content is not None:
            write_whole(run_dir / name, content)

    # TensorBoard's files only grow; one that is longer here holds what was logged after its last upload.
    for name, size in store.remote.list(TENSORBOARD).items():
        path = run_dir / name
        if not path.exists() or path.stat().st_size < size:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, store.remote.read(name) or b"")


def _fetch_file(store: RunStore, stored: Stored, name: str, path: Path) -> None:
    """Download an object of a checkpoint by ranges."""
    size, key = stored.sizes.get(name, 0), f"{CHECKPOINTS}/{stored.name}/{name}"

    def fetch_part(start: int, stop: int) -> None:
        part = bytearray(stop - start)
        store.remote.read_range(key, start, stop, part)
        os.pwrite(file.fileno(), part, start)

    try:
        with path.open("wb") as file:
            store.remote.read_in_parts(fetch_part, size, PART_BYTES, CONNECTIONS)
    except (MissingObjectError, ShortObjectError) as error:
        raise DamagedError(f"{store.url}/{CHECKPOINTS}/{stored.name} is damaged ({error})") from None


def fetch_run(store: RunStore, run_dir: Path, report: Callable[[str], None]) -> list[str]:
    """Fetch all checkpoints of a run that its folder lacks, the newest one first, and the logs.

    Returns:
        The names of the whole checkpoints in the folder that are also in the bucket, the newest one first.

    Raises:
        InputError: the folder holds another run, or S3 does not answer.
    """
    if not store.is_run_of(run_dir):
        raise InputError(f"{run_dir} holds another run than {store.url}: choose another --to")
    local, _ = newest_complete(run_dir / CHECKPOINTS)
    local_clock = read_meta(local)["clock"] if local else -1
    fetched: list[str] = []
    for stored in store.find_checkpoints(store.read_newest_claim()):
        path = run_dir / CHECKPOINTS / stored.local_name
        if path.name in fetched:  # of an earlier start
            continue
        try:
            if find_fault(path) or (path / META).read_bytes() != store.read_meta(stored):
                fetch_checkpoint(store, stored, run_dir, with_logs=not fetched and stored.clock > local_clock)
        except DamagedError as error:
            report(f"{error}: left out")
            continue
        fetched.append(path.name)
    if not fetched and local is None:
        fetch_logs(store, run_dir, {})
    return fetched
