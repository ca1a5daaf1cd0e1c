"""Check a prepared dataset: each file against its manifest, and the files of a split against each other."""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from prep.card import README
from prep.dataset import (
    LEDGER,
    MANIFEST,
    SAMPLE_SCHEMA,
    SAMPLES,
    STAGING_FOLDER,
    UNFINISHED,
    WORK_FOLDER,
    Manifest,
    encode_samples,
    parse_manifest,
)
from prep.dataset_card import is_users_readme, make_dataset_card
from prep.errors import InputError, one_line
from prep.faults import (
    CLEAN,
    DATASET,
    INDEX,
    PREPARE,
    SEGMENTS,
    STAGE,
    Cure,
    Fault,
    Remedy,
    Report,
    leave_out_cure,
    prepare_cure,
    shard_cure,
    split_cure,
)
from prep.files import sha256_of
from prep.finalize import DATASET_FILES, TIMM_INFO, list_leaks, timm_info
from prep.ledger import LEAKS, count_events, to_lines
from prep.pools import Pool
from prep.progress import Meter
from prep.segments import segments_name
from prep.shard_check import ShardCheck, ShardReport, check_shard
from prep.store import Store, open_store
from prep.tar import index_name
from prep.tar_sample import Fields

SPLIT_FILES = {MANIFEST, SAMPLES, LEDGER, *UNFINISHED}


@dataclass(frozen=True)
class Layout:
    """The folders to check: those of the splits, by name, and the dataset's; None if the user named a single split."""

    splits: dict[str, Store]
    dataset: Store | None

    def __str__(self) -> str:
        return str(self.dataset or next(iter(self.splits.values())))


@dataclass
class OpenedSplit:
    """A split's own files as read; `table` is None if the sample index cannot be relied on."""

    folder: str
    store: Store
    manifest: Manifest | None = None
    table: pa.Table | None = None
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add_fault(self, name: str, wrong: str, cure: Cure, shard: str = "") -> None:
        """Record a fault of the file `name`."""
        self.faults.append(Fault.at(f"{self.store}/{name}", wrong, cure, self.folder, shard))


def find_layout(directory: str) -> Layout:
    """Find out whether a user's DIR is a dataset or one split of it.

    Raises:
        InputError: it holds nothing that was prepared.
    """
    # One split.
    store = open_store(directory)
    names = store.names()
    if SPLIT_FILES.intersection(names):
        return Layout({Path(directory).absolute().name: store}, None)

    # A dataset: a folder that `_info.json` names is a split even if it has lost its manifest, sample index and ledger.
    named = _list_named_folders(store)
    splits = {name: store.child(name) for name in names if name not in DATASET_FILES}
    splits = {name: child for name, child in splits.items() if _is_split(child, name in named)}
    if not splits and not {TIMM_INFO, LEAKS}.intersection(names):
        raise InputError(f"{directory} holds no prepared split: give a folder that prep/shard.py wrote")
    return Layout(splits, store)


def _is_split(store: Store, is_named: bool) -> bool:
    names = store.names()
    return bool(SPLIT_FILES.intersection(names) or (is_named and names))


def _list_named_folders(store: Store) -> set[str]:
    """Return the split folders that `_info.json` names; empty if it cannot be read."""
    try:
        info: dict[str, Any] = json.loads(store.read(TIMM_INFO) or b"{}")
        return {described["filenames"][0].split("/")[0] for described in info["splits"].values()}
    except (ValueError, LookupError, TypeError, AttributeError):
        return set()


def check_dataset(
    layout: Layout, num_decoded: int | None, pool: Pool[ShardCheck], only: Collection[str] | None = None
) -> Report:
    """Check all files of a dataset or split.

    Args:
        num_decoded: images of each split to decode in full; None for all.
        only: the shards to check, as FOLDER/NAME; None for all. All other files are checked in any case.
    """
    report = Report()

    # Each split's own files, then its shards.
    splits = [open_split(folder, store) for folder, store in layout.splits.items()]
    jobs = [(split, job) for split in splits for job in list_jobs(split, num_decoded)]
    jobs = [(split, job) for split, job in jobs if only is None or f"{split.folder}/{job.shard.name}" in only]
    _check_shards(jobs, pool, report)
    for split in splits:
        report.faults += split.faults
        report.notes += split.notes
    report.num_splits = len(splits)

    # The files next to the splits.
    if layout.dataset:
        _check_dataset_files(layout.dataset, splits, report)
    return report


def open_split(folder: str, store: Store) -> OpenedSplit:
    """Read a split's manifest, sample index and ledger; note faults, and other files in the folder."""
    split = OpenedSplit(folder, store)
    try:
        _open_files(split, store.names())
    except OSError as error:
        reason = f"cannot be read ({error.strerror or error})"
        split.add_fault("", reason, Cure(Remedy.USER, "check the disk and the permissions"))
    return split


def _open_files(split: OpenedSplit, names: list[str]) -> None:
    split.manifest = manifest = _open_manifest(split, names)
    if manifest is None:
        return
    if WORK_FOLDER in names:
        split.add_fault(WORK_FOLDER, "is left of an interrupted run", CLEAN)
    if STAGING_FOLDER in names:
        split.add_fault(STAGING_FOLDER, "is left of an interrupted run", STAGE)
    split.table = _open_samples(split, manifest)

    # Only an undamaged ledger can be compared with the manifest and the sample index.
    ledger = split.store.read(LEDGER)
    if ledger is None or sha256_of(ledger) != manifest.ledger_sha256:
        wrong = "is missing" if ledger is None else "does not match its manifest"
        split.add_fault(LEDGER, wrong, split_cure(manifest))
    elif contradictions := find_contradictions(manifest, split.table, ledger):
        split.table = None
        for text in contradictions:
            split.add_fault(MANIFEST, f"contradicts its split: {text}", prepare_cure(manifest))
    _note_other_files(split, manifest, names)


def _open_manifest(split: OpenedSplit, names: list[str]) -> Manifest | None:
    content = split.store.read(MANIFEST)
    if content is None and WORK_FOLDER in names:
        unfinished = Cure(Remedy.USER, "run prep/shard.py (or prep/adopt.py) again with the same arguments")
        split.add_fault(MANIFEST, "is not written yet, the preparation did not finish", unfinished)
    elif content is None and STAGING_FOLDER in names:
        split.add_fault(MANIFEST, "is not there yet, prep/stage.py did not finish", STAGE)
    elif content is None:
        split.add_fault(MANIFEST, "is missing", PREPARE)
    else:
        try:
            manifest = parse_manifest(content, f"{split.store}/{MANIFEST}")
            if manifest.to_json().encode() == content:
                return manifest
            split.add_fault(MANIFEST, "does not match its own digest", PREPARE)
        except InputError as error:
            split.faults.append(Fault(one_line(str(error)), Remedy.USER, split.folder))
    return None


def _open_samples(split: OpenedSplit, manifest: Manifest) -> pa.Table | None:
    content = split.store.read(SAMPLES)
    if content is not None and sha256_of(content) == manifest.samples_sha256:
        table = read_samples_table(content)
        if table is None:
            split.add_fault(SAMPLES, "is not a sample index of this format", split_cure(manifest))
        return table
    wrong = "is missing" if content is None else "does not match its manifest"
    split.add_fault(SAMPLES, wrong, split_cure(manifest))
    return None


def _note_other_files(split: OpenedSplit, manifest: Manifest, names: list[str]) -> None:
    tars = {shard.name for shard in manifest.shards}
    segments = {segments_name(shard.name) for shard in manifest.shards if shard.segments_sha256}
    known = SPLIT_FILES | tars | {index_name(name) for name in tars} | segments
    split.notes += [
        one_line(f"{split.store}/{name} does not belong to the split") for name in names if name not in known
    ]


# The files of a split against each other, without reading a shard.


def read_samples_table(content: bytes) -> pa.Table | None:
    """Return the sample index from its file's bytes; None if they are something else."""
    try:
        table = pa.ipc.open_file(pa.BufferReader(content)).read_all()
    except (pa.ArrowInvalid, OSError):
        return None
    return table.combine_chunks() if table.schema.equals(SAMPLE_SCHEMA) else None


def find_contradictions(manifest: Manifest, table: pa.Table | None, ledger: bytes) -> list[str]:
    """Return in words where manifest, sample index and ledger contradict each other."""
    wrong = [] if table is None else list(_compare_samples(manifest, table))
    if count_events(map(json.loads, ledger.splitlines())) != manifest.findings:
        wrong.append("the ledger has other counts")
    if len({shard.name for shard in manifest.shards}) < len(manifest.shards):
        wrong.append("two shards have the same name")
    if len({bool(shard.segments_sha256) for shard in manifest.shards}) > 1:
        wrong.append("only some of its shards have segments")
    return wrong


def _compare_samples(manifest: Manifest, table: pa.Table) -> Iterator[str]:
    num_images = [shard.num_images for shard in manifest.shards]
    if not manifest.num_images == table.num_rows == sum(num_images):
        yield f"{manifest.num_images:,} images, {table.num_rows:,} rows, {sum(num_images):,} in the shards"
        return
    # The columns against the manifest and against each other.
    columns = {name: table.column(name).to_numpy() for name in ("shard", "offset", "size", "label", "width", "height")}
    shard, offset, size = columns["shard"], columns["offset"], columns["size"]
    if int(size.sum()) != manifest.size_bytes:
        yield f"{manifest.size_bytes:,} bytes, {int(size.sum()):,} in the rows"
    if not np.array_equal(shard, np.repeat(np.arange(len(num_images)), num_images)):
        yield "the rows are not in the order of the shards"
    if np.any((offset[1:] < (offset + size)[:-1]) & (shard[1:] == shard[:-1])):
        yield "offsets do not ascend within a shard"
    if np.any((columns["label"] < 0) | (columns["label"] >= len(manifest.class_names))):
        yield f"a label is outside its {len(manifest.class_names):,} classes"
    if np.any((columns["width"] < 1) | (columns["height"] < 1)):
        yield "an image has no pixels"
    if len(table.column("key").unique()) != table.num_rows:
        yield "two images have the same key"


# The shards.


def list_jobs(split: OpenedSplit, num_decoded: int | None) -> list[ShardCheck]:
    """Return a check for each shard; `num_decoded` images of the split, spread evenly, are decoded, None for all."""
    manifest = split.manifest
    if manifest is None:
        return []

    # Choose the rows to decode.
    num_rows = split.table.num_rows if split.table is not None else 0
    chosen = np.linspace(0, num_rows - 1, num_rows if num_decoded is None else min(num_decoded, num_rows)).astype(int)

    # Give each shard its part of the sample index and of the chosen rows.
    num_classes = len(manifest.class_names)
    fields = Fields.from_reading(manifest.reading)
    jobs, start = [], 0
    for shard in manifest.shards:
        rows = split.table.slice(start, shard.num_images) if split.table is not None else None
        encoded = encode_samples(dict(zip(rows.column_names, rows.columns, strict=True))) if rows is not None else None
        decoded = frozenset((chosen[(chosen >= start) & (chosen < start + shard.num_images)] - start).tolist())
        jobs.append(ShardCheck(split.store, shard, num_classes, manifest.options is None, encoded, decoded, fields))
        start += shard.num_images
    return jobs


def _check_shards(jobs: list[tuple[OpenedSplit, ShardCheck]], pool: Pool[ShardCheck], report: Report) -> None:
    if not jobs:
        return
    owners = {id(job): split for split, job in jobs}
    with Meter("verify", sum(job.shard.num_images for _, job in jobs)) as meter:
        for job, found in pool(check_shard, [job for _, job in jobs]):
            _add_faults(owners[id(job)], job, found)
            report.num_decoded += found.num_decoded
            report.num_shards += 1
            report.num_images += job.shard.num_images
            report.size_bytes += job.shard.size_bytes
            meter.add(job.shard.num_images, job.shard.size_bytes)
    for split in {id(split): split for split, _ in jobs}.values():
        split.faults.sort(key=lambda fault: fault.line)  # the shards were done in any order


def _add_faults(split: OpenedSplit, job: ShardCheck, found: ShardReport) -> None:
    """Turn what was found in a shard into faults of its split."""
    manifest, name = split.manifest, job.shard.name
    assert manifest is not None

    # A tar may have been overwritten by another shard.
    if found.tar:
        others = [
            shard.name
            for shard in manifest.shards
            if shard.composite_sha256 == found.composite_sha256 and shard.name != name
        ]
        wrong = f"holds the bytes of {others[0]}" if others else found.tar
        split.add_fault(name, wrong, shard_cure(manifest), name)
    if found.index:
        split.add_fault(job.index_name, found.index, INDEX, name)
    if found.segments:
        cure = split_cure(manifest) if job.rows is None else SEGMENTS
        split.add_fault(job.segments_name, found.segments, cure, name)
    if found.contradiction:
        split.add_fault(job.segments_name, found.contradiction, prepare_cure(manifest), name)
    if found.rows:
        more = f" (and {len(found.rows) - 1:,} more)" if len(found.rows) > 1 else ""
        split.add_fault(name, f"does not agree with {SAMPLES}: {found.rows[0]}{more}", prepare_cure(manifest), name)
    leave_out = leave_out_cure(manifest)
    for wrong in found.undecodable:
        split.add_fault(name, f"is complete, but {wrong}", leave_out, name)


# The files next to the splits.


def _check_dataset_files(dataset: Store, splits: list[OpenedSplit], report: Report) -> None:
    """Compare the files next to the splits with the splits; note other files there."""
    # Splits that `_info.json` names and that are gone.
    folders = {split.folder for split in splits}
    for name in sorted(_list_named_folders(dataset) - folders):
        gone = Cure(Remedy.DATASET, f"prepare it again, or --repair drops it from {TIMM_INFO}")
        report.faults.append(Fault.at(f"{dataset}/{name}", "does not exist", gone))

    # These files follow from the manifests; the leaks also need every sample index.
    manifests = {split.folder: split.manifest for split in splits if split.manifest}
    unknown = set(DATASET_FILES) if len(manifests) < len(splits) else set()
    if not unknown:
        _compare_file(dataset, TIMM_INFO, timm_info(manifests), report)
        _check_readme(dataset, make_dataset_card(manifests), report)
        if len(splits) > 1 and any(split.table is None for split in splits):
            unknown = {LEAKS}
        else:
            _compare_file(dataset, LEAKS, to_lines(list_leaks(dataset, manifests)), report)
    report.notes += [f"{dataset}/{name} cannot be checked before the splits are repaired" for name in sorted(unknown)]

    others = set(dataset.names()) - folders - set(DATASET_FILES)
    report.notes += [one_line(f"{dataset}/{name} does not belong to the dataset") for name in sorted(others)]


def _check_readme(dataset: Store, expected: bytes, report: Report) -> None:
    """Compare the dataset card. A dataset of an older version has none, and a user may have one: neither is a fault."""
    content = dataset.read(README)
    if content is None:
        report.lacks_card = True
        report.notes.append(f"{dataset}/{README} is missing, as in datasets of older versions: --repair writes it")
    elif is_users_readme(content):
        report.notes.append(f"{dataset}/{README} was not written by Penstock, and is kept")
    else:
        _compare_file(dataset, README, expected, report)


def _compare_file(dataset: Store, name: str, expected: bytes, report: Report) -> None:
    content = dataset.read(name)
    if content != expected:
        wrong = "is missing" if content is None else "does not agree with the splits"
        report.faults.append(Fault.at(f"{dataset}/{name}", wrong, DATASET))
