"""Prepare a split: find the missing shards, write them in a pool of workers, finalize the split.

Writing one shard is a pure function of (source, range of rows, options), so any worker can write any shard. A shard is
a tar of KEY.jpg and KEY.cls, DALI's index and (with restarts) the images' segments next to it, and a record of its
contents. The tar gets its name last: if it exists, the others are complete.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from prep.dataset import REJECTED, Manifest, Options, Shard
from prep.errors import InputError
from prep.files import sha256_of
from prep.finalize import ShardContents, SplitFacts, finalize_dataset, finalize_split, find_manifest
from prep.images import StoredImage, UnusableImageError, as_jpeg
from prep.ledger import SUSPECT, entry
from prep.pools import Pool
from prep.progress import Meter
from prep.segments import encode_segments, segments_name
from prep.source import Item, Source
from prep.store import PARTIAL, WORK_FOLDER, Store
from prep.tar import TarWriter, dali_index, index_name

JOB = f"{WORK_FOLDER}/job.json"  # what an unfinished split is prepared from
NOT_DECISIVE = ("passed_over", "missing", "license")  # parts of a reading that change no image and no label
UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")  # characters that a key may not have


# One split.


def prepare_split(
    source: Source, split: str, out: Store, options: Options, pool: Pool["ShardJob"], *, strict: bool = False
) -> Manifest:
    """Write one split to `out/split`, or continue where an earlier run of the same job stopped.

    The bytes depend only on the source and the options. A complete split is not changed, except that shards that are
    missing or have another size are written again.

    Args:
        strict: stop at the first shard with a rejected or suspect image.

    Raises:
        InputError: the source is unusable, or the folder holds other data or was begun with other options.
    """
    # Check the source and the folder before anything is written.
    source.check_split(split)
    store = out.child(split)
    check_folder(source, split, store, options)

    # Write what is missing, of a complete split or of a new one.
    jobs = list_jobs(source, split, store, options)
    with store.lock():
        if manifest := find_manifest(store):
            _rewrite([job for job in jobs if not _is_complete(job, manifest)], manifest, pool)
        else:
            manifest = _write_new(source, jobs, pool, strict)
        store.remove(WORK_FOLDER)
    finalize_dataset(out)
    return manifest


def rewrite_shards(
    source: Source, manifest: Manifest, out: Store, names: Collection[str], pool: Pool["ShardJob"]
) -> None:
    """Write some shards of a complete split again from its source; if these are all, finalize the split again too.

    Raises:
        InputError: the source is another one, or a new shard differs from the manifest.
    """
    assert manifest.options is not None
    store = out.child(manifest.split)
    check_folder(source, manifest.split, store, manifest.options)
    jobs = list_jobs(source, manifest.split, store, manifest.options)
    chosen = [job for job in jobs if job.name in names]
    with store.lock():
        _rewrite(chosen, manifest, pool)
        if len(chosen) == len(jobs):
            # The manifest keeps its reading: a newer version of this code may describe the same reading in more words.
            facts = replace(_split_facts(source, manifest.split, manifest.options), reading=manifest.reading)
            finalize_split(store, facts, [_read_record(job) for job in jobs])
        store.remove(WORK_FOLDER)
    finalize_dataset(out)


def check_folder(source: Source, split: str, store: Store, options: Options) -> None:
    """Check that a split's folder is empty or holds (part of) the output of this job.

    Raises:
        InputError: it holds anything else.
    """
    # Find what the folder was begun with: in the manifest, or in the job file of an unfinished split.
    wanted = _describe_job(source, split, options)
    if manifest := find_manifest(store):
        found = {"split": manifest.split, **asdict(manifest.source), **asdict(manifest.options or Options(0))}
        found["reading"] = manifest.reading
    elif (content := store.read(JOB)) is not None:
        found = _parse_job(content, store)
    elif any(name != WORK_FOLDER for name in store.names()):
        raise InputError(f"{store} holds other files: choose another --out or empty it")
    else:
        return

    # Compare it with what is wanted now. It may be older than the option `restarts`.
    found = {"restarts": False, **found}
    found, wanted = ({**each, **_decisive_reading(each)} for each in (found, wanted))
    if not found["reading"]:  # it may be older than this key
        wanted["reading"] = {}
    for name in wanted:
        if found.get(name) != wanted[name]:
            raise InputError(
                f"{store} was begun with {name} {found.get(name)}, not {wanted[name]}: "
                "use the same value as before, choose another --out, or delete the folder"
            )


def _parse_job(content: bytes, store: Store) -> dict[str, Any]:
    try:
        job = json.loads(content)
        assert isinstance(job, dict)
    except (ValueError, AssertionError) as error:
        raise InputError(f"{store}/{JOB} is damaged: delete {store} and prepare it again") from error
    return job


def _decisive_reading(job: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a job's reading that decides which images get which labels.

    The source's revision covers the rest.
    """
    reading = job.get("reading") or {}
    return {"reading": {name: fact for name, fact in reading.items() if name not in NOT_DECISIVE}}


def _describe_job(source: Source, split: str, options: Options) -> dict[str, Any]:
    return {"split": split, **asdict(source.origin), **asdict(options), "reading": source.reading(split)}


def list_jobs(source: Source, split: str, store: Store, options: Options) -> list["ShardJob"]:
    """Return a job for each shard of a split; each shard covers a fixed range of the source's rows."""
    num_rows = source.num_rows[split] if options.limit is None else min(options.limit, source.num_rows[split])
    jobs = []
    for number, start in enumerate(range(0, num_rows, options.images_per_shard)):
        stop = min(start + options.images_per_shard, num_rows)
        rows = source.rows(split, start, stop)
        jobs.append(ShardJob(rows, start, stop - start, len(source.class_names), options, split, number, store))
    return jobs


def _write_new(source: Source, jobs: list["ShardJob"], pool: Pool["ShardJob"], strict: bool) -> Manifest:
    """Write the shards that do not exist yet, and finalize the split."""
    # Leave a note of the job, for the run that continues this one.
    store, split, options = jobs[0].store, jobs[0].split, jobs[0].options
    store.write(JOB, json.dumps(_describe_job(source, split, options)).encode())
    _remove_unfinished(store)

    # Write the missing shards.
    missing = _list_missing(jobs)
    for record in _write_shards(missing, sum(job.num_rows for job in jobs), pool):
        _check_strict(record, strict)

    # Gather all records, also those of earlier runs.
    records = (_check_strict(_read_record(job), strict) for job in jobs)
    return finalize_split(store, _split_facts(source, split, options), records)


def _rewrite(jobs: list["ShardJob"], manifest: Manifest, pool: Pool["ShardJob"]) -> None:
    """Write shards of a complete split again, each only if it is as in the manifest.

    It can differ if the source has changed, if another version of Pillow converts an image (PNG, CMYK) to JPEG, or if
    another libjpeg transcodes it.

    Raises:
        InputError: a shard came out different; its files were not changed.
    """
    listed = {shard.name: (shard,) for shard in manifest.shards}
    jobs = [replace(job, expected=listed.get(job.name, ())) for job in jobs]
    try:
        for record in _write_shards(jobs, sum(job.num_rows for job in jobs), pool):
            # Again: a worker of a Ray cluster may have a version that does not compare.
            shard = Shard(**record["shard"])
            if shard.num_images and (shard,) != listed.get(shard.name):
                raise InputError(_describe_difference(jobs[0].store, shard.name))
    except InputError:
        with suppress(OSError, InputError):  # workers may still write to it; the first error says what is wrong
            jobs[0].store.remove(WORK_FOLDER)  # else the split would count as interrupted
        raise


def _write_shards(jobs: list["ShardJob"], num_images: int, pool: Pool["ShardJob"]) -> Iterator[dict[str, Any]]:
    """Write some shards; yield the record of each when it is done. `num_images` is the split's, for the meter."""
    if not jobs:
        return
    with Meter(jobs[0].split, num_images, num_images - sum(job.num_rows for job in jobs)) as meter:
        for job, _ in pool(write_shard, jobs):
            record = _read_record(job)
            meter.add(job.num_rows, record["shard"]["size_bytes"])
            yield record


def _check_strict(record: dict[str, Any], strict: bool) -> dict[str, Any]:
    for found in record["ledger"]:
        if strict and found["event"] in (REJECTED, SUSPECT):
            raise InputError(
                f"row {found['row']} ({found['name']}) is {found['event']}: {found['reason']}; "
                "repair it in the source, delete the folder and run again, or run without --strict"
            )
    return record


def _is_complete(job: "ShardJob", manifest: Manifest) -> bool:
    """Check by the sizes whether a shard of a finished split is there; `prep/verify.py` checks the bytes."""
    size_bytes = {shard.name: shard.size_bytes for shard in manifest.shards}.get(job.name)
    if size_bytes is None:  # every row of it was rejected
        return True
    others = [job.index_name, *([job.segments_name] if manifest.has_segments else [])]
    return job.store.size(job.name) == size_bytes and all(job.store.size(name) is not None for name in others)


def _remove_unfinished(store: Store) -> None:
    for name in store.child(WORK_FOLDER).names():
        if name.endswith(PARTIAL):
            store.remove(f"{WORK_FOLDER}/{name}")


def _list_missing(jobs: list["ShardJob"]) -> list["ShardJob"]:
    """Return the shards that no earlier run finished; a tar gets its name after its record."""
    store = jobs[0].store
    names, recorded = set(store.names()), set(store.child(WORK_FOLDER).names())
    return [
        job
        for job in jobs
        if f"{job.name}.json" not in recorded or (job.name not in names and _read_record(job)["shard"]["num_images"])
    ]


def _read_record(job: "ShardJob") -> dict[str, Any]:
    """Return the record of a written shard; a worker on another machine may have written it."""
    content = job.store.read(job.record_name)
    if content is None:
        raise InputError(
            f"{job.store}/{job.record_name} is missing: --out must be on storage that all workers share, and no other "
            "run may write to it at the same time"
        )
    return json.loads(content)


def _split_facts(source: Source, split: str, options: Options) -> SplitFacts:
    return SplitFacts(split, source.origin, options, source.class_names, source.reading(split))


# One shard, in a worker.


@dataclass(frozen=True)
class ShardJob:
    """Rows of a split, the first of which is row `start`, to be written as shard `number` in `store`."""

    rows: Iterable[Item]
    start: int
    num_rows: int
    num_classes: int
    options: Options
    split: str
    number: int
    store: Store
    # What the manifest of a complete split lists: this shard, or nothing if all was rejected. None: of a new split.
    expected: tuple[Shard, ...] | None = None

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:06d}.tar"

    @property
    def index_name(self) -> str:
        return index_name(self.name)

    @property
    def segments_name(self) -> str:
        return segments_name(self.name)

    @property
    def record_name(self) -> str:
        return f"{WORK_FOLDER}/{self.name}.json"


def write_shard(job: ShardJob) -> None:
    """Write a shard's tar, index, segments and record; each appears under its name only when it is complete.

    Raises:
        InputError: the shard is not the expected one; nothing was published, and the files of that name are kept.
    """
    file = job.store.create(job.name)
    try:
        # Fill the tar, still under a temporary name.
        tar = TarWriter(file)
        contents = _fill_tar(tar, job)
        tar.finish()

        # Compare it with the expected shard before any file is replaced.
        segments = encode_segments(contents.segments) if job.options.restarts else b""
        digests = tar.composite_sha256, sha256_of(segments) if segments else ""
        shard = Shard(job.name, len(contents.components), file.size_bytes, *digests)
        if job.expected not in (None, (shard,) if shard.num_images else ()):
            raise InputError(_describe_difference(job.store, job.name))

        # Publish the tar last. No reader accepts a tar without samples, so none is published.
        if shard.num_images:
            job.store.write(job.index_name, dali_index(contents.components))
        if shard.num_images and segments:
            job.store.write(job.segments_name, segments)
        job.store.write(job.record_name, json.dumps(contents.to_record(shard)).encode())
        if shard.num_images:
            job.store.publish(file, job.name)
    finally:
        file.discard()  # does nothing to a published file


def _describe_difference(store: Store, name: str) -> str:
    return (
        f"{store}/{name} came out different from its manifest (another libjpeg or Pillow, or a changed source?), and "
        f"its files are kept: use what prepared it, or delete {store} and run again; if only a .idx or .seg is lost, "
        f"`python prep/verify.py {store} --repair` writes it from the tar"
    )


def _fill_tar(tar: TarWriter, job: ShardJob) -> ShardContents:
    """Write the usable images of a job's rows; list the others, and all findings, in the ledger."""
    contents = ShardContents()
    for row, item in enumerate(job.rows, job.start):
        _check_label(job, row, item)
        try:
            if item.fault:
                raise UnusableImageError(item.fault)
            image = as_jpeg(item.data, job.options)
        except UnusableImageError as reason:
            contents.ledger.append(entry(row, item.name, REJECTED, str(reason)))
            continue
        contents.ledger += [entry(row, item.name, event, reason) for event, reason in image.findings]
        contents.source_size_bytes += len(item.data)
        _add_sample(tar, contents, row, sample_key(row, item.name), image, _label_text(job, item.label))
    return contents


def _add_sample(tar: TarWriter, contents: ShardContents, row: int, key: str, image: StoredImage, label: str) -> None:
    sha256 = hashlib.sha256(image.data)
    offset = tar.add(f"{key}.jpg", image.data, sha256.digest())
    label_offset = tar.add(f"{key}.cls", label.encode(), hashlib.sha256(label.encode()).digest())
    size = len(image.data)
    contents.components.append([("jpg", offset, size, f"{key}.jpg"), ("cls", label_offset, len(label), f"{key}.cls")])
    contents.segments.append(image.segments)
    contents.add_row((key, offset, size, int(label), image.width, image.height, sha256.hexdigest(), row))


def sample_key(row: int, name: str) -> str:
    """Return a key from the row and the source's name of an image.

    It is unique in its split and safe in any tar and for webdataset: it has no dot and no slash.
    """
    stem = UNSAFE.sub("_", Path(name).stem)[:64]
    return f"{row:08d}-{stem}" if stem else f"{row:08d}"


def _label_text(job: ShardJob, label: int) -> str:
    return str(label).zfill(len(str(job.num_classes - 1)))


def _check_label(job: ShardJob, row: int, item: Item) -> None:
    last = job.num_classes - 1
    if not 0 <= item.label <= last:
        raise InputError(
            f"row {row} of {job.split} ({item.name}) has label {item.label}, outside 0 to {last}: repair it in the "
            "source"
        )
