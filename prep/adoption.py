"""Adopt existing WebDataset tars: read them once, index them and link to them; never write or copy them."""

import errno
import hashlib
import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from prep.dataset import LEDGER, MANIFEST, REJECTED, SAMPLES, Manifest, Origin, Shard
from prep.errors import InputError
from prep.files import replace_file, sha256_of, sync_folder, unfinished_name
from prep.finalize import SplitFacts, finalize_dataset, finalize_split, find_manifest
from prep.pools import Pool
from prep.progress import Meter
from prep.segments import encode_segments
from prep.store import PARTIAL, WORK_FOLDER, LocalStore
from prep.tar_index import TarJob, index_tar, read_record
from prep.tar_sample import ANY, Fields
from prep.tar_sets import TarSet

ADOPTED = "adopted"  # the source's name in the manifest
MOST_LINES = 20  # of the summary about members that were not used
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # FAT, exFAT, CIFS, some FUSE
ESTIMATE_TOLERANCE = 0.05  # the number of images is estimated from the bytes read; small corrections are not shown
Names = tuple[str, ...]


@dataclass(frozen=True)
class Adoption:
    """The tars of one split to adopt, and the flags of `prep/adopt.py`."""

    tars: TarSet
    class_names: Names | None = None  # None: the names are the labels as text
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
    """Read the names of the classes in the order of their labels, one per line.

    Raises:
        InputError: the file is not text, or a line of it is empty.
    """
    try:
        names = tuple(line.strip() for line in path.read_text("utf-8-sig").rstrip().splitlines())
    except ValueError as error:
        raise InputError(f"{path} is not UTF-8 text ({error}): write one class name per line") from error
    if not names or "" in names:
        raise InputError(
            f"line {names.index('') + 1 if names else 1} of {path} is empty: write one class name per line"
        )
    return names


def adopt_split(adoption: Adoption, out: LocalStore, pool: Pool[TarJob]) -> bool:
    """Index tars as a split of `out`, or continue where an earlier run stopped; return True if it was complete before.

    In a complete split only links, indexes and segments are restored, if the tars were moved or a file was lost.

    Raises:
        InputError: parts are missing, a tar or label is unusable, or the folder holds anything else.
    """
    # Check the parts and the folder before anything is written.
    if adoption.tars.missing and not adoption.allow_missing:
        raise InputError(_describe_missing(adoption.tars.missing))
    jobs = adoption.list_jobs(out)
    store = jobs[0].store
    check_folder(jobs, adoption, store)

    # Index the tars that no earlier run has indexed, and finalize the split.
    with store.lock():
        manifest = find_manifest(store)
        if manifest:
            _restore_split(jobs, manifest, pool)
        else:
            _remove_unfinished(jobs, store)
            _index_tars([job for job in jobs if read_record(job) is None], adoption.tars.split, pool)
            _finalize(jobs, adoption, store)
        store.remove(WORK_FOLDER)
    finalize_dataset(out)
    return manifest is not None


def _describe_missing(lines: Iterable[str]) -> str:
    return f"parts are missing, {'; '.join(lines)}: fetch them, or give --allow-missing to continue without them"


def check_folder(jobs: list[TarJob], adoption: Adoption, store: LocalStore) -> None:
    """Check that a split's folder is empty or holds (part of) the output of adopting these tars.

    Raises:
        InputError: it holds anything else.
    """
    # A complete split.
    if manifest := find_manifest(store):
        _check_manifest(jobs, adoption, manifest, store)
        return
    # An unfinished split, of prep/shard.py or of this command, or other files.
    if store.size(f"{WORK_FOLDER}/job.json") is not None:
        raise InputError(f"{store} was begun by prep/shard.py: choose another --out or delete it")
    ours = {LEDGER, SAMPLES, *(job.index_name for job in jobs), *(job.segments_name for job in jobs)}
    links = {job.name for job in jobs if _is_linked(job)}
    unfinished = _list_unfinished(jobs, store)
    for name in store.names():
        if name not in {WORK_FOLDER, *ours, *unfinished, *links}:
            raise InputError(
                f"{store} holds {name}, which does not belong to these tars: choose another --out or delete it"
            )


def _list_unfinished(jobs: list[TarJob], store: LocalStore) -> list[str]:
    """Return the names of files that a killed run left unfinished."""
    of_jobs = [name for job in jobs for name in (job.name, job.index_name, job.segments_name)]
    ours = {LEDGER, SAMPLES, MANIFEST, *of_jobs}
    return [name for name in store.names() if unfinished_name(name) in ours]


def _remove_unfinished(jobs: list[TarJob], store: LocalStore) -> None:
    for name in _list_unfinished(jobs, store):
        store.remove(name)


def _check_manifest(jobs: list[TarJob], adoption: Adoption, manifest: Manifest, store: LocalStore) -> None:
    """Check that a complete split was adopted from the same tars, with the same class names and flags.

    Raises:
        InputError: it was not.
    """
    if manifest.options is not None or manifest.source.name != ADOPTED:
        raise InputError(f"{store} was prepared from {manifest.source.name}: choose another --out")
    listed = [(shard.name, shard.size_bytes) for shard in manifest.shards]
    unlisted = _rejected_tars(store) - {name for name, _ in listed}
    if [(job.name, job.size_bytes) for job in jobs if job.name not in unlisted] != listed:
        raise InputError(f"{store} was adopted from other tars: give the same tars, choose another --out, or delete it")
    if adoption.class_names not in (None, manifest.class_names):
        raise InputError(f"{store} was adopted with other class names: give the same names, or delete it and run again")
    if (fields := Fields.from_reading(manifest.reading)) != adoption.fields:
        flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in fields.to_reading().items())
        raise InputError(f"{store} was adopted with {flags or 'no flag for members'}: do the same, or delete it")


def _rejected_tars(store: LocalStore) -> set[str]:
    """Return the tars with an image that was left out; a tar with only such images is not in the manifest."""
    entries = map(json.loads, (store.read(LEDGER) or b"").splitlines())
    return {found["name"].partition("/")[0] for found in entries if found["event"] == REJECTED}


def _restore_split(jobs: list[TarJob], manifest: Manifest, pool: Pool[TarJob]) -> None:
    """Restore the missing indexes, segments and links of a complete split.

    Raises:
        InputError: a tar that had to be read again has changed.
    """
    shards = {shard.name: shard for shard in manifest.shards}
    listed = [job for job in jobs if job.name in shards]
    _index_tars([job for job in listed if _lacks_files(job, shards[job.name])], manifest.split, pool)
    for job in listed:
        if record := read_record(job):
            _restore_segments(job, record["shard"], shards[job.name])
        _link(job)
    sync_folder(jobs[0].store.folder)


def _lacks_files(job: TarJob, shard: Shard) -> bool:
    return job.store.size(job.index_name) is None or (
        bool(shard.segments_sha256) and job.store.size(job.segments_name) is None
    )


def _restore_segments(job: TarJob, found: dict[str, Any], shard: Shard) -> None:
    """Write the segments of a tar that was read again, if its split has them and they are missing.

    Raises:
        InputError: the tar has changed, or its usable images are not those that were adopted.
    """
    if found["composite_sha256"] != shard.composite_sha256:
        job.store.remove(job.index_name)
        raise InputError(
            f"{job.path} has changed since it was adopted: fetch it again, or delete {job.store} and run again"
        )
    if not shard.segments_sha256 or job.store.size(job.segments_name) is not None:
        return
    # The list has a record per usable image, and --no-decode-check or another Pillow may change which are usable.
    content = _read_segments(job, found)
    if sha256_of(content) != shard.segments_sha256:
        raise InputError(
            f"{job.path} is unchanged, but its usable images are not those that were adopted (--no-decode-check, or "
            f"another Pillow?): `python prep/verify.py {job.store} --repair` writes {job.segments_name} again"
        )
    job.store.write(job.segments_name, content)


def _read_segments(job: TarJob, found: dict[str, Any]) -> bytes:
    """Return the SHARD.seg of a tar that was read; `index_tar` wrote it only if an image has segments."""
    if not found["segments_sha256"]:
        return encode_segments([None] * found["num_images"])
    content = job.store.read(job.found_segments_name)
    assert content is not None
    return content


def _index_tars(jobs: list[TarJob], split: str, pool: Pool[TarJob]) -> None:
    """Read and index some tars in the pool, and show the progress."""
    if not jobs:
        return
    size_bytes = sum(job.size_bytes for job in jobs)
    with Meter(split, 0) as meter:
        for job, num_samples in pool(index_tar, jobs):
            # Estimate the total from the images per byte so far; show it when it has changed enough.
            images_per_byte = (meter.done + num_samples) / (meter.size_bytes + job.size_bytes)
            total = round(images_per_byte * size_bytes)
            is_last = meter.size_bytes + job.size_bytes == size_bytes
            if is_last or abs(total - meter.total) > ESTIMATE_TOLERANCE * total:
                meter.expect(total)
            meter.add(num_samples, job.size_bytes)


def _finalize(jobs: list[TarJob], adoption: Adoption, store: LocalStore) -> None:
    """Link to the tars that have usable images, and write the split's files."""
    # Read the records and check that no samples are missing.
    records = [_require_record(job) for job in jobs]
    missing = [*adoption.tars.missing, *_find_short(jobs, records, adoption.tars.num_expected)]
    if missing and not adoption.allow_missing:
        raise InputError(_describe_missing(missing))

    # Determine what depends on all tars: class names, unique keys, rows of the split.
    class_names = adoption.class_names
    labels = [record["columns"]["label"] for record in records]
    if class_names is None:
        class_names = tuple(str(label) for label in range(max(chain([-1], *labels)) + 1))
    _check_labels(jobs, records, class_names)
    _make_keys_unique(jobs, records)
    _number_rows(records)

    # Link to the tars that have a usable image, after the files next to them are complete.
    usable = [(job, record["shard"]) for job, record in zip(jobs, records, strict=True) if record["columns"]["key"]]
    _write_segments(usable)
    for job, _ in usable:
        _link(job)
    sync_folder(store.folder)

    # The revision is a digest of the tars; the reading says what was left out.
    revision = hashlib.sha256("".join(shard["composite_sha256"] for _, shard in usable).encode()).hexdigest()
    reading: dict[str, Any] = dict(adoption.fields.to_reading())
    if passed_over := [*adoption.tars.passed_over, *_count_passed_over(records)]:
        reading["passed_over"] = passed_over
    if missing:
        reading["missing"] = missing
    facts = SplitFacts(adoption.tars.split, Origin(ADOPTED, revision), None, class_names, reading)
    finalize_split(store, facts, records)


def _write_segments(usable: list[tuple[TarJob, dict[str, Any]]]) -> None:
    """Write the segments of all tars if an image of any has some, and note their digests in the tars' facts."""
    has_segments = any(shard["segments_sha256"] for _, shard in usable)
    for job, shard in usable:
        if has_segments:
            content = _read_segments(job, shard)
            job.store.write(job.segments_name, content)
            shard["segments_sha256"] = sha256_of(content)
        else:
            job.store.remove(job.segments_name)  # of an earlier run, before the tars were changed


def _find_short(jobs: list[TarJob], records: list[dict[str, Any]], num_expected: dict[str, int]) -> list[str]:
    """Return a line for each tar with fewer samples than a file next to it lists."""
    return [
        f"{job.name} holds {record['num_samples']:,} samples, {num_expected[job.name]:,} are listed"
        for job, record in zip(jobs, records, strict=True)
        if record["num_samples"] < num_expected.get(job.name, 0)
    ]


def _count_passed_over(records: list[dict[str, Any]]) -> list[str]:
    """Return a line for each kind of member that was not used: the number of samples with it, and the first of them."""
    counts: dict[str, tuple[int, str]] = {}
    for record in records:
        for text, (count, first) in record["passed_over"].items():
            before = counts.get(text, (0, first))
            counts[text] = before[0] + count, before[1]
    lines = [f"{text}, in {count:,} samples ({first})" for text, (count, first) in sorted(counts.items())]
    if len(lines) > MOST_LINES:
        lines[MOST_LINES:] = [f"and {len(lines) - MOST_LINES:,} more kinds of members"]
    return lines


def _require_record(job: TarJob) -> dict[str, Any]:
    record = read_record(job)
    if record is None or record["shard"]["size_bytes"] != job.size_bytes:
        raise InputError(f"{job.path} changed while it was read: wait until it is complete, and run again")
    return record


def _check_labels(jobs: list[TarJob], records: list[dict[str, Any]], class_names: Names) -> None:
    """Check that every label has a class name.

    Raises:
        InputError: one has none.
    """
    for job, record in zip(jobs, records, strict=True):
        columns = record["columns"]
        for key, label in zip(columns["key"], columns["label"], strict=True):
            if label >= len(class_names):
                known = f"but the class names end at {len(class_names) - 1}"
                raise InputError(f"{key} in {job.path} has label {label}, {known}: give a name for every label")


def _make_keys_unique(jobs: list[TarJob], records: list[dict[str, Any]]) -> None:
    """Make the keys unique in the split, if they are not: put the tar's name before each.

    `7` in shard-02.tar becomes `shard-02/7`. If a tar itself repeats a key, `7` becomes `shard-02/00000041/7`, with the
    sample's number in the tar.
    """
    keys = [record["columns"]["key"] for record in records]
    if len(set(chain(*keys))) == sum(map(len, keys)):
        return
    is_numbered = any(len(set(of_tar)) < len(of_tar) for of_tar in keys)
    for job, record in zip(jobs, records, strict=True):
        columns, stem = record["columns"], job.name.removesuffix(".tar")
        prefixes = [f"{stem}/{row:08d}/" if is_numbered else f"{stem}/" for row in columns["row"]]
        columns["key"] = [prefix + key for prefix, key in zip(prefixes, columns["key"], strict=True)]


def _number_rows(records: list[dict[str, Any]]) -> None:
    """Number the samples through the split; the records of the tars each count from 0."""
    start = 0
    for record in records:
        record["columns"]["row"] = [start + row for row in record["columns"]["row"]]
        record["ledger"] = [{**found, "row": start + found["row"]} for found in record["ledger"]]
        start += record["num_samples"]


def _is_linked(job: TarJob) -> bool:
    link = job.store.folder / job.name
    return link.is_symlink() and link.readlink() == job.target


def _link(job: TarJob) -> None:
    """Link to the tar under its name in the split's folder.

    Raises:
        InputError: the file system has no symbolic links.
    """
    if _is_linked(job):
        return
    link, partial = job.store.folder / job.name, job.store.folder / f".{job.name}.{secrets.token_hex(8)}{PARTIAL}"
    try:
        partial.symlink_to(job.target)
    except OSError as error:
        if error.errno in NO_LINKS:
            raise InputError(
                f"{job.store.folder} is on a file system without symbolic links ({error.strerror}): choose an --out "
                "on another one, such as this machine's own disk; the tars are not moved"
            ) from error
        raise
    replace_file(partial, link)
