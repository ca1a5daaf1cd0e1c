"""Whether a prepared dataset is whole: each file against its manifest, and the manifests against themselves."""

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from prep.closing import LEAKS, TIMM_INFO, list_leaks, timm_info
from prep.dataset import LEDGER, MANIFEST, SAMPLES, Manifest, encode_samples, parse_manifest
from prep.errors import InputError, one_line
from prep.faults import CLEAN, DATASET, INDEX, PREPARE, Cure, Fault, Remedy, Report, shard_cure, split_cure
from prep.files import sha256_of
from prep.index_check import find_contradictions, read_samples_table
from prep.ledger import to_lines
from prep.pools import Pool
from prep.progress import Meter
from prep.shard_check import ShardCheck, ShardReport, check_shard
from prep.store import WORK_FOLDER, Store, open_store
from prep.tar import index_name
from prep.tar_sample import Fields

SPLIT_FILES = {MANIFEST, SAMPLES, LEDGER, WORK_FOLDER}


@dataclass(frozen=True)
class Layout:
    """Where the splits are: each split's folder by its name, and the dataset's, None where one split alone is meant."""

    splits: dict[str, Store]
    dataset: Store | None

    def __str__(self) -> str:
        return str(self.dataset or next(iter(self.splits.values())))


@dataclass
class OpenedSplit:
    """What a split's own files gave; `table` is None where the sample index cannot be relied on."""

    folder: str
    store: Store
    manifest: Manifest | None = None
    table: pa.Table | None = None
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, wrong: str, cure: Cure, shard: str = "") -> None:
        self.faults.append(Fault.at(f"{self.store}/{name}", wrong, cure, self.folder, shard))


def find_layout(directory: str) -> Layout:
    """What a user's DIR means: a dataset, or one split of it.

    Raises:
        InputError: there is nothing prepared in it.
    """
    store = open_store(directory)
    names = store.names()
    if SPLIT_FILES.intersection(names):
        return Layout({Path(directory).absolute().name: store}, None)
    named = _named_folders(store)
    splits = {name: store.child(name) for name in names if name not in (TIMM_INFO, LEAKS)}
    splits = {name: child for name, child in splits.items() if _is_split(child, name in named)}
    if not splits and not {TIMM_INFO, LEAKS}.intersection(names):
        raise InputError(f"{directory} holds no prepared split: give a folder that prep/shard.py wrote")
    return Layout(splits, store)


def _is_split(store: Store, is_named: bool) -> bool:
    names = store.names()
    return bool(SPLIT_FILES.intersection(names) or (is_named and names))


def _named_folders(store: Store) -> set[str]:
    """The folders of splits that `_info.json` names, as far as it can be read."""
    try:
        info: dict[str, Any] = json.loads(store.read(TIMM_INFO) or b"{}")
        return {described["filenames"][0].split("/")[0] for described in info["splits"].values()}
    except (ValueError, LookupError, TypeError, AttributeError):
        return set()


def check(
    layout: Layout, num_decoded: int | None, pool: Pool[ShardCheck], only: Collection[str] | None = None
) -> Report:
    """Look at everything, or of the shards at those in `only` (FOLDER/NAME); decode so many images of each split."""
    report = Report()
    splits = [open_split(folder, store) for folder, store in layout.splits.items()]
    jobs = [(split, job) for split in splits for job in list_jobs(split, num_decoded)]
    jobs = [(split, job) for split, job in jobs if only is None or f"{split.folder}/{job.shard.name}" in only]
    _check_shards(jobs, pool, report)
    for split in splits:
        report.faults += split.faults
        report.notes += split.notes
    report.num_splits = len(splits)
    if layout.dataset:
        _check_beside(layout.dataset, splits, report)
    return report


def open_split(folder: str, store: Store) -> OpenedSplit:
    """Read a split's manifest, sample index and ledger, and see what else lies there."""
    split = OpenedSplit(folder, store)
    try:
        _open(split, store.names())
    except OSError as error:
        reason = f"cannot be read ({error.strerror or error})"
        split.add("", reason, Cure(Remedy.USER, "see to the disk and the permissions"))
    return split


def _open(split: OpenedSplit, names: list[str]) -> None:
    split.manifest = manifest = _open_manifest(split, names)
    if manifest is None:
        return
    if WORK_FOLDER in names:
        split.add(WORK_FOLDER, "is left of an interrupted run", CLEAN)
    split.table = _open_samples(split, manifest)
    ledger = split.store.read(LEDGER)
    if ledger is None or sha256_of(ledger) != manifest.ledger_sha256:
        split.add(LEDGER, "is missing" if ledger is None else "does not match its manifest", split_cure(manifest))
    elif wrong := find_contradictions(manifest, split.table, ledger):
        split.table = None
        for text in wrong:
            split.add(MANIFEST, f"contradicts its split: {text}", PREPARE)
    _note_strangers(split, manifest, names)


def _open_manifest(split: OpenedSplit, names: list[str]) -> Manifest | None:
    content = split.store.read(MANIFEST)
    if content is None and WORK_FOLDER in names:
        unfinished = Cure(Remedy.USER, "run prep/shard.py (or prep/adopt.py) again with the arguments it had")
        split.add(MANIFEST, "is not written yet, the preparation did not finish", unfinished)
    elif content is None:
        split.add(MANIFEST, "is missing", PREPARE)
    else:
        try:
            manifest = parse_manifest(content, f"{split.store}/{MANIFEST}")
            if manifest.to_json().encode() == content:
                return manifest
            split.add(MANIFEST, "does not match its own digest", PREPARE)
        except InputError as error:
            split.faults.append(Fault(one_line(str(error)), Remedy.USER, split.folder))
    return None


def _open_samples(split: OpenedSplit, manifest: Manifest) -> pa.Table | None:
    content = split.store.read(SAMPLES)
    if content is not None and sha256_of(content) == manifest.samples_sha256:
        table = read_samples_table(content)
        if table is None:
            split.add(SAMPLES, "is no sample index of this format", split_cure(manifest))
        return table
    split.add(SAMPLES, "is missing" if content is None else "does not match its manifest", split_cure(manifest))
    return None


def _note_strangers(split: OpenedSplit, manifest: Manifest, names: list[str]) -> None:
    tars = {shard.name for shard in manifest.shards}
    known = SPLIT_FILES | tars | {index_name(name) for name in tars}
    split.notes += [one_line(f"{split.store}/{name} is no part of the split") for name in names if name not in known]


def list_jobs(split: OpenedSplit, num_decoded: int | None) -> list[ShardCheck]:
    """A check for each shard; `num_decoded` images of the split, spread evenly, are to be decoded, None for all."""
    manifest = split.manifest
    if manifest is None:
        return []
    num_rows = split.table.num_rows if split.table is not None else 0
    chosen = np.linspace(0, num_rows - 1, num_rows if num_decoded is None else min(num_decoded, num_rows)).astype(int)
    jobs, start = [], 0
    for shard in manifest.shards:
        rows = split.table.slice(start, shard.num_images) if split.table is not None else None
        encoded = encode_samples(dict(zip(rows.column_names, rows.columns, strict=True))) if rows is not None else None
        decoded = frozenset((chosen[(chosen >= start) & (chosen < start + shard.num_images)] - start).tolist())
        num_classes = len(manifest.class_names)
        fields = Fields.from_reading(manifest.reading)
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
        split.faults.sort(key=lambda fault: fault.line)


def _add_faults(split: OpenedSplit, job: ShardCheck, found: ShardReport) -> None:
    manifest, name = split.manifest, job.shard.name
    assert manifest is not None
    if found.tar:
        others = [
            shard.name
            for shard in manifest.shards
            if shard.composite_sha256 == found.composite_sha256 and shard.name != name
        ]
        wrong = f"holds the bytes of {others[0]}" if others else found.tar
        split.add(name, wrong, shard_cure(manifest), name)
    if found.index:
        split.add(job.index_name, found.index, INDEX, name)
    if found.rows:
        more = f" (and {len(found.rows) - 1:,} more)" if len(found.rows) > 1 else ""
        split.add(name, f"is not what {SAMPLES} says: {found.rows[0]}{more}", PREPARE, name)
    leave_out = Cure(Remedy.USER, "take it out of the source, delete the folder and prepare it again")
    for wrong in found.undecodable:
        split.add(name, f"is whole, but {wrong}", leave_out, name)


def _check_beside(dataset: Store, splits: list[OpenedSplit], report: Report) -> None:
    """`_info.json` and `leaks.jsonl` against what closing the dataset would write; what else lies beside the splits."""
    folders = {split.folder for split in splits}
    for name in sorted(_named_folders(dataset) - folders):
        gone = Cure(Remedy.DATASET, f"prepare it again, or --repair drops it from {TIMM_INFO}")
        report.faults.append(Fault.at(f"{dataset}/{name}", "is not there", gone))
    manifests = {split.folder: split.manifest for split in splits if split.manifest}
    unknown = {TIMM_INFO, LEAKS} if len(manifests) < len(splits) else set()
    if not unknown:
        _compare_beside(dataset, TIMM_INFO, timm_info(manifests), report)
        if len(splits) > 1 and any(split.table is None for split in splits):
            unknown = {LEAKS}
        else:
            _compare_beside(dataset, LEAKS, to_lines(list_leaks(dataset, manifests)), report)
    report.notes += [f"{dataset}/{name} cannot be checked before the splits are mended" for name in sorted(unknown)]
    strangers = set(dataset.names()) - folders - {TIMM_INFO, LEAKS}
    report.notes += [one_line(f"{dataset}/{name} is no part of the dataset") for name in sorted(strangers)]


def _compare_beside(dataset: Store, name: str, expected: bytes, report: Report) -> None:
    content = dataset.read(name)
    if content != expected:
        wrong = "is missing" if content is None else "is not what the splits say"
        report.faults.append(Fault.at(f"{dataset}/{name}", wrong, DATASET))
