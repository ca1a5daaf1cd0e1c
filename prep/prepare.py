"""Preparing a split: which shards are missing, who writes them, and closing it."""

import json
from collections.abc import Collection, Iterator
from dataclasses import asdict
from typing import Any

from prep.closing import SplitFacts, close_dataset, close_split, find_manifest
from prep.dataset import REJECTED, Manifest, Options, Shard
from prep.errors import InputError
from prep.ledger import SUSPECT
from prep.pools import Pool
from prep.progress import Meter
from prep.shards import ShardJob, write_shard
from prep.source import Source
from prep.store import PARTIAL, WORK_FOLDER, Store

JOB = f"{WORK_FOLDER}/job.json"


def prepare_split(
    source: Source, split: str, out: Store, options: Options, pool: Pool[ShardJob], *, strict: bool = False
) -> Manifest:
    """Write one split to `out/split`, or go on where an earlier run of the same job stopped.

    The bytes depend on the source and the options alone. A split that is whole is left as it is, but for
    shards that went missing or changed size, which are written anew. `strict` stops at rejected images.

    Raises:
        InputError: the source is unusable, or the folder holds other data or was begun with other options.
    """
    source.check(split)
    store = out.child(split)
    check_folder(source, split, store, options)
    jobs = list_jobs(source, split, store, options)
    with store.lock():
        if manifest := find_manifest(store):
            _write_again([job for job in jobs if not _is_whole(job, manifest)], manifest, pool)
        else:
            manifest = _write(source, jobs, pool, strict)
        store.remove(WORK_FOLDER)
    close_dataset(out)
    return manifest


def rewrite_shards(
    source: Source, manifest: Manifest, out: Store, names: Collection[str], pool: Pool[ShardJob]
) -> None:
    """Write some shards of a whole split anew from its source; where that is all of them, what closes it too.

    Raises:
        InputError: the source is another one, or a shard came out otherwise than the manifest says.
    """
    assert manifest.options is not None
    store = out.child(manifest.split)
    check_folder(source, manifest.split, store, manifest.options)
    jobs = list_jobs(source, manifest.split, store, manifest.options)
    chosen = [job for job in jobs if job.name in names]
    with store.lock():
        _write_again(chosen, manifest, pool)
        if len(chosen) == len(jobs):
            close_split(store, _facts(source, manifest.split, manifest.options), [_record(job) for job in jobs])
        store.remove(WORK_FOLDER)
    close_dataset(out)


def check_folder(source: Source, split: str, store: Store, options: Options) -> None:
    """Raises InputError where a split's folder holds anything but (part of) this very job's output."""
    wanted = _describe(source, split, options)
    if manifest := find_manifest(store):
        found = {"split": manifest.split, **asdict(manifest.source), **asdict(manifest.options or Options(0))}
        found["reading"] = manifest.reading
    elif (content := store.read(JOB)) is not None:
        found = _parse_job(content, store)
    elif any(name != WORK_FOLDER for name in store.names()):
        raise InputError(f"{store} holds other files: choose another --out or empty it")
    else:
        return
    found, wanted = ({**each, **_what_was_chosen(each)} for each in (found, wanted))
    if not found["reading"]:  # it may be older than this key
        wanted["reading"] = {}
    for name in wanted:
        if found.get(name) != wanted[name]:
            raise InputError(
                f"{store} was begun with {name} {found.get(name)}, not {wanted[name]}: "
                "give it as before, choose another --out, or delete the folder"
            )


def _parse_job(content: bytes, store: Store) -> dict[str, Any]:
    try:
        job = json.loads(content)
        assert isinstance(job, dict)
    except (ValueError, AssertionError) as error:
        raise InputError(f"{store}/{JOB} is damaged: delete {store} and prepare it again") from error
    return job


def _what_was_chosen(job: dict[str, Any]) -> dict[str, Any]:
    """The part of a job's reading that says which images have which labels; the revision covers the rest."""
    reading = job.get("reading") or {}
    return {"reading": {name: fact for name, fact in reading.items() if name not in ("passed_over", "missing")}}


def _describe(source: Source, split: str, options: Options) -> dict[str, Any]:
    return {"split": split, **asdict(source.origin), **asdict(options), "reading": source.reading(split)}


def list_jobs(source: Source, split: str, store: Store, options: Options) -> list[ShardJob]:
    """The shards of a split: each covers a fixed range of the source's rows."""
    num_rows = source.num_rows[split] if options.limit is None else min(options.limit, source.num_rows[split])
    jobs = []
    for number, start in enumerate(range(0, num_rows, options.images_per_shard)):
        stop = min(start + options.images_per_shard, num_rows)
        rows = source.rows(split, start, stop)
        jobs.append(ShardJob(rows, start, stop - start, len(source.class_names), options, split, number, store))
    return jobs


def _write(source: Source, jobs: list[ShardJob], pool: Pool[ShardJob], strict: bool) -> Manifest:
    """Write the shards that are not there yet, and close the split."""
    store, split, options = jobs[0].store, jobs[0].split, jobs[0].options
    store.write(JOB, json.dumps(_describe(source, split, options)).encode())
    _remove_unfinished(store)
    missing = _list_missing(jobs)
    for record in _run(missing, sum(job.num_rows for job in jobs), pool):
        _check(record, strict)
    records = (_check(_record(job), strict) for job in jobs)
    return close_split(store, _facts(source, split, options), records)


def _write_again(jobs: list[ShardJob], manifest: Manifest, pool: Pool[ShardJob]) -> None:
    """Shards written anew must be what the manifest says; another Pillow may encode a converted image otherwise."""
    for record in _run(jobs, sum(job.num_rows for job in jobs), pool):
        shard = Shard(**record["shard"])
        if shard.num_images and shard not in manifest.shards:
            folder = jobs[0].store
            raise InputError(f"{folder}/{shard.name} came out different from its manifest: delete {folder}, run again")


def _run(jobs: list[ShardJob], num_images: int, pool: Pool[ShardJob]) -> Iterator[dict[str, Any]]:
    """Write some shards; the record of each when it is done."""
    if not jobs:
        return
    with Meter(jobs[0].split, num_images, num_images - sum(job.num_rows for job in jobs)) as meter:
        for job, _ in pool(write_shard, jobs):
            record = _record(job)
            meter.add(job.num_rows, record["shard"]["size_bytes"])
            yield record


def _check(record: dict[str, Any], strict: bool) -> dict[str, Any]:
    for found in record["ledger"]:
        if strict and found["event"] in (REJECTED, SUSPECT):
            raise InputError(
                f"row {found['row']} ({found['name']}) is {found['event']}: {found['reason']}; "
                "mend it at the source, delete the folder and run again, or leave --strict out"
            )
    return record


def _is_whole(job: ShardJob, manifest: Manifest) -> bool:
    """Whether a shard of a closed split is there, as far as sizes tell; `prep/verify.py` looks closer."""
    size_bytes = {shard.name: shard.size_bytes for shard in manifest.shards}.get(job.name)
    if size_bytes is None:  # every row of it was rejected
        return True
    return job.store.size(job.name) == size_bytes and job.store.size(job.index_name) is not None


def _remove_unfinished(store: Store) -> None:
    for name in store.child(WORK_FOLDER).names():
        if name.endswith(PARTIAL):
            store.remove(f"{WORK_FOLDER}/{name}")


def _list_missing(jobs: list[ShardJob]) -> list[ShardJob]:
    """The shards that no earlier run finished: a tar gets its name after its record."""
    store = jobs[0].store
    names, noted = set(store.names()), set(store.child(WORK_FOLDER).names())
    return [
        job
        for job in jobs
        if f"{job.name}.json" not in noted or (job.name not in names and _record(job)["shard"]["num_images"])
    ]


def _record(job: ShardJob) -> dict[str, Any]:
    """What was written down of a shard; a worker of another machine may have done so."""
    content = job.store.read(job.record_name)
    if content is None:
        raise InputError(
            f"{job.store}/{job.record_name} is not there: give an --out that all workers share, and have no other run "
            "write to it at the same time"
        )
    return json.loads(content)


def _facts(source: Source, split: str, options: Options) -> SplitFacts:
    return SplitFacts(split, source.origin, options, source.class_names, source.reading(split))
