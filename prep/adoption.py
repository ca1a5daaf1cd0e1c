"""Adopting WebDataset tars that already exist: they are read once, indexed and linked to, never written or copied."""

import errno
import hashlib
import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from prep.closing import SplitFacts, close_dataset, close_split, find_manifest
from prep.dataset import LEDGER, MANIFEST, REJECTED, SAMPLES, Manifest, Origin
from prep.errors import InputError
from prep.files import replace_file, sync_folder, unfinished_name
from prep.pools import Pool
from prep.progress import Meter
from prep.store import PARTIAL, WORK_FOLDER, LocalStore
from prep.tar_index import TarJob, index_tar, read_record
from prep.tar_sample import ANY, Fields
from prep.tar_sets import TarSet

ADOPTED = "adopted"  # the source's name in the manifest
MOST_LINES = 20  # of the summary about members that were passed over
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # FAT, exFAT, CIFS, some FUSE
ESTIMATE_TOLERANCE = 0.05  # how many images are to come is known by the bytes of those that came
Names = tuple[str, ...]


@dataclass(frozen=True)
class Adoption:
    """What is adopted, and how: the tars of one split, and what flags of `prep/adopt.py` say."""

    tars: TarSet
    class_names: Names | None = None  # None: the labels as text
    decode_check: bool = True
    allow_missing: bool = False
    fields: Fields = ANY

    def list_jobs(self, out: LocalStore) -> list[TarJob]:
        """Return a job for each tar, to be indexed below `out`."""
        store, jobs = out.child(self.tars.split), []
        for path in self.tars.paths:
            state = path.stat()
            size_bytes, modified_ns = state.st_size, state.st_mtime_ns
            jobs.append(TarJob(path.absolute(), size_bytes, modified_ns, self.decode_check, store, self.fields))
        return jobs


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


def adopt_split(adoption: Adoption, out: LocalStore, pool: Pool[TarJob]) -> bool:
    """Index tars as a split of `out`, or go on where an earlier run stopped; whether it was whole already.

    One that was whole only gets its links and indexes back, where the tars were moved or an index was lost.

    Raises:
        InputError: parts are missing, a tar or label is unusable, or the folder holds anything else.
    """
    if adoption.tars.missing and not adoption.allow_missing:
        raise InputError(_describe_missing(adoption.tars.missing))
    jobs = adoption.list_jobs(out)
    store = jobs[0].store
    check_folder(jobs, adoption, store)
    with store.lock():
        manifest = find_manifest(store)
        if manifest:
            _mend(jobs, manifest, pool)
        else:
            _remove_unfinished(jobs, store)
            _index([job for job in jobs if read_record(job) is None], adoption.tars.split, pool)
            _close(jobs, adoption, store)
        store.remove(WORK_FOLDER)
    close_dataset(out)
    return manifest is not None


def _describe_missing(lines: Iterable[str]) -> str:
    return f"parts are missing, {'; '.join(lines)}: fetch them, or give --allow-missing to go on without them"


def check_folder(jobs: list[TarJob], adoption: Adoption, store: LocalStore) -> None:
    """Raises InputError where a split's folder holds anything but (part of) what adopting these very tars makes."""
    if manifest := find_manifest(store):
        _check_manifest(jobs, adoption, manifest, store)
        return
    if store.size(f"{WORK_FOLDER}/job.json") is not None:
        raise InputError(f"{store} was begun by prep/shard.py: choose another --out or delete it")
    ours = {LEDGER, SAMPLES, *(job.index_name for job in jobs)}
    links = {job.name for job in jobs if _is_linked(job)}
    unfinished = _list_unfinished(jobs, store)
    for name in store.names():
        if name not in {WORK_FOLDER, *ours, *unfinished, *links}:
            raise InputError(f"{store} holds {name}, which is not of these tars: choose another --out or delete it")


def _list_unfinished(jobs: list[TarJob], store: LocalStore) -> list[str]:
    """Return the names of files that a run which was killed has not finished."""
    ours = {LEDGER, SAMPLES, MANIFEST, *(job.index_name for job in jobs), *(job.name for job in jobs)}
    return [name for name in store.names() if unfinished_name(name) in ours]


def _remove_unfinished(jobs: list[TarJob], store: LocalStore) -> None:
    for name in _list_unfinished(jobs, store):
        store.remove(name)


def _check_manifest(jobs: list[TarJob], adoption: Adoption, manifest: Manifest, store: LocalStore) -> None:
    if manifest.options is not None or manifest.source.name != ADOPTED:
        raise InputError(f"{store} was prepared from {manifest.source.name}: choose another --out")
    listed = [(shard.name, shard.size_bytes) for shard in manifest.shards]
    unlisted = _rejected_tars(store) - {name for name, _ in listed}
    if [(job.name, job.size_bytes) for job in jobs if job.name not in unlisted] != listed:
        raise InputError(f"{store} was adopted from other tars: give those, choose another --out, or delete it")
    if adoption.class_names not in (None, manifest.class_names):
        raise InputError(f"{store} was adopted with other class names: give those, or delete it and run again")
    if (fields := Fields.from_reading(manifest.reading)) != adoption.fields:
        flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in fields.to_reading().items())
        raise InputError(f"{store} was adopted with {flags or 'no flag for members'}: give that, or delete it")


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


def _close(jobs: list[TarJob], adoption: Adoption, store: LocalStore) -> None:
    """Link to the tars that have usable images, then write what makes a split of them."""
    records = [_record(job) for job in jobs]
    missing = [*adoption.tars.missing, *_find_short(jobs, records, adoption.tars.num_expected)]
    if missing and not adoption.allow_missing:
        raise InputError(_describe_missing(missing))
    class_names = adoption.class_names
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
    reading: dict[str, Any] = dict(adoption.fields.to_reading())
    if passed_over := [*adoption.tars.passed_over, *_count_passed_over(records)]:
        reading["passed_over"] = passed_over
    if missing:
        reading["missing"] = missing
    facts = SplitFacts(adoption.tars.split, Origin(ADOPTED, revision), None, class_names, reading)
    close_split(store, facts, records)


def _find_short(jobs: list[TarJob], records: list[dict[str, Any]], num_expected: dict[str, int]) -> list[str]:
    """Return a line for each tar that holds fewer samples than a file next to it says."""
    return [
        f"{job.name} holds {record['num_samples']:,} samples, {num_expected[job.name]:,} are listed"
        for job, record in zip(jobs, records, strict=True)
        if record["num_samples"] < num_expected.get(job.name, 0)
    ]


def _count_passed_over(records: list[dict[str, Any]]) -> list[str]:
    """Return a line for each kind of member that was not taken: in how many samples, and in which first."""
    counts: dict[str, tuple[int, str]] = {}
    for record in records:
        for text, (count, first) in record["passed_over"].items():
            before = counts.get(text, (0, first))
            counts[text] = before[0] + count, before[1]
    lines = [f"{text}, in {count:,} samples ({first})" for text, (count, first) in sorted(counts.items())]
    if len(lines) > MOST_LINES:
        lines[MOST_LINES:] = [f"and {len(lines) - MOST_LINES:,} more kinds of members"]
    return lines


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
    if _is_linked(job):
        return
    link, partial = job.store.folder / job.name, job.store.folder / f".{job.name}.{secrets.token_hex(8)}{PARTIAL}"
    try:
        partial.symlink_to(job.target)
    except OSError as error:
        if error.errno in NO_LINKS:
            raise InputError(
                f"{job.store.folder} is on a file system without symbolic links ({error.strerror}): choose an --out "
                "on another one, such as this machine's own disk; the tars stay where they are"
            ) from error
        raise
    replace_file(partial, link)
