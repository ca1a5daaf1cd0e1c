"""Adopting WebDataset tars that already exist: they are read once, indexed and linked to, never written or copied."""

import hashlib
import json
import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from prep.closing import SplitFacts, close_dataset, close_split, find_manifest
from prep.dataset import (
    LEDGER,
    MANIFEST,
    REJECTED,
    SAMPLES,
    InputError,
    Manifest,
    Origin,
    sync_folder,
)
from prep.pools import Pool
from prep.progress import Meter
from prep.store import WORK_FOLDER, LocalStore
from prep.tar_index import TarJob, index_tar, read_record

ADOPTED = "adopted"  # the source's name in the manifest
ESTIMATE_TOLERANCE = 0.05  # how many images are to come is known by the bytes of those that came
Names = tuple[str, ...]


def find_tars(given: Sequence[str], store: LocalStore, decode_check: bool) -> list[TarJob]:
    """The tars that a user means, in the order given; a folder stands for its *.tar, sorted.

    Raises:
        InputError: one is not there, two have the same base name, or a folder holds none.
    """
    jobs: dict[str, TarJob] = {}
    for path in chain.from_iterable(_expand(Path(text)) for text in given):
        if not path.is_file():
            raise InputError(f"{path} is no file: give tars, or a folder of them, on this machine's file systems")
        if path.suffix != ".tar":
            raise InputError(f"{path} is not named *.tar: unpack it if it is compressed, else rename it")
        if path.name in jobs:
            raise InputError(f"{jobs[path.name].path} and {path.absolute()} have one base name: rename one of them")
        state = path.stat()
        jobs[path.name] = TarJob(path.absolute(), state.st_size, state.st_mtime_ns, decode_check, store)
    return list(jobs.values())


def _expand(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    tars = sorted(path.glob("*.tar"))
    if not tars:
        raise InputError(f"{path} holds no *.tar: give WebDataset tars, or a folder of them")
    return tars


def read_class_names(path: Path) -> Names:
    """The names of the classes in the order of their labels, one a line.

    Raises:
        InputError: the file is no text, or a line of it is empty.
    """
    try:
        names = tuple(line.strip() for line in path.read_text("utf-8-sig").rstrip().splitlines())
    except ValueError as error:
        raise InputError(f"{path} is no UTF-8 text ({error}): give one class name a line") from error
    if not names or "" in names:
        raise InputError(f"line {names.index('') + 1 if names else 1} of {path} is empty: give one class name a line")
    return names


def adopt_split(jobs: list[TarJob], split: str, class_names: Names | None, out: LocalStore, pool: Pool[TarJob]) -> bool:
    """Index tars as `out/split`, or go on where an earlier run stopped; whether it was whole already.

    One that was whole only gets its links and indexes back, where the tars were moved or an index was lost.

    Raises:
        InputError: a tar or label is unusable, or the folder holds anything else.
    """
    store = out.child(split)
    check_folder(jobs, class_names, store)
    with store.lock():
        manifest = find_manifest(store)
        if manifest:
            _mend(jobs, manifest, pool)
        else:
            _index([job for job in jobs if read_record(job) is None], split, pool)
            _close(jobs, split, class_names, store)
        store.remove(WORK_FOLDER)
    close_dataset(out)
    return manifest is not None


def check_folder(jobs: list[TarJob], class_names: Names | None, store: LocalStore) -> None:
    """Raises InputError where a split's folder holds anything but (part of) what adopting these very tars makes."""
    if manifest := find_manifest(store):
        _check_manifest(jobs, class_names, manifest, store)
        return
    if store.size(f"{WORK_FOLDER}/job.json") is not None:
        raise InputError(f"{store} was begun by prep/shard.py: choose another --out or delete it")
    ours = {LEDGER, SAMPLES, *(job.index_name for job in jobs)}
    partial = {f".{name}.partial" for name in (*ours, MANIFEST, *(job.name for job in jobs))}
    links = {job.name for job in jobs if _is_linked(job)}
    for name in store.names():
        if name not in {WORK_FOLDER, *ours, *partial, *links}:
            raise InputError(f"{store} holds {name}, which is not of these tars: choose another --out or delete it")


def _check_manifest(jobs: list[TarJob], class_names: Names | None, manifest: Manifest, store: LocalStore) -> None:
    if manifest.options is not None or manifest.source.name != ADOPTED:
        raise InputError(f"{store} was prepared from {manifest.source.name}: choose another --out")
    listed = [(shard.name, shard.size_bytes) for shard in manifest.shards]
    unlisted = _rejected_tars(store) - {name for name, _ in listed}
    if [(job.name, job.size_bytes) for job in jobs if job.name not in unlisted] != listed:
        raise InputError(f"{store} was adopted from other tars: give those, choose another --out, or delete it")
    if class_names not in (None, manifest.class_names):
        raise InputError(f"{store} was adopted with other class names: give those, or delete it and run again")


def _rejected_tars(store: LocalStore) -> set[str]:
    """Tars with an image that was left out; one that has no other is in no manifest."""
    entries = map(json.loads, (store.read(LEDGER) or b"").splitlines())
    return {found["name"].partition("/")[0] for found in entries if found["event"] == REJECTED}


def _mend(jobs: list[TarJob], manifest: Manifest, pool: Pool[TarJob]) -> None:
    """Give a whole split back the indexes and links that it lacks; a tar that is read again must be what it was."""
    shards = {shard.name: shard for shard in manifest.shards}
    listed = [job for job in jobs if job.name in shards]
    _index([job for job in listed if job.store.size(job.index_name) is None], manifest.split, pool)
    for job in listed:
        if (record := read_record(job)) and record["shard"]["composite_sha256"] != shards[job.name].composite_sha256:
            job.store.remove(job.index_name)
            raise InputError(f"{job.path} is not what was adopted: fetch it again, or delete {job.store} and run again")
        _link(job)
    sync_folder(jobs[0].store.folder)


def _index(jobs: list[TarJob], split: str, pool: Pool[TarJob]) -> None:
    """Read some tars."""
    if not jobs:
        return
    size_bytes = sum(job.size_bytes for job in jobs)
    with Meter(split, 0) as meter:
        for job, num_samples in pool(index_tar, jobs):
            images_per_byte = (meter.done + num_samples) / (meter.size_bytes + job.size_bytes)
            total = round(images_per_byte * size_bytes)
            is_last = meter.size_bytes + job.size_bytes == size_bytes
            if is_last or abs(total - meter.total) > ESTIMATE_TOLERANCE * total:
                meter.expect(total)
            meter.add(num_samples, job.size_bytes)


def _close(jobs: list[TarJob], split: str, class_names: Names | None, store: LocalStore) -> None:
    """Link to the tars that have usable images, then write what makes a split of them."""
    records = [_record(job) for job in jobs]
    labels = [record["columns"]["label"] for record in records]
    if class_names is None:
        class_names = tuple(str(label) for label in range(max(chain([-1], *labels)) + 1))
    _check_labels(jobs, records, class_names)
    _make_keys_unique(jobs, records)
    _number_rows(records)
    usable = [(job, record["shard"]) for job, record in zip(jobs, records, strict=True) if record["columns"]["key"]]
    for job, _ in usable:
        _link(job)
    sync_folder(store.folder)
    revision = hashlib.sha256("".join(shard["composite_sha256"] for _, shard in usable).encode()).hexdigest()
    close_split(store, SplitFacts(split, Origin(ADOPTED, revision), None, class_names), records)


def _record(job: TarJob) -> dict[str, Any]:
    record = read_record(job)
    if record is None or record["shard"]["size_bytes"] != job.size_bytes:
        raise InputError(f"{job.path} changed while it was read: wait until it is written, and run again")
    return record


def _check_labels(jobs: list[TarJob], records: list[dict[str, Any]], class_names: Names) -> None:
    for job, record in zip(jobs, records, strict=True):
        columns = record["columns"]
        for key, label in zip(columns["key"], columns["label"], strict=True):
            if label >= len(class_names):
                known = f"the class names end at {len(class_names) - 1}"
                raise InputError(f"{key} in {job.path} has label {label}, {known}: give a name for every label")


def _make_keys_unique(jobs: list[TarJob], records: list[dict[str, Any]]) -> None:
    """Keys stay what they are in the tars while they are unique in the split: else all get their tar's name in front.

    `7` in shard-02.tar becomes `shard-02/7`; where a tar itself repeats a key, `shard-02/00000041/7` with the
    sample's number in the tar.
    """
    keys = [record["columns"]["key"] for record in records]
    if len(set(chain(*keys))) == sum(map(len, keys)):
        return
    is_numbered = any(len(set(those)) < len(those) for those in keys)
    for job, record in zip(jobs, records, strict=True):
        columns, stem = record["columns"], job.name.removesuffix(".tar")
        prefixes = [f"{stem}/{row:08d}/" if is_numbered else f"{stem}/" for row in columns["row"]]
        columns["key"] = [prefix + key for prefix, key in zip(prefixes, columns["key"], strict=True)]


def _number_rows(records: list[dict[str, Any]]) -> None:
    """Count the samples through the split, where each tar counted from 0."""
    start = 0
    for record in records:
        record["columns"]["row"] = [start + row for row in record["columns"]["row"]]
        record["ledger"] = [{**found, "row": start + found["row"]} for found in record["ledger"]]
        start += record["num_samples"]


def _is_linked(job: TarJob) -> bool:
    link = job.store.folder / job.name
    return link.is_symlink() and link.readlink() == job.target


def _link(job: TarJob) -> None:
    """Have the tar under its name in the split's folder."""
    link, partial = job.store.folder / job.name, job.store.folder / f".{job.name}.partial"
    partial.unlink(missing_ok=True)
    if not _is_linked(job):
        partial.symlink_to(job.target)
        os.replace(partial, link)
